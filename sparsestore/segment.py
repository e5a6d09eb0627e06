"""One immutable segment, opened: where its rows start, and their entries checked, mapped or decoded."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.arrays import ArrayReader
from sparsestore.buffers import Buffers
from sparsestore.checksum import PIECE, crc32c
from sparsestore.documents import parse_json
from sparsestore.errors import CorruptStoreError
from sparsestore.forking import Lock
from sparsestore.format import ObjectEntry, SegmentDocument, SegmentLine, manifest_key
from sparsestore.kernels import gather
from sparsestore.kernels import offsets as kernels
from sparsestore.manifest import latest_version
from sparsestore.storage import Advice, LocalStorage
from sparsestore.zarr_format import ArraySpec

__all__ = ["RowOffsets", "Segment"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

_ANCHOR = 1024
_FEW_UNITS = 16  # that are kept whole, whatever share of them is wanted
_READ_BYTES = 8 << 20  # read or decoded at once where rows lie far apart


class RowOffsets:
    """Where rows start in `indices`, at about one byte a row.

    Row lengths in the smallest dtype that holds the longest, and an absolute offset every 1,024 rows. Filled a chunk of
    indptr at a time, when rows of it are first asked for; each chunk is decoded once.
    """

    def __init__(self, indptr: ArrayReader, rows: int, longest: int, nnz: int) -> None:
        if indptr.spec.dtype != "int64":
            raise CorruptStoreError(f"{indptr.storage.name}: {indptr.prefix} has {indptr.spec.dtype}, expected int64")
        self._indptr = indptr
        self._rows = rows
        self._nnz = nnz
        self._longest = longest
        dtype = next((d for d in (np.uint8, np.uint16, np.uint32) if longest <= np.iinfo(d).max), np.uint64)
        self.lengths: Array = np.zeros(rows, dtype)
        self.anchors = np.zeros(-(-rows // _ANCHOR), np.int64)
        self._loaded = np.zeros(indptr.spec.n_chunks, bool)
        self._all = False
        # of each chunk that was loaded: the row before the first ends there, and the last one starts there
        self._firsts, self._lasts = np.zeros((2, indptr.spec.n_chunks), np.int64)
        self._lock = Lock()

    def load(self, rows: Ints) -> None:
        """Make sure of the lengths of these rows, of those before them up to an anchor, and of that."""
        if self._all:
            return
        chunk, n = self._indptr.spec.chunk, len(self._loaded)
        # `locate` adds up lengths from the anchor on: that chunk, the one in which the row ends, and all between
        first, last = (rows & -_ANCHOR) // chunk, (rows + 1) // chunk
        touched = np.cumsum(np.bincount(first, minlength=n + 1) - np.bincount(last + 1, minlength=n + 1))[:n] > 0
        with self._lock():
            for number, offsets in self._indptr.each_chunk(np.flatnonzero(touched & ~self._loaded)):
                self._load(number, offsets)
            self._all = bool(self._loaded.all())

    def _load(self, number: int, offsets: Ints) -> None:
        """Take in one chunk."""
        from sparsestore.kernels import offsets as kernels

        start = number * len(offsets)
        offsets = offsets[: self._rows + 1 - start]
        stop = start + len(offsets)
        sound = not (start == 0 and offsets[0] != 0) and not (stop > self._rows and offsets[-1] != self._nnz)
        if not sound or not kernels.narrow(offsets, self._longest, self._nnz, self.lengths[start : stop - 1]):
            raise self._damaged(start, stop)
        self.anchors[-(-start // _ANCHOR) : -(-min(stop, self._rows) // _ANCHOR)] = offsets[
            -start % _ANCHOR : self._rows - start : _ANCHOR
        ]
        self._firsts[number], self._lasts[number] = offsets[0], offsets[-1]
        # the row across a border is known when both sides are
        if number and self._loaded[number - 1]:
            self._join(number - 1)
        if number + 1 < len(self._loaded) and self._loaded[number + 1]:
            self._join(number)
        self._loaded[number] = True

    def _join(self, number: int) -> None:
        """Length of the last row of a chunk."""
        end = (number + 1) * self._indptr.spec.chunk
        length = int(self._firsts[number + 1] - self._lasts[number])
        if not 0 <= length <= self._longest:
            raise self._damaged(end - 1, end + 1)
        self.lengths[end - 1] = length

    def _damaged(self, start: int, stop: int) -> CorruptStoreError:
        return CorruptStoreError(
            f"{self._indptr.storage.name}: {self._indptr.prefix}, elements {start} to {stop}: the offsets are "
            f"no ascending sequence from 0 to {self._nnz} in steps of at most {self._longest}"
        )

    def locate(self, rows: Ints) -> tuple[NDArray[np.uint64], Ints]:
        """Start and length of each row."""
        self.load(rows)
        starts, lengths = np.empty(len(rows), np.uint64), np.empty(len(rows), np.int64)
        gather.locate(rows, self.lengths, self.anchors, starts, lengths)
        return starts, lengths


class Segment:
    """One immutable segment, opened when it is first used."""

    def __init__(
        self,
        storage: LocalStorage,
        line: SegmentLine,
        start: int,
        *,
        version: int,
        n_features: int,
        check: str = "first",
        mmap: bool = True,
        check_lengths: bool = True,
    ) -> None:
        self.id = line.id
        self.start = start
        self.prefix = f"segments/{line.id}"
        self._storage = storage
        self._version = version
        self._n_features = n_features
        self._mmap = mmap
        self.rows, self.nnz = line.rows, line.nnz
        self._check = check
        self._lock = Lock()
        self._arrays: dict[str, ArrayReader] = {}
        key = f"{self.prefix}/segment.json"
        payload = self._read(key)
        if crc32c(payload) != line.crc32c:
            raise self._damaged(key, 0, len(payload), "the bytes do not match their crc32c in the manifest")
        name = f"{self._storage.name}: {key}"
        self.document = SegmentDocument.from_document(parse_json(payload, name), name)
        if (self.document.rows, self.document.nnz) != (line.rows, line.nnz):
            raise self._damaged(key, 0, len(payload), f"rows and nnz are not the manifest's {(line.rows, line.nnz)}")
        self.entries: Mapping[str, ObjectEntry] = {
            f"{self.prefix}/{entry.key}": ObjectEntry(f"{self.prefix}/{entry.key}", entry.length, entry.crc32c)
            for entry in self.document.objects
        }
        if check_lengths and check != "never":
            self._check_lengths()
        self._check_facts(key, len(payload))
        self.offsets = RowOffsets(self.array("X/indptr"), self.rows, self.document.longest_row, self.nnz)
        self.indices = self.array("X/indices")
        if self.document.constant:
            self.data: ArrayReader | None = None
            self.constant = self.spec("X/data").fill_value
        else:
            self.data, self.constant = self.array("X/data"), None
        self.mapped = self.document.profile == "raw" and mmap

    def _check_facts(self, key: str, length: int) -> None:
        """What segment.json and the arrays of the matrix say must agree: memory is made, and entries found, by it."""
        found = self.document
        wrong = None
        if found.n_features > self._n_features:
            wrong = f"n_features is {found.n_features}, expected at most the store's {self._n_features}"
        elif not found.longest_row <= min(found.nnz, found.n_features) or found.nnz > self.rows * found.longest_row:
            wrong = f"longest_row is {found.longest_row}, with {found.nnz} entries of {found.n_features} features"
        if wrong:
            raise self._damaged(key, 0, length, wrong)
        raw = found.profile == "raw"
        expected = {
            "X/indptr": ("int64", self.rows + 1, False),
            "X/indices": (found.indices_dtype, self.nnz, raw),
            "X/data": (found.data_dtype, self.nnz, raw or found.constant),
        }
        for path, (dtype, n, plain) in expected.items():
            spec = self.spec(path)
            wrong = spec.border_problem if plain else None
            if (spec.dtype, spec.shape, spec.codec.name == "none") != (dtype, (n,), plain):
                wrong = (
                    f"{spec.dtype} {spec.shape}, codec {spec.codec.name}, expected {dtype} ({n},), "
                    f"{'not compressed' if plain else 'compressed'}"
                )
            if wrong:
                raise self._damaged(f"{self.prefix}/{path}/zarr.json", 0, 0, wrong)

    def _read(self, key: str) -> bytes:
        try:
            return self._storage.read(key)
        except FileNotFoundError:
            raise self._damaged(key, 0, 0, self._why_missing()) from None
        except CorruptStoreError as error:
            raise self._damaged(key, 0, 0, str(error)) from None

    def _why_missing(self) -> str:
        """What is to be said of an object that is not there."""
        if self._storage.exists(manifest_key(self._version)):
            return "the object is missing"
        newest = latest_version(self._storage)
        if newest is None:
            return "the object is missing, and so are all versions: the store was removed"
        return (
            f"the object is missing, and so is version {self._version}: gc removed it while it was open. Open the "
            f"store again, its newest version is {newest}; gc(keep_versions=...) keeps those that are in use"
        )

    def _damaged(self, key: str, start: int, stop: int, reason: str) -> CorruptStoreError:
        rows = f"rows {self.start} to {self.start + self.rows}"
        return CorruptStoreError(
            f"{self._storage.name}: version {self._version}, {key}, bytes {start} to {stop} ({rows}): {reason}"
        )

    def _check_lengths(self) -> None:
        lengths = self._storage.lengths(self.entries)
        for entry in self.entries.values():
            if lengths.get(entry.key) == entry.length:
                continue
            try:
                found = self._storage.length(entry.key)
            except FileNotFoundError:
                raise self._damaged(entry.key, 0, entry.length, self._why_missing()) from None
            except CorruptStoreError as error:
                raise self._damaged(entry.key, 0, entry.length, str(error)) from None
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
        if self._check != "never" and crc32c(payload) != entry.crc32c:
            raise self._damaged(key, 0, len(payload), "the bytes do not match their crc32c")
        return parse_json(payload, f"{self._storage.name}: {key}")

    def spec(self, path: str) -> ArraySpec:
        """Description of an array."""
        with self._lock():
            if path in self._arrays:
                return self._arrays[path].spec
        return ArraySpec.from_document(self._document_of(path), f"{self._storage.name}: {self.prefix}/{path}/zarr.json")

    def array(self, path: str) -> ArrayReader:
        """Reader of an array, made once."""
        with self._lock():
            if path not in self._arrays:
                whole = path.startswith(("stats/", "checksums/"))
                spec = self.spec(path)
                if path.startswith("columns/") and spec.codec.name == "none":
                    # its checksums would be of pieces of 16 KiB, which nobody looks at here
                    raise self._damaged(f"{self.prefix}/{path}/zarr.json", 0, 0, "a column is always compressed")
                self._arrays[path] = ArrayReader(
                    self._storage,
                    f"{self.prefix}/{path}",
                    spec,
                    self.entries,
                    None if whole else (lambda: np.asarray(self.array(f"checksums/{path}").read_all())),
                    self._check,
                    lambda first, last: self._rows_of(path, first, last),
                    self._n_features if path == "X/indices" else None,
                    self._mmap,
                    self._why_missing,
                )
            return self._arrays[path]

    def _rows_of(self, path: str, first: int, last: int) -> str:
        """Which rows of the store elements of an array belong to, for messages: as narrow as undamaged offsets tell."""
        if path in ("X/indices", "X/data"):
            try:
                self.offsets.load(np.append(np.arange(0, self.rows, self.offsets._indptr.spec.chunk), self.rows - 1))
                ends = np.cumsum(self.offsets.lengths, dtype=np.int64)
                first, last = (int(np.searchsorted(ends, at, side="right")) for at in (first, max(first, last - 1)))
                last += 1
            except CorruptStoreError:
                first, last = 0, self.rows
        elif not path.startswith(("columns/", "X/indptr")):
            first, last = 0, self.rows
        first, last = min(first, self.rows), min(last, self.rows)
        return f"version {self._version}, rows {self.start + first} to {self.start + last}"

    def parts(
        self, starts: NDArray[np.uint64], lengths: Ints, buffers: Buffers | None = None, *, direct: bool = False
    ) -> tuple[Array, Array | None, NDArray[np.uint64]]:
        """Arrays that hold these entries, checked (feature numbers too), and where each row starts in them.

        Returns (indices, data or None where constant, starts). With `buffers` the arrays are never those of the map:
        the entries are read, with `direct` around the page cache, or decoded, into memory of these.
        """
        if self.nnz == 0 or not len(starts):
            return np.empty(0, np.int32), np.empty(0, np.float32), np.zeros(len(starts), np.uint64)
        arrays = [self.indices] if self.data is None else [self.indices, self.data]
        if self.mapped and buffers is None:
            for array in arrays:
                array.verify(starts, lengths)
            data = self.data.elements() if self.data is not None else None
            return self.indices.elements(), data, starts
        found = [self._loaded(array, starts, lengths, buffers, direct) for array in arrays]
        if any(not np.array_equal(found[0][1], other[1]) for other in found[1:]):
            # indices and data were read in units of different lengths: bring both to the rows' own order
            found = [(_compact(values, at, lengths), _own_starts(lengths)) for values, at in found]
        return found[0][0], found[1][0] if len(found) > 1 else None, found[0][1]

    @property
    def itemsize(self) -> int:
        """Bytes that an entry takes as it is stored, before compression."""
        return self.indices.spec.itemsize + (self.data.spec.itemsize if self.data is not None else 0)

    def advise(self, starts: NDArray[np.uint64], lengths: Ints, advice: Advice) -> None:
        """Tell the system what will be done with these entries, where they are mapped; ascending."""
        if self.mapped and self.nnz and len(starts):
            for array in [self.indices] if self.data is None else [self.indices, self.data]:
                array.advise(starts, lengths, advice)

    def _loaded(
        self, array: ArrayReader, starts: NDArray[np.uint64], lengths: Ints, buffers: Buffers | None, direct: bool
    ) -> tuple[Array, NDArray[np.uint64]]:
        """Read the units that hold these entries into memory, or them alone; where each row starts in that."""
        unit = self._unit(array)
        units, moved = np.empty(-(-self.nnz // unit), np.int64), np.empty(len(starts), np.uint64)
        n = kernels.place(starts, lengths, unit, self.nnz, units, moved)
        if n == -1:
            order = np.argsort(starts, kind="stable")
            values, placed = self._loaded(array, starts[order], lengths[order], buffers, direct)
            moved[order] = placed
            return values, moved
        if n < 0:
            raise self._damaged(f"{self.prefix}/X/indptr", 0, 0, f"rows end past entry {self.nnz}, the last one")
        if n > _FEW_UNITS and n * unit > 2 * int(lengths.sum()):
            return self._gathered(array, units[:n], moved, lengths, buffers, direct), _own_starts(lengths)
        return self._read_units(array, units[:n], buffers, direct), moved

    def _gathered(
        self,
        array: ArrayReader,
        units: Ints,
        starts: NDArray[np.uint64],
        lengths: Ints,
        buffers: Buffers | None,
        direct: bool,
    ) -> Array:
        """Entries of rows alone, of units most of which is others': read some MiB at a time.

        `starts` ascend, but for empty rows, and count from the first of these units, laid end to end.
        """
        dtype, unit = array.spec.dtype, self._unit(array)
        filled = np.flatnonzero(lengths)
        starts, lengths = starts[filled].astype(np.int64), lengths[filled]
        firsts, lasts = starts // unit, (starts + lengths - 1) // unit
        n = int(lengths.sum())
        out: Array = np.empty(n, dtype) if buffers is None else buffers.empty(n, dtype)
        targets, bits = _own_starts(lengths), f"u{array.spec.itemsize}"  # so that one compiled loop does for all dtypes
        most = max(_READ_BYTES // (unit * array.spec.itemsize), 1)
        cuts = np.unique(np.searchsorted(firsts, np.arange(0, len(units), most)))
        for a, b in pairwise([*cuts[cuts < len(firsts)].tolist(), len(firsts)]):
            low, high = int(firsts[a]), int(lasts[b - 1]) + 1
            values = self._read_units(array, units[low:high], buffers, direct).view(bits)
            local = (starts[a:b] - low * unit).astype(np.uint64)
            gather.gather_indices(values, local, lengths[a:b], targets[a:b], out.view(bits))
            del values  # before the next ones are read
        return out

    def _unit(self, array: ArrayReader) -> int:
        """Entries of an array that are read together."""
        # of raw arrays the same elements are read, whatever they take: else their rows would begin at different places
        return PIECE // self._narrowest if array.spec.codec.name == "none" else array.spec.chunk

    def _read_units(self, array: ArrayReader, units: Ints, buffers: Buffers | None, direct: bool) -> Array:
        """Units of an array, end to end."""
        spec = array.spec
        if spec.codec.name == "none":
            each = spec.itemsize // self._narrowest
            pieces = (units[:, None] * each + np.arange(each)).reshape(-1)
            pieces = pieces[pieces < array.n_pieces]  # the last unit may be cut short
            out = None if buffers is None else buffers.empty(len(pieces) * PIECE, np.uint8)
            return array.pieces(pieces, out, direct=direct).view(spec.dtype)
        out = None if buffers is None else buffers.empty(len(units) * spec.chunk, spec.dtype)
        return array.chunks(units, out)

    @property
    def _narrowest(self) -> int:
        """Bytes of an element of indices or data, whichever are less."""
        return min(array.spec.itemsize for array in (self.indices, self.data) if array is not None)


def _own_starts(lengths: Ints) -> NDArray[np.uint64]:
    return (np.cumsum(lengths) - lengths).astype(np.uint64)


def _compact(values: Array, starts: NDArray[np.uint64], lengths: Ints) -> Array:
    out = np.empty(int(lengths.sum()), values.dtype)
    gather.gather_indices(values, starts, lengths, _own_starts(lengths), out)
    return out
