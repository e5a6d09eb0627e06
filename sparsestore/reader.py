"""One pinned version of a store: finds rows on disk, checks their bytes, copies them out.

Uncompressed segments are memory-mapped and rows gathered straight from the map; compressed ones are decoded chunk by
chunk, each once a call. Nothing here depends on the order in which rows are asked for, but ascending is fastest.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore import csr
from sparsestore.csr import Rows, empty_aligned, index_dtype
from sparsestore.errors import CorruptStoreError, FormatError
from sparsestore.format import ROW_ID, ColumnSchema, Manifest, ObjectEntry
from sparsestore.manifest import read_manifest, segment_lines
from sparsestore.parallel import over_rows
from sparsestore.segment import Segment
from sparsestore.statistics import LabelStatistics, merge
from sparsestore.storage import LocalStorage, open_storage

__all__ = ["CHECKS", "Located", "Reader"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

CHECKS = ("first", "always", "never")


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one segment: where their entries are."""

    indices: Array
    data: Array | None
    constant: Any


class Located:
    """Rows found and checked, not copied yet. Holds what it needs: stays valid as long as it lives.

    Attributes
    ----------
    lengths : (m,) int64 array
        Entries of each row.
    """

    def __init__(
        self,
        parts: list[_Part],
        part_of: NDArray[np.int32] | None,
        starts: NDArray[np.uint64],
        lengths: Ints,
        width: int,
        where: str,
    ) -> None:
        self._parts = parts
        self._part_of = part_of
        self._starts = starts
        self.lengths = lengths
        self._width = width
        self._where = where

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nnz(self) -> int:
        """Entries of all rows together."""
        return int(self.lengths.sum())

    def take(self, order: Ints | slice | None = None, dtype: DTypeLike = np.float32) -> Rows:
        """Copy rows out, in any order, into fresh arrays that start at multiples of 64 bytes.

        Parameters
        ----------
        order : int64 array, slice or None
            Which of the rows located; all by default.
        dtype : numpy dtype
            Of the values.

        Raises
        ------
        CorruptStoreError
            Where a feature number is out of range.
        """
        from sparsestore.kernels import gather

        if np.dtype(dtype) == np.float16:  # which compiled loops do not know
            return self.take(order, np.float32).astype(np.float16)
        picked = slice(None) if order is None else order
        starts, lengths = self._starts[picked], self.lengths[picked]
        indptr = empty_aligned(len(lengths) + 1, np.int64)
        indptr[0] = 0
        np.cumsum(lengths, out=indptr[1:])
        total = int(indptr[-1])
        indices, data = empty_aligned(total, index_dtype(self._width)), empty_aligned(total, dtype)
        targets = indptr[:-1]
        if self._part_of is None:
            groups: list[tuple[int, Any]] = [(0, slice(None))]
        else:
            part_of = self._part_of[picked]
            by_part = np.argsort(part_of, kind="stable")
            cuts = np.flatnonzero(np.diff(part_of[by_part])) + 1
            groups = [(int(part_of[group[0]]), group) for group in np.split(by_part, cuts) if len(group)]
        for number, group in groups:
            part = self._parts[number]
            from_, sizes, to = starts[group], lengths[group], targets[group]

            def copy(
                start: int,
                stop: int,
                part: _Part = part,
                from_: NDArray[np.uint64] = from_,
                sizes: Ints = sizes,
                to: Ints = to,
            ) -> None:
                rows = from_[start:stop], sizes[start:stop], to[start:stop]
                if part.data is None:
                    gather.gather_indices(part.indices, *rows, indices)
                    gather.fill(part.constant, *rows[1:], data)
                else:
                    gather.gather(part.indices, part.data, *rows, indices, data)

            if len(part.indices):
                over_rows(copy, np.cumsum(sizes))
        if total and int(indices.view(f"u{indices.dtype.itemsize}").max()) >= self._width:
            raise CorruptStoreError(
                f"{self._where}: feature number {int(indices.max())} or a negative one, expected 0 to {self._width - 1}"
            )
        return Rows(indptr, indices, data, self._width)


def _reopened(root: str, version: int, check: str, mmap: bool) -> Reader:
    storage = open_storage(root)
    return Reader(storage, read_manifest(storage, version), check=check, mmap=mmap)


