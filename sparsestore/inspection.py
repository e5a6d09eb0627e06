"""One segment under `verify`: its objects read and looked at, part by part. `audit` says in which parts, and judges.

Bytes are read, never mapped: a sector that the disk can not give, or a file that is cut short meanwhile, is a problem
to be listed, where a map would end the process. To read what is in memory already is also faster than to map it anew.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsestore.arrays import ArrayReader, decode, size_problem
from sparsestore.audit import (
    Expected,
    Fault,
    Problem,
    ShardFacts,
    Unit,
    arrays_of,
    cut_chunks,
    cut_pieces,
    damage,
    expectations,
    runs,
    spec_problem,
)
from sparsestore.checksum import PIECE, crc32c
from sparsestore.documents import parse_json
from sparsestore.errors import CorruptStoreError, SparsestoreError
from sparsestore.format import ROW_ID, ColumnSchema, ObjectEntry, SegmentDocument, SegmentLine
from sparsestore.kernels import frames, survey
from sparsestore.row_starts import Blocks, RowStarts
from sparsestore.statistics import COUNT_ROWS, LabelStatistics
from sparsestore.storage import LocalStorage
from sparsestore.zarr_format import ArraySpec

__all__ = ["Found", "Place", "Rooms", "SegmentCheck", "ShardCheck", "reason_of", "whole_object"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

_PIECES_BYTES = 8 << 20  # of an uncompressed array that a thread looks at in one go
_SWEPT_BYTES = 1 << 19  # of these read at once: they are still in the core's own cache when they are looked at
_HELD_BYTES = 4 << 20  # the same, where something is wrong, or files are read around the page cache
_CHUNKS_BYTES = 1 << 20  # of a compressed one, decoded, unless a chunk is longer: they stay in the processor's cache
_STRING_BYTES = 64  # of a string, about, as an object of Python
_ROW_IDS = f"columns/{ROW_ID}"
_OFFSETS = 1 << 16  # rows whose offsets are looked at together where these are not compressed


class Place(NamedTuple):
    """A segment in a version.

    Attributes
    ----------
    version : int
    line : SegmentLine
    start : int or None
        Its first row in the store; None where damage before it hides that.
    n_features : int
        Of the store.
    columns : mapping of str to ColumnSchema
    """

    version: int
    line: SegmentLine
    start: int | None
    n_features: int
    columns: Mapping[str, ColumnSchema]


def reason_of(error: Exception) -> str:
    """What an exception says of an object whose name stands before it; raised again where it says nothing of that."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error
    if isinstance(error, FileNotFoundError) and not isinstance(error, SparsestoreError):
        return "the object is missing"
    if isinstance(error, SparsestoreError):
        return str(error)
    return f"it can not be read: {getattr(error, 'strerror', None) or error}"


def whole_object(task: tuple[SegmentCheck, ObjectEntry]) -> tuple[SegmentCheck, ObjectEntry, bytes | None, str]:
    """Compare an object with its crc32c; the bytes of documents."""
    segment, entry = task
    key = f"{segment.prefix}/{entry.key}"
    payload = None
    try:
        if entry.key.endswith(".json"):
            payload = segment.storage.read(key)
            found = crc32c(payload)
        else:
            found = segment.storage.crc32c(key)
    except (SparsestoreError, OSError) as error:
        return segment, entry, None, reason_of(error)
    sound = found == entry.crc32c
    reason = f"the bytes do not match the crc32c of the object (found {found:08x}, expected {entry.crc32c:08x})"
    return segment, entry, payload, "" if sound else reason


class Rooms:
    """Memory that threads read and decode into, used again: fresh memory would cost as much as what is done in it."""

    def __init__(self) -> None:
        self._free: list[Array] = []

    @contextmanager
    def room(self, n_bytes: int) -> Iterator[Array]:
        """(n_bytes,) uint8 array that begins at a page."""
        try:
            room = self._free.pop()
        except IndexError:
            room = np.empty(0, np.uint8)
        if len(room) < n_bytes:
            fresh = np.empty(n_bytes + 4096, np.uint8)
            at = -fresh.ctypes.data % 4096
            room = fresh[at : at + n_bytes]
        try:
            yield room[:n_bytes]
        finally:
            self._free.append(room)


