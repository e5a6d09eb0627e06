"""One pinned version of a store: finds rows on disk, checks their bytes, copies them out.

Uncompressed segments are memory-mapped and rows gathered straight from the map; compressed ones are decoded chunk by
chunk, each once a call. Nothing here depends on the order in which rows are asked for, but ascending is fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore import csr
from sparsestore.buffers import Buffers
from sparsestore.csr import Rows, empty_aligned, index_dtype
from sparsestore.errors import CorruptStoreError, FormatError
from sparsestore.features import read_names
from sparsestore.forking import Lock, imported
from sparsestore.format import ROW_ID, ColumnSchema, Manifest, ObjectEntry
from sparsestore.kernels import gather
from sparsestore.kernels.coordinates import coordinates
from sparsestore.manifest import read_manifest, segment_lines, versions
from sparsestore.parallel import over_rows
from sparsestore.segment import Segment
from sparsestore.statistics import BLOCK_SIZES, LabelStatistics, merge
from sparsestore.storage import Advice, LocalStorage, open_storage
from sparsestore.values import cast

__all__ = ["CHECKS", "Coordinates", "Found", "Located", "Reader"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

CHECKS = ("first", "always", "never")


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one segment: where their entries are."""

    indices: Array
    data: Array | None
    constant: Any


class Coordinates(NamedTuple):
    """Batches in the form of sparse tensors, one after the other with gaps between them.

    Attributes
    ----------
    places : (m, 2) int64 array
        Row in its batch and feature number of each entry, in row-major order.
    values : (m,) array
    starts, stops : (n_batches,) int64 array
        Entries of each batch.
    """

    places: Ints
    values: Array
    starts: Ints
    stops: Ints


