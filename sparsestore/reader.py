"""One pinned version of a store: finds rows on disk, checks their bytes, copies them out.

Uncompressed segments are memory-mapped and rows gathered straight from the map; compressed ones are decoded chunk by
chunk, each once a call. Nothing here depends on the order in which rows are asked for, but ascending is fastest.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore import csr
from sparsestore.arrays import ArrayReader
from sparsestore.checksum import PIECE, crc32c
from sparsestore.csr import Rows, empty_aligned, index_dtype
from sparsestore.errors import CorruptStoreError, FormatError
from sparsestore.format import ArraySpec, ColumnSchema, Manifest, ObjectEntry, SegmentDocument, SegmentLine, parse_json
from sparsestore.manifest import segment_lines
from sparsestore.statistics import LabelStatistics, merge
from sparsestore.storage import LocalStorage

__all__ = ["CHECKS", "Located", "Reader"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

CHECKS = ("first", "always", "never")
ROW_ID = "row_id"
_ANCHOR = 1024


class _Offsets:
    """Where rows start in `indices`, at about one byte a row.

    Row lengths in the smallest dtype that holds the longest, and an absolute offset every 1,024 rows. Filled a chunk of
    indptr at a time, when rows of it are first asked for.
    """

    def __init__(self, indptr: ArrayReader, rows: int, longest: int, nnz: int) -> None:
        self._indptr = indptr
        self._rows = rows
        self._nnz = nnz
        self._longest = longest
        dtype = next((d for d in (np.uint8, np.uint16, np.uint32) if longest <= np.iinfo(d).max), np.uint64)
        self.lengths: Array = np.zeros(rows, dtype)
        self.anchors = np.zeros(-(-rows // _ANCHOR), np.int64)
        self._loaded = np.zeros(-(-rows // indptr.spec.chunk), bool)
        self._lock = threading.Lock()

    def load(self, rows: Ints) -> None:
        """Make sure of the lengths and anchors of these rows."""
        chunk = self._indptr.spec.chunk
        if self._loaded.all():
            return
        with self._lock:
            touched = np.zeros(len(self._loaded), bool)
            touched[rows // chunk] = True
            wanted = np.flatnonzero(touched & ~self._loaded)
            # runs of neighbours, not too long: decoding is 8 bytes a row
            for run in np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1):
                for start in range(0, len(run), 16):
                    self._load(int(run[start]), int(run[min(start + 16, len(run)) - 1]) + 1)

    def _load(self, first: int, last: int) -> None:
        """Chunks first to last; one more chunk tells where the last row of them ends."""
        spec = self._indptr.spec
        start, stop = first * spec.chunk, min(last * spec.chunk, self._rows)
        numbers = np.arange(first, min(last + 1, spec.n_chunks))
        indptr = self._indptr.chunks(numbers)[: stop - start + 1]
        steps = np.diff(indptr)
        bad = (start == 0 and indptr[0] != 0) or (stop == self._rows and indptr[-1] != self._nnz)
        bad |= int(indptr.min()) < 0 or int(indptr.max()) > self._nnz  # or a difference could wrap around
        if bad or (len(steps) and (steps.min() < 0 or steps.max() > self._longest)):
            raise CorruptStoreError(
                f"{self._indptr.storage.name}: {self._indptr.prefix}, elements {start} to {stop + 1}: the offsets are "
                f"no ascending sequence from 0 to {self._nnz} in steps of at most {self._longest}"
            )
        self.lengths[start:stop] = steps
        self.anchors[-(-start // _ANCHOR) : -(-stop // _ANCHOR)] = indptr[-start % _ANCHOR : stop - start : _ANCHOR]
        self._loaded[first:last] = True

    def locate(self, rows: Ints) -> tuple[NDArray[np.uint64], Ints]:
        """Start and length of each row."""
        from sparsestore.kernels import gather

        self.load(rows)
        starts, lengths = np.empty(len(rows), np.uint64), np.empty(len(rows), np.int64)
        gather.locate(rows, self.lengths, self.anchors, starts, lengths)
        return starts, lengths


class _Segment:
    """One immutable segment, opened when it is first used."""

    def __init__(self, reader: Reader, line: SegmentLine, start: int, *, check_lengths: bool = True) -> None:
        self.id = line.id
        self.start = start
        self.prefix = f"segments/{line.id}"
        self._reader = reader
        self._storage = reader.storage
        self._lock = threading.RLock()
        self._arrays: dict[str, ArrayReader] = {}
        key = f"{self.prefix}/segment.json"
        payload = self._read(key)
        if crc32c(payload) != line.crc32c:
            raise self._damaged(key, 0, len(payload), "the bytes do not match their crc32c in the manifest")
        name = f"{self._storage.name}: {key}"
        self.document = SegmentDocument.from_document(parse_json(payload, name), name)
        if (self.document.rows, self.document.nnz) != (line.rows, line.nnz):
            raise self._damaged(key, 0, len(payload), f"rows and nnz are not the manifest's {(line.rows, line.nnz)}")
        self.rows, self.nnz = line.rows, line.nnz
        self.entries: Mapping[str, ObjectEntry] = {
            f"{self.prefix}/{entry.key}": ObjectEntry(f"{self.prefix}/{entry.key}", entry.length, entry.crc32c)
            for entry in self.document.objects
        }
        if check_lengths and reader.check != "never":
            self._check_lengths()
        self.offsets = _Offsets(self.array("X/indptr"), self.rows, self.document.longest_row, self.nnz)
        self.indices = self.array("X/indices")
        data = self.spec("X/data")
        if self.document.constant:
            self.data: ArrayReader | None = None
            self.constant = data.fill_value
        else:
            self.data, self.constant = self.array("X/data"), None
        expected = {"X/indptr": self.rows + 1, "X/indices": self.nnz, "X/data": self.nnz}
        for path, n in expected.items():
            if self.spec(path).shape != (n,):
                raise self._damaged(f"{self.prefix}/{path}/zarr.json", 0, 0, f"the shape is not ({n},)")
        self.mapped = self.document.profile == "raw" and reader.mmap

    def _read(self, key: str) -> bytes:
        try:
            return self._storage.read(key)
        except FileNotFoundError:
            raise self._damaged(key, 0, 0, "the object is missing") from None

    def _damaged(self, key: str, start: int, stop: int, reason: str) -> CorruptStoreError:
        rows = f"rows {self.start} to {self.start + getattr(self, 'rows', 0)}"
        return CorruptStoreError(
            f"{self._storage.name}: version {self._reader.version}, {key}, bytes {start} to {stop} ({rows}): {reason}"
        )

    def _check_lengths(self) -> None:
        for entry in self.entries.values():
            try:
                found = self._storage.length(entry.key)
            except FileNotFoundError:
                raise self._damaged(entry.key, 0, entry.length, "the object is missing") from None
            if found != entry.length:
                raise self._damaged(entry.key, 0, found, f"it has {found} bytes, expected {entry.length}")

    def has(self, path: str) -> bool:
        """Whether the segment has an array."""
        return f"{self.prefix}/{path}/zarr.json" in self.entries

    def _document_of(self, path: str) -> dict[str, Any]:
        key = f"{self.prefix}/{path}/zarr.json"
        entry = self.entries.get(key)
        if entry is None:
            raise self._damaged(key, 0, 0, "segment.json does not name it")
        payload = self._read(key)
        if self._reader.check != "never" and crc32c(payload) != entry.crc32c:
            raise self._damaged(key, 0, len(payload), "the bytes do not match their crc32c")
        return parse_json(payload, f"{self._storage.name}: {key}")

    def spec(self, path: str) -> ArraySpec:
        """Description of an array."""
        with self._lock:
            if path in self._arrays:
                return self._arrays[path].spec
        return ArraySpec.from_document(self._document_of(path), f"{self._storage.name}: {self.prefix}/{path}/zarr.json")

    def array(self, path: str) -> ArrayReader:
        """Reader of an array, made once."""
        with self._lock:
            if path not in self._arrays:
                whole = path.startswith(("stats/", "checksums/"))
                self._arrays[path] = ArrayReader(
                    self._storage,
                    f"{self.prefix}/{path}",
                    self.spec(path),
                    self.entries,
                    None if whole else (lambda: np.asarray(self.array(f"checksums/{path}").read_all())),
                    self._reader.check,
                    lambda first, last: self._rows_of(path, first, last),
                )
            return self._arrays[path]

    def _rows_of(self, path: str, first: int, last: int) -> str:
        """Which rows of the store elements of an array belong to, for messages: as narrow as undamaged offsets tell."""
        if path in ("X/indices", "X/data"):
            try:
                self.offsets.load(np.arange(0, self.rows, self.offsets._indptr.spec.chunk))
                ends = np.cumsum(self.offsets.lengths, dtype=np.int64)
                first, last = (int(np.searchsorted(ends, at, side="right")) for at in (first, max(first, last - 1)))
                last += 1
            except CorruptStoreError:
                first, last = 0, self.rows
        elif not path.startswith(("columns/", "X/indptr")):
            first, last = 0, self.rows
        first, last = min(first, self.rows), min(last, self.rows)
        return f"version {self._reader.version}, rows {self.start + first} to {self.start + last}"

    def parts(self, starts: NDArray[np.uint64], lengths: Ints) -> tuple[Array, Array | None, NDArray[np.uint64]]:
        """Arrays that hold these entries, checked, and where each row starts in them.

        Returns (indices, data or None where constant, starts).
        """
        if self.nnz == 0 or not len(starts):
            return np.empty(0, np.int32), np.empty(0, np.float32), np.zeros(len(starts), np.uint64)
        begin = starts.astype(np.int64)
        first, last = _runs(begin, begin + lengths)
        arrays = [self.indices] if self.data is None else [self.indices, self.data]
        if int(last.max(initial=0)) > self.nnz:
            raise self._damaged(f"{self.prefix}/X/indptr", 0, 0, f"rows end at entry {int(last.max())} of {self.nnz}")
        if self.mapped:
            for array in arrays:
                array.verify(first, last)
            data = self.data.elements() if self.data is not None else None
            return self.indices.elements(), data, starts
        found = [_loaded(array, first, last, begin) for array in arrays]
        if any(not np.array_equal(found[0][1], other[1]) for other in found[1:]):
            # indices and data were read in units of different lengths: bring both to the rows' own order
            found = [(_compact(values, at, lengths), _own_starts(lengths)) for values, at in found]
        return found[0][0], found[1][0] if len(found) > 1 else None, found[0][1].astype(np.uint64)


def _own_starts(lengths: Ints) -> Ints:
    return np.cumsum(lengths) - lengths


def _compact(values: Array, starts: Ints, lengths: Ints) -> Array:
    from sparsestore.kernels import gather

    out = np.empty(int(lengths.sum()), values.dtype)
    gather.gather_indices(values, starts.astype(np.uint64), lengths, _own_starts(lengths), out)
    return out


def _runs(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Merge the entries of rows that follow each other; ascending by their start."""
    if len(begin) > 1 and not bool((begin[1:] >= begin[:-1]).all()):
        order = np.argsort(begin, kind="stable")
        begin, end = begin[order], end[order]
    new = np.flatnonzero(begin[1:] != end[:-1]) + 1
    first = begin[np.concatenate([np.zeros(1, np.int64), new])]
    last = end[np.concatenate([new - 1, np.array([len(end) - 1])])]
    keep = last > first
    return first[keep], last[keep]