class SegmentCheck:
    """A segment under check.

    Attributes
    ----------
    problems : list of Problem
    """

    def __init__(self, storage: LocalStorage, place: Place, blocks: Blocks | None = None) -> None:
        self.storage = storage
        self._blocks = blocks or Blocks(0)
        self.place = place
        self.prefix = f"segments/{place.line.id}"
        self.document: SegmentDocument
        self.entries: dict[str, ObjectEntry] = {}
        self.payloads: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.lost: set[str] = set()
        self.problems: list[Problem] = []
        self.arrays: dict[str, _Array] = {}
        self.offsets: RowStarts | None = None
        self._covered: set[str] = set()

    def note(
        self,
        key: str,
        start: int,
        stop: int,
        rows: tuple[int, int] | None,
        reason: str,
        place: Place | None = None,
    ) -> None:
        """List a problem; rows are the segment's, all of them where not given. `place` is that in another version."""
        place = place or self.place
        first, last = rows or (0, place.line.rows)
        within = None if place.start is None else (place.start + first, place.start + last)
        key = f"{self.prefix}/{key}"
        self.problems.append(Problem(self.storage.name, place.version, key, start, stop, within, reason))

    def read_document(self, lost: Collection[str] = ()) -> int:
        """Read segment.json, and check it; its length, and 0 where it is damaged, which is listed.

        Objects that are `lost` are not looked at any more.
        """
        key, line = f"{self.prefix}/segment.json", self.place.line
        try:
            payload = self.storage.read(key)
            if crc32c(payload) != line.crc32c:
                raise CorruptStoreError("the bytes do not match their crc32c in the manifest")
            document = SegmentDocument.from_document(parse_json(payload, key), key)
            found = document.rows, document.nnz
            if found != (line.rows, line.nnz):
                raise CorruptStoreError(f"its rows and nnz are {found}, expected {(line.rows, line.nnz)}")
            if document.n_features > self.place.n_features:
                raise CorruptStoreError(_too_wide(document, self.place))
        except (SparsestoreError, OSError) as error:
            self.note("segment.json", 0, 0, None, reason_of(error))
            return 0
        self.document = document
        self.entries = {entry.key: entry for entry in document.objects if entry.key not in lost}
        return len(payload)

    def compare_width(self, other: Place) -> None:
        """Compare the width in segment.json with that of another version, all else of which is that of this one."""
        if self.document.n_features > other.n_features:
            self.note("segment.json", 0, 0, None, _too_wide(self.document, other), other)

    def look_at_lengths(self) -> int:
        """Check that all objects are there with their length; `lost` are those that are not. Bytes of the others."""
        total = 0
        lengths = self.storage.lengths([f"{self.prefix}/{key}" for key in self.entries])
        for entry in self.entries.values():
            if lengths.get(f"{self.prefix}/{entry.key}") == entry.length:
                total += entry.length
                continue
            try:
                length = self.storage.length(f"{self.prefix}/{entry.key}")
                reason = "" if length == entry.length else f"it has {length} bytes, expected {entry.length}"
            except (SparsestoreError, OSError) as error:
                reason = reason_of(error)
            if not reason:
                total += entry.length
                continue
            self.note(entry.key, 0, entry.length, None, reason)
            self.lost.add(entry.key)
        return total

    def plain(self) -> list[ObjectEntry]:
        """Objects that are only compared with their crc32c: documents, checksums, statistics."""
        found = [
            entry
            for key, entry in self.entries.items()
            if key.endswith("zarr.json") or key.startswith(("checksums/", "stats/")) or not _is_shard(key)
        ]
        self._covered |= {entry.key for entry in found}
        return found

    def undescribed(self) -> list[ObjectEntry]:
        """Objects that no sound description of an array covers."""
        return [entry for key, entry in self.entries.items() if key not in self._covered]

    def describe(self) -> None:
        """Read the descriptions of all arrays."""
        named = {entry.key for entry in self.document.objects}
        wanted = expectations(self.document, self.place.columns)
        present = arrays_of(named)
        for path, expected in wanted.items():
            if expected.required and path not in present:
                self.note(f"{path}/zarr.json", 0, 0, None, "segment.json does not name it")
        for path in present:
            key = f"{path}/zarr.json"
            if key not in self.payloads:
                continue  # lost or damaged, and listed
            try:
                spec = ArraySpec.from_document(parse_json(self.payloads[key], key), key)
                unknown = Expected(None, None, True if path.startswith("columns/") else None)
                problem = spec_problem(spec, wanted.get(path, unknown))
            except SparsestoreError as error:
                problem = str(error)
            if problem:
                self.note(key, 0, self.entries[key].length, None, problem)
                continue
            constant = path == "X/data" and self.document.constant
            if not constant and spec.n_shards > len(named):
                reason = f"it declares {spec.n_shards} shards, and segment.json names {len(named)} objects in all"
                self.note(key, 0, self.entries[key].length, None, reason)
                continue
            shards = [f"{path}/{spec.shard_key(number)}" for number in range(0 if constant else spec.n_shards)]
            for shard in shards:
                if shard not in named:
                    self.note(shard, 0, 0, None, "segment.json does not name it")
            impossible = False
            for number, shard in enumerate(shards):
                entry = self.entries.get(shard)
                too_short = size_problem(spec, number, entry.length) if entry is not None else None
                if entry is not None and too_short:
                    self.note(shard, 0, entry.length, None, too_short)
                    impossible = True
            if impossible:  # memory would be made for what there is not
                continue
            self.arrays[path] = _Array(self, path, spec, shards)
        indptr = self.arrays.get("X/indptr")
        if indptr is not None:
            length = _OFFSETS if indptr.raw else indptr.spec.chunk
            self.offsets = RowStarts(self.document.rows, self.document.nnz, length, indptr.offsets, self._blocks)

    def shards(self, *, indptr: bool) -> list[ShardCheck]:
        """Shards of X/indptr, or of all other arrays that have checksums, that are there."""
        found = []
        for path, array in self.arrays.items():
            if (path == "X/indptr") == indptr and not path.startswith(("checksums/", "stats/")):
                found += array.shards
        self._covered |= {shard.entry.key for shard in found}
        return found

    def sound(self, path: str) -> ArrayReader | None:
        """Reader of an array of which all objects are sound: of checksums and statistics."""
        array = self.arrays.get(path)
        if array is None or any(key in self.damaged or key not in self.entries for key in array.keys):
            return None
        entries = {}
        for key in array.keys:
            whole, entry = f"{self.prefix}/{key}", self.entries[key]
            entries[whole] = ObjectEntry(whole, entry.length, entry.crc32c)
        prefix = f"{self.prefix}/{path}"
        return ArrayReader(self.storage, prefix, array.spec, entries, None, "never", lambda *_: "", mmap=False)

    def finish_offsets(self) -> None:
        """Compare what the offsets say together."""
        if self.offsets is None:
            return
        for row, reason in self.offsets.finish():
            array = self.arrays["X/indptr"]
            shard = next(shard for shard in array.shards if shard.first <= row < shard.last)
            fault = shard.fault(row, row + 1, reason)
            self.note(shard.entry.key, fault.start, fault.stop, (row, row + 1), reason)
        longest, said = self.offsets.longest, self.document.longest_row
        if longest is not None and longest != said:
            self.note("segment.json", 0, 0, None, f"longest_row is {said}, the longest row has {longest} entries")

    def rows_of(self, path: str, first: int, last: int) -> tuple[int, int] | None:
        """Rows of the segment that elements of an array belong to; None: any."""
        if path in ("X/indices", "X/data"):
            return None if self.offsets is None else self.offsets.rows_of(first, last)
        if path.startswith(("columns/", "X/indptr")):
            rows = self.document.rows
            return min(first, rows - 1), max(min(last, rows), min(first, rows - 1) + 1)
        return None

    def statistics(self) -> None:
        """Compare the statistics with the rows."""
        for path in self.arrays:
            if not path.startswith("stats/"):
                continue
            reader = self.sound(path)
            if reader is None:
                continue
            key = f"{path}/{reader.spec.shard_key(0)}"
            stop = self.entries[key].length if key in self.entries else 0
            try:
                values = reader.read_all()
                reason = self._statistics_problem(path, values, reader.spec)
            except (SparsestoreError, ValueError, KeyError, TypeError) as error:
                reason = f"it can not be read: {error}"
            if reason:
                self.note(key, 0, stop, None, reason)

    def _statistics_problem(self, path: str, values: Array, spec: ArraySpec) -> str:
        if path != "stats/nnz":
            statistics = LabelStatistics.from_arrays(values, spec.attributes)
            column = self.place.columns.get(path.removeprefix("stats/labels/"))
            if column is not None:
                statistics.check(column.dtype, column.shape, self.document.rows)
            return ""
        if self.offsets is None or not self.offsets.all_sound:
            return ""
        bad = np.flatnonzero(np.diff(self.offsets.marks) != values.astype(np.int64))
        if not len(bad):
            return ""
        at = int(bad[0])
        found, expected = int(values[at]), int(self.offsets.marks[at + 1] - self.offsets.marks[at])
        return f"rows from {at * COUNT_ROWS} of the segment have {expected} entries, it says {found}"


