"""Files and folders that hold named arrays, HDF5 and zarr: what formats that lie in either of them see of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import SourceError
from sparsestore.sources import layouts, options
from sparsestore.sources.base import Block, Triples
from sparsestore.sources.file import LONGEST_TEXT, shown

__all__ = [
    "HEADER_BYTES",
    "Compressed",
    "Container",
    "Stored",
    "banded",
    "integers",
    "numbers",
    "opened",
    "sequential",
    "shape_of",
    "targets",
    "text",
    "vector",
]

Array = NDArray[Any]

HEADER_BYTES = 64 << 20
"""Largest chunk of names and annotations that are read when a file is opened."""
TEXT_STEP = 1024
"""Strings read at a time: each may be anywhere in the file, and of any length."""


class Stored(Protocol):
    """An array of a container, checked: its dtype can be read, all of it was written, its chunks are of bounded size.

    Attributes
    ----------
    name : str
        File and array, for messages.
    shape : tuple of int
    dtype : numpy dtype
        Of numbers, of text (kinds S, U, O) or of records of these.
    chunk : int
        Rows that are stored together; 1 where any can be read alone.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int

    def rows(self, start: int, stop: int) -> Array:
        """Read elements start to stop along the first axis; text may come as bytes."""
        ...


class Container(Protocol):
    """Names of groups and arrays, joined by "/", and what stands there.

    Attributes
    ----------
    name : str
        What messages call it: its path.
    """

    name: str

    def kind(self, path: str) -> str:
        """Tell what is there: "group", "array", or "" for nothing."""
        ...

    def children(self, path: str) -> list[str]:
        """Names in a group, in order; none where there is no group."""
        ...

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of an array as it is declared; () where there is none."""
        ...

    def attribute(self, path: str, name: str) -> Any:
        """Give a str, a number, a list of these, a dict, or None where there is none."""
        ...

    def array(self, path: str) -> Stored:
        """Give an array; SourceError where there is none, or one that is not to be read."""
        ...


@contextmanager
def opened(path: Path, max_bytes: int) -> Iterator[Container]:
    """Open a zarr folder, a zip of one, or an HDF5 file; a chunk may have `max_bytes`, or 1 MiB where that is more."""
    if path.is_dir() or path.suffix.lower() == ".zip":
        from sparsestore.sources.zarr_folder import ZarrFolder

        with ZarrFolder.opened(path, max(max_bytes, 1 << 20)) as folder:
            yield folder
        return
    from sparsestore.sources.hdf5_file import Hdf5File

    with Hdf5File.opened(path, max(max_bytes, 1 << 20)) as file:
        yield file


def numbers(stored: Stored, what: str = "numbers") -> Stored:
    """The array, where it holds bool, integers or floats."""
    if stored.dtype.kind not in "biuf" or stored.dtype.itemsize > 8:
        raise SourceError(f"{stored.name}: is of dtype {stored.dtype}, expected {what}")
    return stored


def integers(stored: Stored) -> Stored:
    """The array, where it holds integers."""
    if stored.dtype.kind not in "iu":
        raise SourceError(f"{stored.name}: is of dtype {stored.dtype}, expected integers")
    return stored


def vector(stored: Stored, n: int | None = None) -> Stored:
    """The array, where it has one dimension and, if that is said, `n` elements."""
    if len(stored.shape) != 1 or (n is not None and stored.shape[0] != n):
        raise SourceError(f"{stored.name}: has shape {stored.shape}, expected {'(n,)' if n is None else (n,)}")
    return stored


def sequential(stored: Stored) -> layouts.Read:
    """Read the array front to back."""
    at = 0

    def read(n: int) -> Array:
        nonlocal at
        if at + n > stored.shape[0]:
            raise SourceError(f"{stored.name}: has {stored.shape[0]} elements, expected {at + n} at least")
        at += n
        return stored.rows(at - n, at)

    return read


def banded(stored: Stored, max_bytes: int) -> Callable[[int, int], Array]:
    """Rows of a matrix by their numbers, in order, read as many whole chunks together as `max_bytes` holds."""
    n_rows, row_bytes = stored.shape[0], max(1, prod(stored.shape[1:]) * stored.dtype.itemsize)
    step = max(1, max_bytes // row_bytes)
    step -= step % stored.chunk if step > stored.chunk else 0
    first, held = 0, np.empty((0, *stored.shape[1:]), stored.dtype)

    def read(start: int, stop: int) -> Array:
        nonlocal first, held
        parts = []
        while start < stop:
            if not first <= start < first + len(held):
                first = start - start % step
                held = held[:0]  # let go of it before more is read
                held = stored.rows(first, min(first + step, n_rows))
            upto = min(stop, first + len(held))
            parts.append(held[start - first : upto - first])
            start = upto
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [held[:0]])

    return read


def text(stored: Stored, start: int, stop: int, field: str | None = None) -> NDArray[np.object_]:
    """Strings start to stop of an array, or of a field of its records, as str."""
    out = np.empty(stop - start, object)
    for at in range(start, stop, TEXT_STEP):
        part = stored.rows(at, min(at + TEXT_STEP, stop))
        values = (part if field is None else part[field]).tolist()
        for row, value in enumerate(values, at - start):
            if isinstance(value, bytes):
                try:
                    value = value.decode()
                except UnicodeDecodeError as error:
                    raise SourceError(
                        f"{stored.name}: row {start + row}: {shown(value)} is no UTF-8 text: {error.reason}"
                    ) from None
            if not isinstance(value, str):
                raise SourceError(f"{stored.name}: row {start + row}: found a {type(value).__name__}, expected text")
            if len(value) > LONGEST_TEXT:
                raise SourceError(
                    f"{stored.name}: row {start + row}: text of {len(value)} characters, expected at most "
                    f"{LONGEST_TEXT}"
                )
            out[row] = value
    return out


def targets(stored: Stored, start: int, stop: int) -> Array:
    """Labels or weights of some rows: finite numbers, in this machine's byte order."""
    values = stored.rows(start, stop)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        raise SourceError(f"{stored.name}: row {start + row}: {values[row]}, expected a finite number")
    return values.astype(stored.dtype.newbyteorder("="), copy=False)