class Reader:
    """Reads one version of a store. Methods may be called from several threads at once.

    Parameters
    ----------
    storage : LocalStorage
    manifest : Manifest
    check : {"first", "always", "never"}
        When stored bytes are compared with their checksums: the first time that a process touches them, each time, or
        never.
    mmap : bool
        Map segments. False reads them with preadv: slower, but safe where files may be cut short from outside while
        they are open.
    """

    def __init__(self, storage: LocalStorage, manifest: Manifest, *, check: str = "first", mmap: bool = True) -> None:
        if check not in CHECKS:
            raise ValueError(f"check is {check!r}, expected one of {', '.join(CHECKS)}")
        self.storage = storage
        self.manifest = manifest
        self.check = check
        self.mmap = mmap
        self.lines = segment_lines(storage, manifest)
        self.segment_rows = np.array([line.rows for line in self.lines], np.int64)
        self.segment_starts = np.cumsum(self.segment_rows) - self.segment_rows
        self.shuffled = np.array([line.shuffled for line in self.lines], bool)
        self._segments: dict[int, Segment] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # locks and maps stay behind: another process opens the same version itself
        return _reopened, (str(self.storage.root), self.version, self.check, self.mmap)

    @property
    def version(self) -> int:
        """The version read."""
        return self.manifest.version

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, features)."""
        return self.manifest.rows, self.manifest.n_features

    @property
    def nnz(self) -> int:
        """Stored entries."""
        return self.manifest.nnz

    @property
    def dtype(self) -> np.dtype[Any]:
        """Logical dtype of the values."""
        return np.dtype(self.manifest.dtype)

    @property
    def columns(self) -> dict[str, ColumnSchema]:
        """What stands beside the matrix; `row_id` too where the rows were shuffled when they were stored."""
        extra = {ROW_ID: ColumnSchema("int64")} if self.shuffled.any() else {}
        return {**self.manifest.columns, **extra}

    def segment(self, number: int) -> Segment:
        """A segment, opened when it is first asked for."""
        with self._lock:
            if number not in self._segments:
                self._segments[number] = self._open(number)
            return self._segments[number]

    def _open(self, number: int, *, check_lengths: bool = True) -> Segment:
        return Segment(
            self.storage,
            self.lines[number],
            int(self.segment_starts[number]),
            version=self.version,
            n_features=self.manifest.n_features,
            check=self.check,
            mmap=self.mmap,
            check_lengths=check_lengths,
        )

    def _by_segment(self, rows: Ints) -> list[tuple[int, Ints | slice]]:
        """Which of the given rows lie in which segment."""
        n = self.manifest.rows
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= n):
            bad = int(rows[(rows < 0) | (rows >= n)][0])
            raise IndexError(f"index {bad} is out of bounds for axis 0 with size {n}")
        if len(self.lines) == 1:
            return [(0, slice(None))] if len(rows) else []
        of = np.searchsorted(self.segment_starts, rows, side="right") - 1
        order = np.arange(len(rows)) if bool((of[1:] >= of[:-1]).all()) else np.argsort(of, kind="stable")
        cuts = np.flatnonzero(np.diff(of[order])) + 1
        return [(int(of[group[0]]), group) for group in np.split(order, cuts) if len(group)]

    def locate(self, rows: Ints) -> Located:
        """Find rows by number and check their bytes; copies nothing that can be mapped.

        Parameters
        ----------
        rows : (m,) int64 array
            0 to the number of rows; fastest ascending.

        Raises
        ------
        IndexError
        CorruptStoreError
        """
        rows = np.ascontiguousarray(rows, np.int64)
        starts, lengths = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.int64)
        groups = self._by_segment(rows)
        part_of = None if len(groups) <= 1 else np.zeros(len(rows), np.int32)
        parts = []
        for slot, (number, group) in enumerate(groups):
            segment = self.segment(number)
            found, found_lengths = segment.offsets.locate(rows[group] - segment.start)
            indices, data, found = segment.parts(found, found_lengths)
            starts[group], lengths[group] = found, found_lengths
            if part_of is not None:
                part_of[group] = slot
            parts.append(_Part(indices, data, segment.constant))
        if not parts:
            parts = [_Part(np.empty(0, np.int32), None, 0)]
        where = f"{self.storage.name}: version {self.version}"
        if len(rows):
            where += f", rows {int(rows.min())} to {int(rows.max()) + 1}"
        return Located(parts, part_of, starts, lengths, self.manifest.n_features, where)

    def read(self, start: int, stop: int, dtype: DTypeLike | None = None) -> Rows:
        """Rows start to stop, in the store's logical dtype unless another is given."""
        return self.locate(np.arange(start, stop)).take(dtype=self.dtype if dtype is None else dtype)

    def column(self, name: str, rows: Ints | slice = slice(None)) -> Array:
        """Values of a column for the given rows, in any order; a masked array where values are missing.

        Raises
        ------
        KeyError
            Where there is no such column.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.manifest.rows))
        rows = np.asarray(rows, np.int64)
        schema = ColumnSchema("int64") if name == ROW_ID else self.manifest.columns.get(name)
        if schema is None:
            raise KeyError(f"there is no column {name!r}: the store has {sorted(self.columns) or 'none'}")
        groups = self._by_segment(rows)
        parts = [self._column_of(number, name, schema, rows[group]) for number, group in groups]
        if len(parts) == 1:
            values, missing = parts[0]
            return values if missing is None else np.ma.MaskedArray(values, missing)
        dtype = object if schema.dtype == "string" else np.dtype(schema.dtype)
        out: Array = np.empty((len(rows), *schema.shape), dtype)
        mask: NDArray[np.bool_] | None = None
        for (_, group), (values, missing) in zip(groups, parts, strict=True):
            out[group] = values
            if missing is not None:
                mask = np.zeros(len(rows), bool) if mask is None else mask
                mask[group] = missing
        return out if mask is None else np.ma.MaskedArray(out, mask)

    def _column_of(
        self, number: int, name: str, schema: ColumnSchema, rows: Ints
    ) -> tuple[Array, NDArray[np.bool_] | None]:
        """Values of a column in one segment, and where they are missing."""
        segment = self.segment(number)
        local = rows - segment.start if segment.start else rows
        if name == ROW_ID and not segment.has(f"columns/{name}"):
            return local + segment.document.row_id_start, None
        array = segment.array(f"columns/{name}")
        if (array.spec.dtype, array.spec.shape) != (schema.dtype, (segment.rows, *schema.shape)):
            raise FormatError(
                f"{self.storage.name}: column {name!r} is {array.spec.dtype} {array.spec.shape} in segment "
                f"{segment.id}, expected {schema.dtype} {(segment.rows, *schema.shape)}"
            )
        values = array.take(local)
        if name == ROW_ID:
            values = values + segment.document.row_id_start
        return values, segment.array(f"columns/{name}.mask").take(local) if segment.has(
            f"columns/{name}.mask"
        ) else None

    def label_statistics(self, name: str) -> LabelStatistics | None:
        """How a column's values vary between blocks of rows; None where a segment has no such statistics."""
        found = []
        for number in range(len(self.lines)):
            segment = self.segment(number)
            if not segment.has(f"stats/labels/{name}"):
                return None
            array = segment.array(f"stats/labels/{name}")
            found.append(LabelStatistics.from_arrays(array.read_all(), array.spec.attributes))
        return merge(found) if found else None

    def lengths_of(self, rows: Ints) -> int:
        """Entries of the given rows together, from their offsets alone."""
        total = 0
        for number, group in self._by_segment(rows):
            segment = self.segment(number)
            total += int(segment.offsets.locate(rows[group] - segment.start)[1].sum())
        return total

    @property
    def stored_itemsize(self) -> float:
        """Bytes that an entry takes on disk, by the newest segment; before compression."""
        if not self.lines:
            return 0.0
        document = self.segment(len(self.lines) - 1).document
        width = np.dtype(document.indices_dtype).itemsize
        return float(width if document.constant else width + np.dtype(document.data_dtype).itemsize)

    def objects(self, number: int) -> list[ObjectEntry]:
        """All objects of a segment with keys in the storage, segment.json included."""
        line = self.lines[number]
        key = f"segments/{line.id}/segment.json"
        segment = self._open(number, check_lengths=False)
        return [ObjectEntry(key, self.storage.length(key), line.crc32c), *segment.entries.values()]

    def close(self) -> None:
        """Forget all open segments. Arrays handed out stay valid: a map goes with its last user."""
        with self._lock:
            self._segments.clear()


def check_rows(rows: Rows, where: str) -> None:
    """Raise CorruptStoreError where rows read from disk are no canonical CSR matrix."""
    try:
        csr.check(rows, canonical=True)
    except ValueError as error:
        raise CorruptStoreError(f"{where}: {error}") from None