def _too_wide(document: SegmentDocument, place: Place) -> str:
    return f"n_features is {document.n_features}, the store has {place.n_features}"


def _is_shard(key: str) -> bool:
    return key.startswith(("X/", "columns/")) and "/c/" in key


class _Array:
    """An array of a segment."""

    def __init__(self, segment: SegmentCheck, path: str, spec: ArraySpec, keys: list[str]) -> None:
        self.segment = segment
        self.path = path
        self.spec = spec
        self.keys = keys
        self.raw = spec.codec.name == "none" and spec.dtype != "string"
        entries = segment.entries
        self.shards = [ShardCheck(self, i, entries[key]) for i, key in enumerate(keys) if key in entries]
        self.edge: _Edge | None = None  # end of the shard before

    @property
    def judged(self) -> bool:
        """Whether its elements have rules to keep."""
        return self.path in ("X/indices", "X/indptr", _ROW_IDS) or self.spec.dtype == "bool"

    def offsets(self, start: int, stop: int) -> Ints | None:
        """Elements of X/indptr, which lie in one chunk or are not compressed; None where they can not be read."""
        shard = next((shard for shard in self.shards if shard.first <= start < shard.last), None)
        return None if shard is None else shard.offsets(start, stop)


class _Edge(NamedTuple):
    """Numbers at the border of two parts."""

    at: int
    number: int
    row_starts: bool | None