def shape_of(name: str, found: Any) -> tuple[int, int]:
    """Two whole numbers, as a file declares them."""
    if not (isinstance(found, list) and len(found) == 2 and all(type(n) is int and n >= 0 for n in found)):
        raise SourceError(f"{name}: has shape {shown(str(found), 80)}, expected two whole numbers: (rows, features)")
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Compressed:
    """A CSR or CSC matrix in a container.

    Attributes
    ----------
    name : str
        For messages.
    kind : {"csr", "csc"}
    shape : tuple of int
    arrays : tuple of str
        Where indptr, indices and data are.
    n_entries : int
    dtype : numpy dtype
        Of data.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    arrays: tuple[str, str, str]
    n_entries: int
    dtype: np.dtype[Any]

    @classmethod
    def found(
        cls, box: Container, name: str, kind: str, shape: tuple[int, int], arrays: tuple[str, str, str]
    ) -> Compressed:
        """Look at the arrays, whose lengths must be those of the shape."""
        indptr, indices, data = (vector(box.array(path)) for path in arrays)
        n = numbers(data).shape[0]
        vector(integers(indices), n)
        vector(integers(indptr), shape[kind == "csc"] + 1)
        options.check_rows(name, shape[0], n)
        return cls(name, kind, shape, arrays, n, data.dtype)

    def blocks(
        self, box: Container, *, width: int, dtype: np.dtype[Any], max_bytes: int, beside_bytes: int = 0
    ) -> Iterator[Block]:
        """Rows of a CSR matrix."""
        return layouts.csr_blocks(
            self.name,
            *self._reads(box),
            shape=self.shape,
            n_entries=self.n_entries,
            width=width,
            dtype=dtype,
            max_bytes=max_bytes,
            beside_bytes=beside_bytes,
        )

    def triples(self, box: Container, *, dtype: np.dtype[Any], max_bytes: int) -> Iterator[Triples]:
        """Entries of a CSC matrix; positions are bytes of data."""
        reads, shape, n = self._reads(box), self.shape, self.n_entries
        for part in layouts.csc_triples(self.name, *reads, shape=shape, n_entries=n, dtype=dtype, max_bytes=max_bytes):
            yield replace(part, position=part.position * self.dtype.itemsize)

    def _reads(self, box: Container) -> tuple[layouts.Read, layouts.Read, layouts.Read]:
        indptr, indices, data = (sequential(box.array(path)) for path in self.arrays)
        return indptr, indices, data
