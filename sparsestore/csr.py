"""Rows of a sparse matrix in memory: take, concatenate, check, to_dense."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.forking import imported
from sparsestore.kernels import gather
from sparsestore.parallel import over_rows
from sparsestore.values import cast, misfit, overflow, sums

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = [
    "Rows",
    "as_csr",
    "canonical",
    "check",
    "concatenate",
    "converted",
    "empty_aligned",
    "firsts",
    "from_dense",
    "from_scipy",
    "index_dtype",
    "number_dtype",
    "summed",
]

Array = NDArray[Any]

_SCIPY_WIDTH = 1 << 24
"""Features up to which scipy may pick some of them: its loop holds 8 or 16 bytes for each that there are."""


def index_dtype(n_features: int) -> np.dtype[Any]:
    """Dtype of `indices` in memory: int32 where all feature numbers fit, as in scipy and TensorFlow, else int64."""
    return np.dtype(np.int32 if n_features <= 2**31 - 1 else np.int64)


def number_dtype(dtype: DTypeLike, name: str = "dtype") -> np.dtype[Any]:
    """The dtype that was asked for, in this machine's byte order; ValueError where values can not have it.

    Examples
    --------
    >>> number_dtype(">f8")
    dtype('float64')
    """
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"{name} is {dtype!r}: {error}; expected a name such as 'float32'") from None
    if found.kind not in "biuf" or found.itemsize > 8:
        raise ValueError(f"{name} is {found}, expected bool, integers or floats of up to 64 bits")
    return found.newbyteorder("=")


def empty_aligned(n: int, dtype: DTypeLike) -> Array:
    """A fresh (n,) array that starts at a multiple of 64 bytes: TensorFlow then shares the memory and does not copy."""
    size = n * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype)


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a CSR matrix, canonical: column numbers ascend strictly inside each row.

    Attributes
    ----------
    indptr : (n + 1,) int64 array
        Starts at 0; row i is ``indices[indptr[i]:indptr[i + 1]]``.
    indices : (nnz,) int32 or int64 array
        Feature numbers.
    data : (nnz,) array
        Values, of any numeric dtype.
    n_features : int
        Width of the matrix.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    data: NDArray[Any]
    n_features: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, features)."""
        return len(self), self.n_features

    @property
    def nbytes(self) -> int:
        """Bytes held by the three arrays."""
        return self.indptr.nbytes + self.indices.nbytes + self.data.nbytes

    def place(self, at: int) -> tuple[int, int]:
        """Row and feature of an entry."""
        return int(np.searchsorted(self.indptr, at, side="right")) - 1, int(self.indices[at])

    def slice(self, start: int, stop: int) -> Rows:
        """Rows start to stop; `indices` and `data` are views."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        indptr = self.indptr[start : stop + 1] - first
        return Rows(indptr, self.indices[first:last], self.data[first:last], self.n_features)

    def take(self, rows: NDArray[np.integer[Any]]) -> Rows:
        """Copy the given rows, in that order, repeats allowed."""
        starts, lengths, indptr = self._places(rows)
        indices = np.empty(int(indptr[-1]), self.indices.dtype)
        data = np.empty(int(indptr[-1]), self.data.dtype)
        half = self.data.dtype == np.float16  # numba has none on a CPU: move its bits
        values, out = (self.data.view(np.uint16), data.view(np.uint16)) if half else (self.data, data)

        def work(start: int, stop: int) -> None:
            some = slice(start, stop)
            gather.gather(self.indices, values, starts[some], lengths[some], indptr[:-1][some], indices, out)

        over_rows(work, indptr[1:])
        return Rows(indptr, indices, data, self.n_features)

    def take_indices(self, rows: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], Array]:
        """`indptr` and `indices` of the given rows, in that order, repeats allowed; the values are not looked at."""
        starts, lengths, indptr = self._places(rows)
        indices = np.empty(int(indptr[-1]), self.indices.dtype)

        def work(start: int, stop: int) -> None:
            some = slice(start, stop)
            gather.gather_indices(self.indices, starts[some], lengths[some], indptr[:-1][some], indices)

        over_rows(work, indptr[1:])
        return indptr, indices

    def _places(self, rows: NDArray[np.integer[Any]]) -> tuple[Array, Array, NDArray[np.int64]]:
        """Where the entries of rows start, how many they are, and the indptr of these rows."""
        starts = self.indptr[:-1][rows]
        lengths = self.indptr[1:][rows] - starts
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        return starts.astype(np.uint64), lengths, indptr

    def take_features(self, features: NDArray[np.int64]) -> Rows:
        """The given features of all rows, renumbered in the order given; a repeated one is repeated."""
        x, numbers = (self, features) if self.n_features <= _SCIPY_WIDTH else self._renumbered(features)
        chosen = x.to_scipy()[:, numbers]
        chosen.sort_indices()
        width = len(features)
        indices = np.asarray(chosen.indices).astype(index_dtype(width), copy=False)
        return Rows(np.asarray(chosen.indptr, np.int64), indices, np.asarray(chosen.data), width)

    def _renumbered(self, features: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int64]]:
        """The distinct features of those given, as rows of no more width than these, and where each is in them."""
        wanted, numbers = np.unique(features, return_inverse=True)
        at = np.searchsorted(wanted, self.indices)
        kept = np.flatnonzero(at < len(wanted))
        kept = kept[wanted[at[kept]] == self.indices[kept]]
        indptr = np.searchsorted(kept, self.indptr)
        return Rows(indptr, at[kept].astype(index_dtype(len(wanted))), self.data[kept], len(wanted)), numbers

    def astype(self, dtype: DTypeLike) -> Rows:
        """Rows with the values in `dtype`; the same object where they already are."""
        if self.data.dtype == dtype:
            return self
        return Rows(self.indptr, self.indices, self.data.astype(dtype), self.n_features)

    def to_scipy(self) -> csr_array:
        """A `scipy.sparse.csr_array` over the same memory where scipy allows it."""
        indptr: Array = self.indptr
        if self.indices.dtype == np.int32 and self.nnz <= 2**31 - 1:
            indptr = indptr.astype(np.int32)  # scipy wants one index dtype; else it would widen `indices`
        return _csr_array(self.data, self.indices, indptr, self.shape)

    def to_dense(self, out: Array | None = None, dtype: DTypeLike | None = None) -> Array:
        """The rows as a dense (n, n_features) array, C order; `out` (zeroed by the caller) is filled and returned."""
        if out is None:
            out = np.zeros(self.shape, dtype or self.data.dtype)
        elif out.shape != self.shape:
            raise ValueError(f"out has shape {out.shape}, expected {self.shape}")
        data = self.data
        if out.dtype == np.float16:  # numba has none on a CPU: move its bits
            data, cells = data.astype(np.float16, copy=False).view(np.uint16), out.view(np.uint16)
        else:
            cells = out
        gather.densify(self.indptr, self.indices, data, cells)
        return out


def _csr_array(data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> csr_array:
    """A canonical `scipy.sparse.csr_array` over these arrays."""
    new = imported("scipy.sparse").csr_array
    usual = _usual_state()
    if usual is None or indices.dtype != indptr.dtype or data.dtype.kind not in "biuf" or data.dtype == np.float16:
        x: csr_array = new((data, indices, indptr), shape=shape, copy=False)
        # canonical by the promise of `Rows`: spare scipy a pass over the entries
        x.has_sorted_indices = True
        x.has_canonical_format = True
        return x
    # scipy's own way passes over all entries to check what holds already: 60 us for 256 rows, 4 ms for 4 M entries
    x = new.__new__(new)
    x.__dict__.update(usual)
    x.__dict__.update(data=data, indices=indices, indptr=indptr, _shape=shape)
    return x


@functools.cache
def _usual_state() -> dict[str, Any] | None:
    """What a canonical csr_array has beside its arrays and its shape; None for a scipy that keeps it in another way."""
    csr_array = imported("scipy.sparse").csr_array
    x = csr_array((np.ones(1, np.float32), np.zeros(1, np.int32), np.array([0, 1], np.int32)), shape=(1, 1))
    x.has_sorted_indices = True
    x.has_canonical_format = True
    state = dict(x.__dict__)
    for name in ("data", "indices", "indptr", "_shape"):
        if state.pop(name, None) is None:
            return None
    return state if all(isinstance(value, (int, bool)) for value in state.values()) else None


def concatenate(parts: Sequence[Rows]) -> Rows:
    """One `Rows` of all the parts' rows, in order; the parts must be equally wide."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        raise ValueError("need at least one part")
    widths = {part.n_features for part in parts}
    if len(widths) != 1:
        raise ValueError(f"parts have different numbers of features: {sorted(widths)}")
    sizes = [len(part) for part in parts]
    indptr = np.zeros(sum(sizes) + 1, np.int64)
    at, base = 0, 0
    for part, size in zip(parts, sizes, strict=True):
        np.add(part.indptr[1:], base, out=indptr[at + 1 : at + size + 1])
        at, base = at + size, base + part.nnz
    indices = np.concatenate([part.indices for part in parts])
    data = np.concatenate([part.data for part in parts])
    return Rows(indptr, indices, data, parts[0].n_features)