class Found:
    """Rows found by their offsets. Holds the segments: stays valid as long as it lives."""

    def __init__(
        self, parts: list[tuple[Segment, Any, NDArray[np.uint64], Ints]], n_rows: int, n_features: int
    ) -> None:
        self._parts = parts  # of each segment: which of the rows it has, where they start in it, their lengths
        self._n_rows = n_rows
        self._n_features = n_features

    def __len__(self) -> int:
        return self._n_rows

    def advise(self, advice: Advice) -> None:
        """Tell the system what will be done with these entries; returns at once."""
        for segment, _, starts, lengths in self._parts:
            segment.advise(starts, lengths, advice)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the entries as they are stored, before compression."""
        return sum(int(lengths.sum()) * segment.itemsize for segment, _, _, lengths in self._parts)

    @property
    def mapped(self) -> bool:
        """Whether all entries lie in maps, uncompressed."""
        return all(segment.mapped for segment, *_ in self._parts)

    def load(self, buffers: Buffers | None = None, *, direct: bool = False) -> Located:
        """Check the entries, and decode those that are compressed.

        With `buffers` all of them are copied into memory of these; with `direct` they are read around the page cache.

        Raises
        ------
        CorruptStoreError
        """
        if not self._parts:
            nothing = [_Part(np.empty(0, np.int32), None, 0)]
            return Located(nothing, None, np.zeros(0, np.uint64), np.zeros(0, np.int64), self._n_features)
        if len(self._parts) == 1:
            segment, _, starts, lengths = self._parts[0]
            indices, data, starts = segment.parts(starts, lengths, buffers, direct=direct)
            return Located([_Part(indices, data, segment.constant)], None, starts, lengths, self._n_features)
        starts, lengths = np.zeros(self._n_rows, np.uint64), np.zeros(self._n_rows, np.int64)
        part_of, parts = np.zeros(self._n_rows, np.int32), []
        for slot, (segment, group, found, found_lengths) in enumerate(self._parts):
            indices, data, starts[group] = segment.parts(found, found_lengths, buffers, direct=direct)
            lengths[group], part_of[group] = found_lengths, slot
            parts.append(_Part(indices, data, segment.constant))
        return Located(parts, part_of, starts, lengths, self._n_features)


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
    ) -> None:
        self._parts = parts
        self._part_of = part_of
        self._starts = starts
        self.lengths = lengths
        self._width = width

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nnz(self) -> int:
        """Entries of all rows together."""
        return int(self.lengths.sum())

    @classmethod
    def of(cls, rows: Rows) -> Located:
        """Rows in memory, as if located there."""
        part = _Part(rows.indices, rows.data, None)
        return cls([part], None, rows.indptr[:-1].astype(np.uint64), np.diff(rows.indptr), rows.n_features)

    def reordered(self, order: Ints) -> Located:
        """The same rows in another order, or some of them."""
        part_of = None if self._part_of is None else self._part_of[order]
        return Located(self._parts, part_of, self._starts[order], self.lengths[order], self._width)

    def take(self, order: Ints | None = None, dtype: DTypeLike = np.float32) -> Rows:
        """Copy rows out, in any order, into fresh arrays.

        Parameters
        ----------
        order : int64 array, optional
            Which of the rows located; all by default.
        dtype : numpy dtype
            Of the values.
        """
        rows = self if order is None else self.reordered(order)
        return rows.copy(0, len(rows), dtype)

    def copy(self, start: int, stop: int, dtype: DTypeLike = np.float32, buffers: Buffers | None = None) -> Rows:
        """Copy rows `start` to `stop` out, widened to `dtype` on the way, into arrays at multiples of 64 bytes.

        The arrays share one block of `buffers`, and are fresh without these. Their feature numbers were checked when
        they were located.
        """
        if np.dtype(dtype) == np.float16:  # which compiled loops do not know
            return self.copy(start, stop, np.float32, buffers).astype(np.float16)
        lengths = self.lengths[start:stop]
        indptr = empty_aligned(len(lengths) + 1, np.int64)
        indptr[0] = 0
        np.cumsum(lengths, out=indptr[1:])
        n = int(indptr[-1])
        indices, data = _empty_pair((n, index_dtype(self._width)), (n, np.dtype(dtype)), buffers)
        for part, group in self._groups(start, stop):
            _gather(part, self._starts[start:stop][group], lengths[group], indptr[:-1][group], indices, data)
        return Rows(indptr, indices, data, self._width)

    def coordinates(
        self, start: int, stop: int, batch_size: int, dtype: DTypeLike, buffers: Buffers | None = None
    ) -> Coordinates:
        """Copy rows `start` to `stop` out as coordinates, in batches that each begin at a multiple of 64 bytes."""
        dtype = np.dtype(dtype)
        lengths = self.lengths[start:stop]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        firsts = np.arange(0, len(lengths), batch_size)
        counts = np.diff(ends[np.append(firsts, len(lengths))])
        step = max(64 // dtype.itemsize, 4)
        padded = -(-counts // step) * step
        starts = np.cumsum(padded) - padded
        rows = np.arange(len(lengths)) % batch_size
        targets = ends[:-1] + (starts - ends[firsts])[np.arange(len(lengths)) // batch_size]
        n = int(padded.sum())
        places, values = _empty_pair((2 * n, np.dtype(np.int64)), (n, dtype), buffers)
        half = dtype == np.float16  # which compiled loops do not know
        data = np.zeros(len(values), np.float32) if half else values
        for part, group in self._groups(start, stop):
            found = self._starts[start:stop][group], lengths[group], targets[group]
            _gather_coordinates(part, *found, rows[group], places, data)
        if half:
            values[:] = data
        return Coordinates(places.reshape(-1, 2), values, starts, starts + counts)

    def scatter(self, start: int, stop: int, out: Array) -> None:
        """Make rows `start` to `stop` the rows of a (stop - start, n_features) array, whatever it held.

        Raises
        ------
        CorruptStoreError
            Where a feature number is out of range, though it was not when the row was located.
        """
        if not out.size:
            return
        rows = np.arange(stop - start)
        for part, group in self._groups(start, stop, empty=True):
            starts, lengths = self._starts[start:stop][group], self.lengths[start:stop][group]
            if not len(part.indices):
                out[rows[group]] = 0
            elif not _scatter(part, starts, lengths, rows[group], out):
                raise CorruptStoreError(
                    f"a feature number is not within 0 to {self._width - 1}, and was when it was checked: "
                    "the files of the store were written to meanwhile"
                )

    def _groups(self, start: int, stop: int, *, empty: bool = False) -> Iterator[tuple[_Part, Any]]:
        """For each segment that has some of the rows: its part, and which; with `empty` also those without entries."""
        if self._part_of is None:
            found: list[tuple[int, Any]] = [(0, slice(None))]
        else:
            part_of = self._part_of[start:stop]
            by_part = np.argsort(part_of, kind="stable")
            cuts = np.flatnonzero(np.diff(part_of[by_part])) + 1
            found = [(int(part_of[group[0]]), group) for group in np.split(by_part, cuts) if len(group)]
        for number, group in found:
            if empty or len(self._parts[number].indices):
                yield self._parts[number], group


def _empty_pair(
    first: tuple[int, np.dtype[Any]], second: tuple[int, np.dtype[Any]], buffers: Buffers | None
) -> tuple[Array, Array]:
    """Arrays of these lengths and dtypes, for numbers and values."""
    if buffers is None:
        return empty_aligned(*first), empty_aligned(*second)
    sizes = [n * dtype.itemsize for n, dtype in (first, second)]
    middle = -(-sizes[0] // 64) * 64
    block = buffers.empty(middle + sizes[1], np.uint8)
    return block[: sizes[0]].view(first[1]), block[middle:].view(second[1])


def _gather(part: _Part, starts: Array, lengths: Ints, targets: Ints, indices: Array, data: Array) -> None:
    """Copy rows of one segment, on all cores."""

    def copy(a: int, b: int) -> None:
        if part.data is None:
            gather.gather_indices(part.indices, starts[a:b], lengths[a:b], targets[a:b], indices)
            gather.fill(part.constant, lengths[a:b], targets[a:b], data)
        else:
            gather.gather(part.indices, part.data, starts[a:b], lengths[a:b], targets[a:b], indices, data)

    over_rows(copy, np.cumsum(lengths))


def _gather_coordinates(
    part: _Part, starts: Array, lengths: Ints, targets: Ints, rows: Ints, places: Array, data: Array
) -> None:
    """As `_gather`, with the number of the row beside that of the feature."""

    def copy(a: int, b: int) -> None:
        coordinates(part.indices, starts[a:b], lengths[a:b], targets[a:b], rows[a:b], places)
        if part.data is None:
            gather.fill(part.constant, lengths[a:b], targets[a:b], data)
        else:
            gather.gather_indices(part.data, starts[a:b], lengths[a:b], targets[a:b], data)

    over_rows(copy, np.cumsum(lengths))


def _scatter(part: _Part, starts: Array, lengths: Ints, targets: Ints, out: Array) -> bool:
    """Write rows of one segment to rows of a dense array, on all cores; whether all had a cell there."""
    outside: list[int] = []
    width, cells = out.shape[1], out.reshape(-1)

    def write(a: int, b: int) -> None:
        rows = starts[a:b], lengths[a:b], targets[a:b]
        if part.data is None:
            outside.append(gather.scatter_constant(part.indices, part.constant, *rows, width, cells))
        else:
            outside.append(gather.scatter(part.indices, part.data, *rows, width, cells))

    # to clear eight cells takes about as long as to fill one
    over_rows(write, np.cumsum(lengths + width // 8))
    return not any(outside)


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
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # locks and maps stay behind: another process opens the same version itself
        return _reopened, (str(self.storage.root), self.version, self.check, self.mmap)

    @property
    def version(self) -> int:
        """The version read."""
        return self.manifest.version

    @property
    def versions(self) -> list[int]:
        """Numbers of all versions that are there now."""
        return versions(self.storage)

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

    @functools.cached_property
    def feature_names(self) -> NDArray[np.object_] | None:
        """Names of the features; None where they have none. Read once."""
        features = self.manifest.features
        return None if features is None else read_names(self.storage, features, self.manifest.n_features)

    def segment(self, number: int) -> Segment:
        """A segment, opened when it is first asked for."""
        with self._lock():
            if number not in self._segments:
                self._segments[number] = self._open(number)
            return self._segments[number]

    def open_segments(self) -> None:
        """Open all segments: whatever they declare is then known to fit the lengths of their objects."""
        for number in range(len(self.lines)):
            self.segment(number)

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

    def find(self, rows: Ints) -> Found:
        """Find rows by number: where their entries are, read or checked not yet.

        Parameters
        ----------
        rows : (m,) int64 array
            0 to the number of rows; fastest ascending.

        Raises
        ------
        IndexError
        CorruptStoreError
            Where the offsets are no offsets.
        """
        rows = np.ascontiguousarray(rows, np.int64)
        parts = []
        for number, group in self._by_segment(rows):
            segment = self.segment(number)
            local = rows[group] - segment.start if segment.start else rows[group]
            parts.append((segment, group, *segment.offsets.locate(local)))
        return Found(parts, len(rows), self.manifest.n_features)

    def locate(self, rows: Ints) -> Located:
        """Find rows by number and check their bytes; copies nothing that can be mapped.

        Parameters and errors are those of `find`; CorruptStoreError also where entries are damaged.
        """
        return self.find(rows).load()

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
            return values if missing is None else imported("numpy.ma").MaskedArray(values, missing)
        dtype = object if schema.dtype == "string" else np.dtype(schema.dtype)
        out: Array = np.empty((len(rows), *schema.shape), dtype)
        mask: NDArray[np.bool_] | None = None
        for (_, group), (values, missing) in zip(groups, parts, strict=True):
            out[group] = values
            if missing is not None:
                mask = np.zeros(len(rows), bool) if mask is None else mask
                mask[group] = missing
        return out if mask is None else imported("numpy.ma").MaskedArray(out, mask)

    def _column_of(
        self, number: int, name: str, schema: ColumnSchema, rows: Ints
    ) -> tuple[Array, NDArray[np.bool_] | None]:
        """Values of a column in one segment, and where they are missing."""
        segment = self.segment(number)
        local = rows - segment.start if segment.start else rows
        if name == ROW_ID and not segment.has(f"columns/{name}"):
            return local + self.lines[number].row_id_start, None
        array = segment.array(f"columns/{name}")
        if (array.spec.dtype, array.spec.shape) != (schema.dtype, (segment.rows, *schema.shape)):
            raise FormatError(
                f"{self.storage.name}: column {name!r} is {array.spec.dtype} {array.spec.shape} in segment "
                f"{segment.id}, expected {schema.dtype} {(segment.rows, *schema.shape)}"
            )
        values = array.take(local)
        if name == ROW_ID:
            start = self.lines[number].row_id_start
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < 2**63 - start:
                raise FormatError(
                    f"{self.storage.name}: version {self.version}, segment {segment.id}: row_id has values from "
                    f"{values.min()} to {values.max()}, expected row numbers"
                )
            values = values + start
        if not segment.has(f"columns/{name}.mask"):
            return values, None
        mask = segment.array(f"columns/{name}.mask")
        if (mask.spec.dtype, mask.spec.shape, schema.shape) != ("bool", (segment.rows,), ()):
            raise FormatError(
                f"{self.storage.name}: the mask of column {name!r} is {mask.spec.dtype} {mask.spec.shape} in segment "
                f"{segment.id}, expected bool {(segment.rows,)}, of a column with one value a row"
            )
        return values, mask.take(local)

    def label_statistics(self, name: str) -> LabelStatistics | None:
        """How a column's values vary between blocks of rows; None where a segment has no such statistics."""
        found: list[LabelStatistics] = []
        schema = self.columns.get(name)
        if schema is None:
            return None
        for number in range(len(self.lines)):
            segment = self.segment(number)
            if not segment.has(f"stats/labels/{name}"):
                return None
            array = segment.array(f"stats/labels/{name}")
            where = f"{self.storage.name}: version {self.version}, {array.prefix}"
            if array.spec.dtype != "float64" or len(array.spec.shape) != 2 or array.spec.shape[0] != len(BLOCK_SIZES):
                raise FormatError(f"{where} is {array.spec.dtype} {array.spec.shape}, expected float64 (13, k)")
            try:
                found.append(LabelStatistics.from_arrays(array.read_all(), array.spec.attributes))
                found[-1].check(schema.dtype, schema.shape, segment.rows)
            except ValueError as error:
                raise FormatError(f"{where}: {error}") from None
        return merge(found) if found else None

    def lengths(self, rows: Ints) -> Ints:
        """Entries of each of the given rows, in any order, from their offsets alone."""
        found = np.zeros(len(rows), np.int64)
        for number, group in self._by_segment(rows):
            segment = self.segment(number)
            found[group] = segment.offsets.locate(rows[group] - segment.start)[1]
        return found

    def check_holds(self, dtype: np.dtype[Any]) -> None:
        """See that no value changes in a dtype of integers, as far as the dtypes tell in which segments store them.

        Raises
        ------
        ValueError
            Where one may: it would wrap around, or lose its fraction.
        """
        if dtype.kind not in "iu" or np.can_cast(self.dtype, dtype, "safe"):
            return
        for number, line in enumerate(self.lines):
            if not line.nnz:
                continue
            segment = self.segment(number)
            stored = np.dtype(segment.document.data_dtype)
            fits = np.can_cast(stored, dtype, "safe")
            if segment.constant is not None:
                fits = cast(np.array([segment.constant], stored), dtype)[1] is None
            if not fits:
                raise ValueError(
                    f"dtype is {dtype}, and rows {segment.start} to {segment.start + line.rows - 1} of "
                    f"{self.storage.name} are stored as {stored}, which may have values that {dtype} lacks: take "
                    f"another, such as {self.dtype}"
                )

    @property
    def stored_itemsize(self) -> float:
        """Bytes that an entry takes on disk, by the newest segment; before compression."""
        if not self.lines:
            return 0.0
        document = self.segment(len(self.lines) - 1).document
        width = np.dtype(document.indices_dtype).itemsize
        return float(width if document.constant else width + np.dtype(document.data_dtype).itemsize)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all entries as they are stored, before compression, by the newest segment."""
        return int(self.stored_itemsize * self.manifest.nnz)

    def objects(self, number: int) -> list[ObjectEntry]:
        """All objects of a segment with keys in the storage, segment.json included."""
        line = self.lines[number]
        key = f"segments/{line.id}/segment.json"
        segment = self._open(number, check_lengths=False)
        return [ObjectEntry(key, self.storage.length(key), line.crc32c), *segment.entries.values()]

    def close(self) -> None:
        """Forget all open segments. Arrays handed out stay valid: a map goes with its last user."""
        with self._lock():
            self._segments.clear()


def check_rows(rows: Rows, where: str) -> None:
    """Raise CorruptStoreError where rows read from disk are no canonical CSR matrix."""
    try:
        csr.check(rows, canonical=True)
    except ValueError as error:
        raise CorruptStoreError(f"{where}: {error}") from None