class Found(NamedTuple):
    """What was found of a unit."""

    unit: Unit
    crcs: NDArray[np.uint32]
    unread: Fault | None
    faults: list[Fault]
    edges: list[tuple[_Edge, _Edge]]
    n_bytes: int


class ShardCheck:
    """One shard of an array that has checksums beside it."""

    def __init__(self, array: _Array, number: int, entry: ObjectEntry) -> None:
        self.array = array
        self.number = number
        self.entry = entry
        self.found: list[Found] = []
        self.facts: ShardFacts
        self._direct = False
        self._together = True  # the chunks, end to end; other writers may leave gaps between compressed ones
        spec = array.spec
        self._per_shard = spec.shard // spec.chunk
        self._n_chunks = min(self._per_shard, spec.n_chunks - number * self._per_shard)
        self.first = number * spec.shard
        self.last = min((number + 1) * spec.shard, spec.shape[0])
        self.key = f"{array.segment.prefix}/{entry.key}"

    # ------------------------------------------------------------------ before

    def begin(self, direct: bool = False) -> None:
        """Read the index and the checksums."""
        self._direct = direct
        spec, n = self.array.spec, self._n_chunks
        size = self._per_shard * 16 + 4
        self._index_at = self.entry.length - size
        nothing = np.empty(0, np.int64)
        self.facts = ShardFacts(self.entry, nothing, nothing, None, np.empty(0, np.uint32))
        facts = self.facts
        self._index_crc: int | None = None
        if self._index_at < 0:
            reason = f"it has {self.entry.length} bytes, too few for an index of {size}"
            facts.index = Fault(0, 0, 0, self.entry.length, None, reason)
            return
        if self.array.raw:
            n_bytes = n * spec.chunk * spec.itemsize
            if n_bytes != self._index_at:
                reason = f"it has {self._index_at} bytes of chunks, expected {n_bytes}"
                facts.index = Fault(0, 0, 0, self.entry.length, None, reason)
                return
            facts.starts = np.arange(0, n_bytes, PIECE)
            facts.lengths = np.minimum(n_bytes - facts.starts, PIECE)
        facts.crcs = np.zeros(len(facts.starts), np.uint32)
        index = self._read_index()
        if not self.array.raw and index is not None:
            facts.starts, facts.lengths = index
            facts.crcs = np.zeros(n, np.uint32)
        facts.expected = self._read_expected()

    def _read_index(self) -> tuple[Ints, Ints] | None:
        """Starts and lengths of the chunks; None where the index does not tell."""
        facts, at, stop = self.facts, self._index_at, self.entry.length
        try:
            payload = self.array.segment.storage.read_range(self.key, at, stop)
        except (SparsestoreError, OSError) as error:
            facts.index = Fault(0, 0, at, stop, None, reason_of(error))
            return None
        self._index_crc = crc32c(payload)
        if crc32c(payload[:-4]) != int.from_bytes(payload[-4:], "little"):
            facts.index = Fault(0, 0, at, stop, None, "the shard's index does not match its crc32c")
            return None
        index = np.frombuffer(payload[:-4], "<u8").reshape(-1, 2)[: self._n_chunks]
        offsets, lengths = index.T
        if (offsets > at).any() or (lengths > np.uint64(at) - offsets).any():
            facts.index = Fault(0, 0, at, stop, None, "the shard's index names chunks outside of it")
            return None
        starts, sizes = np.ascontiguousarray(index.astype(np.int64).T)
        ends = starts + sizes
        together = bool((starts[1:] == ends[:-1]).all()) and (not len(starts) or (starts[0], ends[-1]) == (0, at))
        if not self.array.raw:
            self._together = together
        elif not together or not bool((sizes == self.array.spec.chunk * self.array.spec.itemsize).all()):
            facts.index = Fault(0, 0, at, stop, None, "the shard's chunks do not lie end to end from its first byte")
            return None
        return starts, sizes

    def _read_expected(self) -> NDArray[np.uint32] | None:
        """Checksums of the pieces or chunks; None where they are not sound, which is listed elsewhere."""
        segment, spec = self.array.segment, self.array.spec
        path = f"checksums/{self.array.path}"
        reader = segment.sound(path)
        if reader is None:
            if self.number == 0 and f"{path}/zarr.json" not in {entry.key for entry in segment.document.objects}:
                segment.note(f"{path}/zarr.json", 0, 0, None, "segment.json does not name it")
            return None
        if self.array.raw:
            first = self.number * spec.shard * spec.itemsize // PIECE  # no piece crosses shards: `spec_problem`
            total = -(-spec.n_chunks * spec.chunk * spec.itemsize // PIECE)
        else:
            first, total = self.number * self._per_shard, spec.n_chunks
        n = len(self.facts.starts)
        if reader.spec.dtype != "uint32" or reader.spec.shape != (total,):
            if self.number == 0:
                reason = f"it describes {reader.spec.shape} of {reader.spec.dtype}, expected ({total},) of uint32"
                segment.note(f"{path}/zarr.json", 0, segment.entries[f"{path}/zarr.json"].length, None, reason)
            return None
        low, high = first // reader.spec.chunk, -(-(first + n) // reader.spec.chunk)
        try:
            values = reader.chunks(np.arange(low, high))
        except (SparsestoreError, OSError) as error:
            if self.number == 0:
                segment.note(f"{path}/{reader.spec.shard_key(0)}", 0, 0, None, reason_of(error))
            return None
        at = first - low * reader.spec.chunk
        return np.asarray(values[at : at + n])

    def units(self) -> list[Unit]:
        """In which parts it is looked at."""
        spec, offsets = self.array.spec, self.array.segment.offsets
        if not self.array.raw:
            unit = _CHUNKS_BYTES if self._together else 1
            return cut_chunks(len(self.facts.starts), unit, spec.chunk * (spec.itemsize or _STRING_BYTES))
        weights = None
        if self.array.path == "X/indices" and offsets is not None:
            ends = self.first + np.append(self.facts.starts, self._index_at) // spec.itemsize
            weights = offsets.bytes_before(ends)
        return cut_pieces(int(self.facts.lengths.sum()), _PIECES_BYTES, weights)

    # ------------------------------------------------------------------ in threads

    def look(self, unit: Unit, rooms: Rooms) -> list[Found]:
        """Read a unit, and look at it."""
        if not self.array.raw:
            return [self._look(unit, rooms)]
        if not self._direct:
            swept = self._sweep(unit, rooms)
            if swept is not None:
                return [swept]
        step = _HELD_BYTES // PIECE
        parts = [Unit(at, min(at + step, unit.last)) for at in range(unit.first, unit.last, step)]
        return [self._look(part, rooms) for part in parts]

    def _sweep(self, unit: Unit, rooms: Rooms) -> Found | None:
        """Read a unit, and look whether all is well; None where it is not, or where that is not told so fast."""
        facts, spec, segment = self.facts, self.array.spec, self.array.segment
        ordered = self.array.path == "X/indices" and len(spec.shape) == 1
        if facts.expected is None or (self.array.judged and not ordered):
            return None
        start = int(facts.starts[unit.first])
        stop = int(facts.starts[unit.last - 1] + facts.lengths[unit.last - 1])
        first, n, dtype = 0, 0, "u4"
        lengths: Array = np.empty(0, np.uint32)
        begin = 0
        if ordered:
            first = self.first + start // spec.itemsize
            n = max(min(self.last - first, (stop - start) // spec.itemsize), 0)  # the last chunk's padding is left out
            dtype = f"u{spec.itemsize}"
            known = None if segment.offsets is None else segment.offsets.lengths(first, n)
            if known is None:
                return None
            lengths, begin = known
        try:
            with segment.storage.opened(self.key) as descriptor, rooms.room(_SWEPT_BYTES) as room:
                found = survey.swept(descriptor, start, stop - start, room, dtype, n, lengths, begin)
        except (SparsestoreError, OSError):
            return None
        if found is None:
            return None
        crcs, (turns, at_rows, begins, largest, number, last) = found[0], found[1].tolist()
        if turns != at_rows or largest >= segment.document.n_features:
            return None
        if not np.array_equal(crcs, facts.expected[unit.first : unit.last]):
            return None
        edges = [(_Edge(first, number, bool(begins)), _Edge(first + n, last, None))] if n else []
        return Found(unit, crcs, None, [], edges, stop - start)

    def _look(self, unit: Unit, rooms: Rooms) -> Found:
        facts = self.facts
        start = int(facts.starts[unit.first])
        stop = int(facts.starts[unit.last - 1] + facts.lengths[unit.last - 1])
        with rooms.room(stop - start) as stored:
            crcs = np.zeros(unit.last - unit.first, np.uint32)
            try:
                storage = self.array.segment.storage
                storage.read_into(self.key, [(start, stored)], direct=self._direct)
            except (SparsestoreError, OSError) as error:
                unread = Fault(unit.first, unit.last, start, stop, None, reason_of(error))
                return Found(unit, crcs, unread, [], [], stop - start)
            if self.array.raw:
                faults, edges = self._look_at_pieces(unit, stored, crcs)
            else:
                faults, edges = self._look_at_chunks(unit, stored, crcs, rooms)
        return Found(unit, crcs, None, faults, edges, stop - start)

    def _look_at_pieces(self, unit: Unit, stored: Array, crcs: Array) -> tuple[list[Fault], list[Any]]:
        spec = self.array.spec
        first = self.first + unit.first * PIECE // max(spec.itemsize, 1)
        n = max(min(self.last - first, len(stored) // spec.itemsize), 0)  # the last chunk's padding is left out
        judged = self.array.judged and len(spec.shape) == 1
        ordered = judged and self.array.path == "X/indices"
        values = stored[: n * spec.itemsize].view(f"u{spec.itemsize}" if judged else spec.dtype) if judged else None
        numbers = values if ordered and values is not None else np.empty(0, np.uint32)
        largest, turns = np.empty((2, -(-numbers.nbytes // PIECE)), numbers.dtype)
        survey.look(stored, numbers, crcs, largest, turns)
        if values is None:
            return [], []
        expected = self.facts.expected
        sound = np.ones(len(crcs), bool) if expected is None else crcs == expected[unit.first : unit.last]
        if sound.all() and ordered and n:
            return self._judge(first, values, (largest, turns))
        spans = runs(sound)
        size = PIECE // spec.itemsize
        parts = [(first + low * size, values[low * size : high * size]) for low, high in spans]
        return self._judge_all(parts)

    def _look_at_chunks(self, unit: Unit, stored: Array, crcs: Array, rooms: Rooms) -> tuple[list[Fault], list[Any]]:
        facts, spec = self.facts, self.array.spec
        part = slice(unit.first, unit.last)
        starts, lengths = facts.starts[part] - facts.starts[unit.first], facts.lengths[part]
        spans = [(0, len(crcs))]
        if facts.expected is None:
            for i, (at, n) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
                crcs[i] = crc32c(stored[at : at + n])
        else:
            crcs[:] = facts.expected[part]
            damaged = list(_damaged(stored, starts, lengths, crcs))
            for i in damaged:
                crcs[i] = crc32c(stored[starts[i] : starts[i] + lengths[i]])
            if damaged:
                spans = runs(crcs == facts.expected[part])
        faults: list[Fault] = []
        parts = []
        with rooms.room((unit.last - unit.first) * spec.chunk * spec.itemsize) as room:
            for low, high in spans:
                while low < high:
                    n = high - low
                    if spec.dtype == "string":
                        out: Array = np.empty((n * spec.chunk, *spec.shape[1:]), object)
                    else:
                        begin = low * spec.chunk * spec.itemsize
                        plain = room[begin : begin + n * spec.chunk * spec.itemsize]
                        out = plain.view(spec.dtype).reshape(-1, *spec.shape[1:])
                    done, reason = decode(stored, starts[low:high], lengths[low:high], spec, out)
                    first = self.first + (unit.first + low) * spec.chunk
                    if done and self.array.judged:
                        whole = out[: min(done * spec.chunk, self.last - first)]
                        parts.append((first, whole.reshape(-1).view(f"u{whole.itemsize}")))
                    low += done
                    if reason:
                        at = unit.first + low
                        reason = f"the chunk can not be decoded: {reason}"
                        start, stop = int(facts.starts[at]), int(facts.starts[at] + facts.lengths[at])
                        faults.append(Fault(at, at + 1, start, stop, None, reason))
                        low += 1
            found, edges = self._judge_all(parts)
        return faults + found, edges

    def _judge_all(self, parts: list[tuple[int, Array]]) -> tuple[list[Fault], list[Any]]:
        faults: list[Fault] = []
        edges: list[Any] = []
        for first, values in parts:
            if len(values):
                found, borders = self._judge(first, values, None)
                faults += found
                edges += borders
        return faults, edges

    def _judge(
        self, first: int, values: Array, seen: tuple[Array, Array] | None
    ) -> tuple[list[Fault], list[tuple[_Edge, _Edge]]]:
        """Compare consecutive elements from `first` on with the rules for them, unsigned as they are."""
        path, offsets = self.array.path, self.array.segment.offsets
        if path == "X/indptr":
            taken = [] if offsets is None else offsets.take(first, values.view(np.int64))
            return [self.fault(at, at + 1, reason) for at, reason in taken], []
        if path == _ROW_IDS:
            return self._judge_row_ids(first, values), []
        if path != "X/indices":
            return self._judge_bools(first, values), []
        if seen is None:
            largest, turns = np.empty((2, -(-values.nbytes // PIECE)), values.dtype)
            survey.look(np.empty(0, np.uint8), values, np.empty(0, np.uint32), largest, turns)
        else:
            largest, turns = seen
        faults = []
        bound = self.array.segment.document.n_features
        outside = np.zeros(0, np.int64)
        if int(largest.max()) >= bound:
            outside = np.flatnonzero(values >= values.dtype.type(bound))
            number = int(values[outside[0]].view(values.dtype.str.replace("u", self._kind)))
            reason = f"feature number {number}, expected 0 to {bound - 1}{_more(len(outside))}"
            faults.append(self.fault(first + int(outside[0]), first + int(outside[-1]) + 1, reason))
        if offsets is None:
            return faults, []
        begins, expected = offsets.turns(values, first)
        if expected != int(turns.sum(dtype=np.int64)):
            places = offsets.inside(first + 1 + np.flatnonzero(values[1:] <= values[:-1]))
            # a number out of range is one problem, wherever it stands
            places = places[~np.isin(places, first + outside) & ~np.isin(places - 1, first + outside)]
            if len(places):
                faults.append(self._disorder(first, values, places))
        last = first + len(values)
        edges = []
        if not len(outside) or (outside[0] > 0 and outside[-1] < len(values) - 1):
            edges = [(_Edge(first, int(values[0]), begins), _Edge(last, int(values[-1]), None))]
        return faults, edges

    @property
    def _kind(self) -> str:
        return np.dtype(self.array.spec.dtype).kind

    def _disorder(self, first: int, values: Array, places: Ints) -> Fault:
        at = int(places[0])
        before, number = values[at - first - 1 : at - first + 1].tolist()
        reason = f"feature number {number} follows {before} in a row, expected strictly ascending{_more(len(places))}"
        return self.fault(at, int(places[-1]) + 1, reason)

    def _judge_bools(self, first: int, values: Array) -> list[Fault]:
        if int(values.max()) <= 1:
            return []
        bad = np.flatnonzero(values > 1) // math.prod(self.array.spec.shape[1:])
        reason = f"a byte that is neither 0 nor 1 in a column of bool{_more(len(bad))}"
        return [self.fault(first + int(bad[0]), first + int(bad[-1]) + 1, reason)]

    def _judge_row_ids(self, first: int, values: Array) -> list[Fault]:
        bound = 2**63 - self.array.segment.place.line.row_id_start
        if int(values.max()) < bound:
            return []
        bad = np.flatnonzero(values >= np.uint64(bound))
        reason = f"row number {int(values[bad[0]].view(np.int64))}, expected 0 to {bound - 1}{_more(len(bad))}"
        return [self.fault(first + int(bad[0]), first + int(bad[-1]) + 1, reason)]

    def fault(self, first: int, last: int, reason: str) -> Fault:
        """A fault of elements `first` to `last` of the array."""
        spec = self.array.spec
        if self.array.raw:
            start, stop = (first - self.first) * spec.itemsize, (last - self.first) * spec.itemsize
            low, high = start // PIECE, -(-stop // PIECE)
        else:
            low, high = (first - self.first) // spec.chunk, -(-(last - self.first) // spec.chunk)
            start = int(self.facts.starts[low])
            stop = int(self.facts.starts[high - 1] + self.facts.lengths[high - 1])
        rows = self.array.segment.rows_of(self.array.path, first, last)
        return Fault(low, high, start, stop, rows, reason)

    def offsets(self, start: int, stop: int) -> Ints | None:
        """Elements of X/indptr; see `_Array.offsets`."""
        spec, storage = self.array.spec, self.array.segment.storage
        at, n = start - self.first, stop - start
        try:
            if self.array.raw:
                out = np.empty(n, np.int64)
                storage.read_into(self.key, [(at * 8, out.view(np.uint8))])
                return out
            chunk = at // spec.chunk
            begin, length = int(self.facts.starts[chunk]), int(self.facts.lengths[chunk])
            stored = np.frombuffer(storage.read_range(self.key, begin, begin + length), np.uint8)
        except (SparsestoreError, OSError):
            return None
        out = np.empty(spec.chunk, np.int64)
        _, reason = decode(stored, np.zeros(1, np.int64), np.array([length]), spec, out)
        return None if reason else out[:n]

    # ------------------------------------------------------------------ after

    def finish(self) -> None:
        """Put together what was found, and list what is wrong."""
        facts, segment = self.facts, self.array.segment
        self.found.sort(key=lambda found: found.unit.first)
        for found in self.found:
            facts.crcs[found.unit.first : found.unit.last] = found.crcs
            facts.faults += found.faults
            if found.unread is not None:
                facts.unread.append(found.unread)
        self._compare_edges()
        if not self._together:
            try:
                facts.crc = segment.storage.crc32c(self.key)
            except (SparsestoreError, OSError) as error:
                facts.unread.append(Fault(0, 0, 0, self.entry.length, None, reason_of(error)))
        elif not facts.unread and self._index_crc is not None and (self.array.raw or len(facts.starts)):
            index = self.entry.length - self._index_at
            facts.crc = survey.combined(
                np.append(facts.crcs, np.uint32(self._index_crc)), np.append(facts.lengths, index)
            )
        unit = "piece" if self.array.raw else "chunk"
        for fault in damage(facts, unit):
            rows = fault.rows or self._rows_of_bytes(fault)
            segment.note(self.entry.key, fault.start, fault.stop, rows, fault.reason)
        self.found = []
        if self.array.path != "X/indptr":  # whose chunks are read again; of a large segment the others would not fit
            del self.facts

    def _compare_edges(self) -> None:
        """Numbers at the borders of units: each unit saw one of two neighbours."""
        edges = [edge for found in self.found for edge in found.edges]
        before = self.array.edge
        for first, last in edges:
            known = before is not None and before.at == first.at and first.row_starts is False
            if known and before is not None and first.number <= before.number:
                reason = f"feature number {first.number} follows {before.number} in a row, expected strictly ascending"
                self.facts.faults.append(self.fault(first.at, first.at + 1, reason))
            before = last
        self.array.edge = before

    def _rows_of_bytes(self, fault: Fault) -> tuple[int, int] | None:
        spec = self.array.spec
        if fault.first >= fault.last:
            return self.array.segment.rows_of(self.array.path, self.first, self.last)
        if self.array.raw:
            first, last = fault.start // max(spec.itemsize, 1), -(-fault.stop // max(spec.itemsize, 1))
        else:
            first, last = fault.first * spec.chunk, fault.last * spec.chunk
        last = min(self.first + last, self.last)
        return self.array.segment.rows_of(self.array.path, min(self.first + first, last - 1), last)


def _more(n: int) -> str:
    return f"; {n} such in these bytes" if n > 1 else ""


def _damaged(stored: Array, starts: Ints, lengths: Ints, expected: Array) -> Iterator[int]:
    """Numbers of all chunks that do not match their crc32c."""
    at = 0
    while at < len(starts):
        bad = frames.first_damaged(stored, starts[at:], lengths[at:], expected[at:])
        if bad < 0:
            return
        yield at + bad
        at += bad + 1