def check(rows: Rows, *, canonical: bool = False) -> None:
    """Raise ValueError where the arrays are no valid CSR matrix.

    Always: ends, monotone `indptr`, equal lengths, ``0 <= indices < n_features`` (negatives and too large in one
    unsigned comparison). With `canonical` also that column numbers ascend strictly inside each row.
    """
    indptr, indices = rows.indptr, rows.indices
    if len(indptr) == 0 or indptr[0] != 0:
        raise ValueError(f"indptr must start at 0, found {indptr[:1].tolist()}")
    if len(indices) != len(rows.data):
        raise ValueError(f"indices has {len(indices)} entries and data has {len(rows.data)}: they must be equal")
    if indptr[-1] != len(indices):
        raise ValueError(f"indptr ends at {int(indptr[-1])}, expected the number of entries, {len(indices)}")
    steps = np.diff(indptr)
    if len(steps) and steps.min() < 0:
        row = int(np.argmax(steps < 0))
        raise ValueError(f"indptr decreases at row {row}: {int(indptr[row])} to {int(indptr[row + 1])}")
    if len(indices):
        unsigned = indices.view(f"u{indices.dtype.itemsize}") if indices.dtype.kind == "i" else indices
        if int(unsigned.max()) >= rows.n_features:
            at = int(np.argmax(unsigned >= rows.n_features))
            row = int(np.searchsorted(indptr, at, side="right")) - 1
            raise ValueError(
                f"row {row} has feature number {int(indices[at])}, expected 0 to {rows.n_features - 1} "
                f"({rows.n_features} features)"
            )
    if canonical and not (ascends := _ascends(rows)).all():
        at = int(np.argmin(ascends)) + 1
        row = int(np.searchsorted(indptr, at, side="right")) - 1
        raise ValueError(
            f"row {row}: feature number {int(indices[at])} follows {int(indices[at - 1])}, expected strictly ascending"
        )