def _loaded(array: ArrayReader, first: Ints, last: Ints, begin: Ints) -> tuple[Array, Ints]:
    """Read the units that hold entries first[i] to last[i] into memory; where entries `begin` stand in that."""
    spec = array.spec
    raw = spec.codec.name == "none"
    unit = max(PIECE // spec.itemsize, 1) if raw else spec.chunk
    low, high = first // unit, -(-last // unit)
    low[1:] = np.maximum(low[1:], high[:-1])
    counts = np.maximum(high - low, 0)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    units = np.arange(total, dtype=np.int64) + np.repeat(low - (ends - counts), counts)
    if raw:
        values: Array = array.pieces(units).view(spec.dtype)
    else:
        values = array.chunks(units)
    if not total:
        return values, np.zeros(len(begin), np.int64)
    # an empty row may start in a unit that was not read: any place will do for it
    slot = np.minimum(np.searchsorted(units, begin // unit), total - 1)
    return values, np.maximum(slot * unit + begin % unit, 0)


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
            if not len(part.indices):
                continue
            if part.data is None:
                gather.gather_indices(part.indices, starts[group], lengths[group], targets[group], indices)
                if self._part_of is None:
                    data.fill(part.constant)
                else:
                    gather.fill(part.constant, lengths[group], targets[group], data)
            else:
                gather.gather(part.indices, part.data, starts[group], lengths[group], targets[group], indices, data)
        if total and int(indices.view(f"u{indices.dtype.itemsize}").max()) >= self._width:
            raise CorruptStoreError(
                f"{self._where}: feature number {int(indices.max())} or a negative one, expected 0 to {self._width - 1}"
            )
        return Rows(indptr, indices, data, self._width)


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
        Map uncompressed segments. False reads them with preadv: slower, but safe where files may be cut short from
        outside while they are open.
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
        self._segments: dict[int, _Segment] = {}
        self._lock = threading.Lock()

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

    def segment(self, number: int) -> _Segment:
        """A segment, opened when it is first asked for."""
        with self._lock:
            if number not in self._segments:
                self._segments[number] = _Segment(self, self.lines[number], int(self.segment_starts[number]))
            return self._segments[number]

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
        """Find rows by number, check their bytes, and ask the kernel for them; copies nothing that can be mapped.

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
        dtype = object if schema.dtype == "string" else np.dtype(schema.dtype)
        out: Array = np.empty((len(rows), *schema.shape), dtype)
        mask: NDArray[np.bool_] | None = None
        for number, group in self._by_segment(rows):
            segment = self.segment(number)
            local = rows[group] - segment.start
            if name == ROW_ID and not segment.has(f"columns/{name}"):
                out[group] = local + segment.document.row_id_start
                continue
            array = segment.array(f"columns/{name}")
            if (array.spec.dtype, array.spec.shape) != (schema.dtype, (segment.rows, *schema.shape)):
                raise FormatError(
                    f"{self.storage.name}: column {name!r} is {array.spec.dtype} {array.spec.shape} in segment "
                    f"{segment.id}, expected {schema.dtype} {(segment.rows, *schema.shape)}"
                )
            values = array.take(local)
            out[group] = values + segment.document.row_id_start if name == ROW_ID else values
            if segment.has(f"columns/{name}.mask"):
                mask = np.zeros(len(rows), bool) if mask is None else mask
                mask[group] = segment.array(f"columns/{name}.mask").take(local)
        return out if mask is None else np.ma.MaskedArray(out, mask)

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
        segment = _Segment(self, line, int(self.segment_starts[number]), check_lengths=False)
        return [ObjectEntry(key, self.storage.length(key), line.crc32c), *segment.entries.values()]

    def row_counts(self, number: int) -> NDArray[np.uint64]:
        """Entries in each block of 256 rows of a segment."""
        return np.asarray(self.segment(number).array("stats/nnz").read_all())

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