def is_canonical(rows: Rows) -> bool:
    """Whether column numbers ascend strictly inside each row, of rows that `check` has nothing against."""
    return bool(_ascends(rows).all())


def _ascends(rows: Rows) -> NDArray[np.bool_]:
    """Whether each entry but the first is in another row than the one before, or in a later column."""
    indptr, indices = rows.indptr, rows.indices
    ascends = indices[1:] > indices[:-1]
    inner = indptr[1:-1]
    ends = inner[(inner > 0) & (inner < len(indices))]
    ends -= 1
    ascends[ends] = True  # a new row starts behind
    return ascends


def converted(rows: Rows, dtype: np.dtype[Any], first: int = 0) -> Rows:
    """Rows with their values in the dtype; floats may be rounded, any other change is a ValueError.

    Unlike `Rows.astype`, which is for values that are to be used, and not kept. `first` is the number of the first row.
    """
    data, at = cast(rows.data, dtype)
    if at is not None:
        row, feature = rows.place(at)
        raise ValueError(f"row {first + row}, feature {feature}: {misfit(rows.data[at], dtype)}")
    return Rows(rows.indptr, rows.indices, data, rows.n_features)


def _value_dtype(x: Any) -> np.dtype[Any]:
    """Dtype of a matrix's values in this machine's byte order; ValueError where it is no matrix that can be stored."""
    if x.ndim != 2:
        raise ValueError(f"a matrix must have 2 dimensions, found {x.ndim}: reshape it to (rows, features)")
    if x.dtype.kind not in "biuf" or x.dtype.itemsize > 8:
        raise ValueError(
            f"values of dtype {x.dtype} can not be stored: expected bool, integers or real floats of up to 64 bits"
        )
    dtype: np.dtype[Any] = x.dtype.newbyteorder("=")
    return dtype


def firsts(rows: Rows) -> NDArray[np.bool_]:
    """Whether each entry is the first at its place, of rows with their column numbers in order."""
    fresh = np.ones(rows.nnz, bool)
    np.not_equal(rows.indices[1:], rows.indices[:-1], out=fresh[1:])
    inner = rows.indptr[1:-1]
    fresh[inner[inner < rows.nnz]] = True
    return fresh


def summed(rows: Rows) -> tuple[Rows, int | None]:
    """Rows with their column numbers in order, entries at one place added up; and the first whose sum does not fit."""
    fresh = firsts(rows)
    if fresh.all():
        return rows, None
    starts = np.flatnonzero(fresh)
    data, bad = sums(rows.data, starts)
    return Rows(np.searchsorted(starts, rows.indptr), rows.indices[starts], data, rows.n_features), bad


def canonical(rows: Rows, first: int = 0) -> Rows:
    """Rows that `check` has nothing against, with their columns sorted and duplicates summed.

    Raises
    ------
    ValueError
        Where a sum does not fit the dtype of the values. `first` is the number of the first row.
    """
    # as bits, so that scipy, which only sorts, takes any dtype
    bits = rows.data.view(f"u{rows.data.itemsize}")
    x = imported("scipy.sparse").csr_array((bits, rows.indices, rows.indptr), shape=rows.shape)
    if not x.has_sorted_indices:
        x = x.sorted_indices()
    indptr = np.asarray(x.indptr).astype(np.int64, copy=False)
    out, bad = summed(Rows(indptr, x.indices, x.data.view(rows.data.dtype), rows.n_features))
    if bad is not None:
        row, feature = out.place(bad)
        raise ValueError(f"row {first + row}, feature {feature}: {overflow(out.data.dtype)}")
    return out


def as_csr(x: Any) -> Any:
    """A scipy.sparse matrix or array as one of CSR, with duplicates where it has some: scipy's sums may wrap around."""
    if x.format == "coo":
        x = imported("scipy.sparse").coo_array((x.data, (x.row, x.col)), shape=x.shape)
        x.has_canonical_format = True  # it is no sum then
    return x.tocsr()


def from_scipy(x: Any, dtype: np.dtype[Any] | None = None, first: int = 0) -> Rows:
    """Canonical `Rows` of any scipy.sparse matrix or array (2-D): sorted, duplicates summed; `x` is left as it was.

    Parameters
    ----------
    x : scipy.sparse matrix or array
    dtype : numpy dtype, optional
        In which duplicates are summed; by default that of the values.
    first : int
        Number of the first row, for messages.

    Raises
    ------
    ValueError
        Where it is no valid matrix, or a sum does not fit.
    """
    value_dtype = _value_dtype(x)
    csr = as_csr(x)
    rows = Rows(
        np.asarray(csr.indptr).astype(np.int64, copy=False),
        csr.indices,
        np.asarray(csr.data).astype(value_dtype, copy=False),
        int(x.shape[1]),
    )
    # scipy does not check what it is given, and its compiled loops crash on a bad index (scipy#8778)
    if len(rows.indptr) != x.shape[0] + 1:
        raise ValueError(f"indptr has {len(rows.indptr)} elements, expected {x.shape[0] + 1}, one more than rows")
    check(rows)
    if not csr.has_canonical_format:
        rows = canonical(converted(rows, value_dtype if dtype is None else dtype, first), first)
    indices = np.asarray(rows.indices).astype(index_dtype(rows.n_features), copy=False)
    return Rows(rows.indptr, indices, rows.data, rows.n_features)


def from_dense(x: Array) -> Rows:
    """`Rows` of the non-zero entries of a dense 2-D array; NaN is an entry."""
    dtype = _value_dtype(x)
    present = x != 0
    indptr = np.zeros(len(x) + 1, np.int64)
    np.cumsum(np.count_nonzero(present, axis=1), out=indptr[1:])
    indices = np.nonzero(present)[1].astype(index_dtype(x.shape[1]))
    return Rows(indptr, indices, np.ascontiguousarray(x[present], dtype), int(x.shape[1]))
