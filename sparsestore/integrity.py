"""verify: every object of a version, and every row, compared with what was written; every problem listed.

`audit` decides what is looked at and what follows from it, `inspection` looks at a segment, all cores at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from sparsestore import memory
from sparsestore.audit import Problem, Unit, batches
from sparsestore.checksum import crc32c
from sparsestore.documents import parse_json, unseal
from sparsestore.errors import CorruptStoreError, SparsestoreError
from sparsestore.features import check_names, read_document
from sparsestore.format import FeaturesEntry, Manifest, ObjectEntry, SegmentLine, manifest_key
from sparsestore.inspection import Found, Place, Rooms, SegmentCheck, ShardCheck, reason_of, whole_object
from sparsestore.manifest import read_manifest, versions
from sparsestore.parallel import as_done
from sparsestore.progress import Progress, shown
from sparsestore.reader import Reader
from sparsestore.row_starts import Blocks
from sparsestore.storage import LocalStorage

__all__ = ["Verdict", "examine", "verify"]

T = TypeVar("T")
R = TypeVar("R")

_BLOCKS_BYTES = 8 << 20  # of lengths of rows: of eight million rows of less than 256 entries
_GROUP_BYTES = 1 << 29
"""Of shards, or of small segments, between two waits of all threads for each other."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a check.

    Attributes
    ----------
    version : int
        The newest of those that were checked.
    versions : list of int
    deep : bool
    problems : list of str
        A line each.
    objects : int
        That were looked at.
    n_bytes : int
        That were read: documents, or with `deep` everything.
    seconds : float
    """

    version: int
    versions: list[int]
    deep: bool
    problems: list[str]
    objects: int
    n_bytes: int
    seconds: float


def verify(reader: Reader, *, deep: bool = True, progress: Progress | bool | None = False) -> list[str]:
    """All problems of the version that a reader has open, a line each; see `examine`."""
    return examine(reader.storage, reader.version, deep=deep, progress=progress, opened=reader.manifest).problems


def examine(
    storage: LocalStorage,
    version: int | None = None,
    *,
    deep: bool,
    all_versions: bool = False,
    progress: Progress | bool | None = False,
    n_threads: int | None = None,
    opened: Manifest | None = None,
) -> Verdict:
    """Check a version of a store.

    Parameters
    ----------
    storage : LocalStorage
    version : int, optional
        The newest by default.
    deep : bool
        Every byte against the crc32c of its object and of its piece or chunk, and what the bytes say against the rules
        of the format. Else the documents (manifest, pages, segment.json: these by their crc32c) and that each object
        that they name is there, a plain file with its length. Both see what reading rows does not: whether all versions
        between the oldest and the newest are there.
    all_versions : bool
        All that are there. Segments that they share are looked at once.
    progress : callable, bool or None
        As for `convert`; called with bytes, or objects where not `deep`.
    n_threads : int, optional
        One a core by default.
    opened : Manifest, optional
        Of the version, read before: what to check where its file has gone meanwhile.

    Raises
    ------
    MissingStoreError
        Where there is no store, or no such version.

    Notes
    -----
    Memory: `audit.most_bytes`, that is 6 MiB a thread, 16 MiB, and an eighth of a byte a row of the largest segment;
    where features have names 8 bytes for each.
    """
    begin = time.perf_counter()
    found = versions(storage)
    if opened is None and (not found or (version is not None and version not in found)):
        read_manifest(storage, version)  # says what is missing, and what there is
    number = found[-1] if version is None else version
    wanted = sorted({*found, number}) if all_versions else [number]
    check = _Check(storage, n_threads)
    check.look_for_gaps(found, number)
    known: dict[Any, int] = {}  # what versions say of a segment, and which of the places has it
    places: list[Place] = []
    narrowest: dict[int, Place] = {}  # of the same in versions of fewer features
    for each in reversed(wanted):  # of segments that versions share, the rows are those of the newest
        for place in check.manifest(each, found, opened if each == number else None):
            first = known.setdefault((place.line, frozenset(place.columns.items())), len(places))
            if first == len(places):
                places.append(place)
            elif place.n_features < narrowest.get(first, places[first]).n_features:
                narrowest[first] = place
    with shown("verifying", progress) as report:
        sizes = []
        for i, place in enumerate(places):
            sizes.append(check.documents(i, place, narrowest.get(i)))
            if not deep:
                report(i + 1, len(places), "segments")
        if deep:
            total = check.n_bytes + check.names_bytes + sum(sizes)
            check.told = lambda n: report(n, total, "bytes")
            free = memory.free_bytes()
            check.direct = free is not None and sum(sizes) > free * 3 // 4
            check.names()
            for group in batches(sizes, _GROUP_BYTES):
                check.deep(group, [places[i] for i in group])
    seconds = time.perf_counter() - begin
    return Verdict(number, wanted, deep, check.problems, check.objects, check.n_bytes, seconds)


class _Check:
    """A check under way: what was found so far."""

    def __init__(self, storage: LocalStorage, n_threads: int | None) -> None:
        self.storage = storage
        self._found: list[str] = []  # of versions
        self._problems: dict[int, list[Problem]] = {}  # of segments
        self.objects = self.n_bytes = 0
        self.names_bytes = 0  # of names of features, still to be read
        self.direct = False  # around the page cache
        self.told: Callable[[int], None] = lambda _: None
        self._n_threads = n_threads
        self._lost: dict[int, set[str]] = {}  # of segments: objects that are not there, or not with their length
        self._names: dict[FeaturesEntry, tuple[int | None, int | None]] = {}  # of features: see `_look_at_names`
        self._named: dict[FeaturesEntry, Manifest] = {}  # those that are there, and the newest that has them
        self._rooms = Rooms()
        self._blocks = Blocks(_BLOCKS_BYTES)

    @property
    def problems(self) -> list[str]:
        """A line each: of versions, then of segments in their order, by key and place."""
        found = list(self._found)
        for _, problems in sorted(self._problems.items()):
            found += map(str, sorted(problems, key=lambda problem: (problem.key, problem.start, problem.reason)))
        return found

    # ------------------------------------------------------------------ versions

    def look_for_gaps(self, found: list[int], version: int) -> None:
        """Versions are removed from the oldest on: one that is missing between others was lost."""
        for before, after in pairwise(found):
            for number in range(before + 1, after):
                reason = (
                    f"the manifest is missing, and those of versions {before} and {after} are there: lost, unless the "
                    "power failed while gc removed old versions; then run gc again"
                )
                self._note(version, manifest_key(number), 0, 0, None, reason)

    def manifest(self, version: int, found: list[int], opened: Manifest | None) -> list[Place]:
        """Check a manifest and its pages; the segments that it names."""
        storage, key = self.storage, manifest_key(version)
        self.objects += 2  # with zarr.json
        try:
            manifest: Manifest | None = read_manifest(storage, version)
        except (SparsestoreError, OSError) as error:
            if version not in found:
                self._note(version, key, 0, 0, None, "the manifest is missing")
            else:
                self._found.append("; ".join(line.strip() for line in str(error).splitlines()))
            manifest = self._salvaged(key) or opened
        if manifest is None:
            return []
        if manifest.parent is not None and manifest.parent >= version:
            reason = f"it says that it was made from version {manifest.parent}"
            self._note(version, key, 0, 0, None, reason)
        if manifest.features is not None:
            self._features(manifest, manifest.features)
        return self._lines(manifest)

    def _features(self, manifest: Manifest, features: FeaturesEntry) -> None:
        """Check that the names of the features are there, one a feature; what versions share is looked at once."""
        if features not in self._names:
            self._names[features] = self._look_at_names(manifest, features)
        n, n_bytes = self._names[features]
        if n is not None and n != manifest.n_features:
            reason = f"it has {n} names, expected {manifest.n_features}, one a feature"
            self._note(manifest.version, f"{features.prefix}/features.json", 0, 0, None, reason)
        elif n_bytes is not None and features not in self._named:
            self._named[features] = manifest
            self.names_bytes += n_bytes

    def _look_at_names(self, manifest: Manifest, features: FeaturesEntry) -> tuple[int | None, int | None]:
        """How many names a folder has, and how many bytes its objects; None where that is not known, or one is lost."""
        self.objects += 1
        try:
            document = read_document(self.storage, features)
        except (SparsestoreError, OSError) as error:
            self._note(manifest.version, f"{features.prefix}/features.json", 0, 0, None, reason_of(error))
            return None, None
        self.objects += len(document.objects)
        lost = False
        for entry in document.objects:
            key = f"{features.prefix}/{entry.key}"
            try:
                length = self.storage.length(key)
                reason = "" if length == entry.length else f"it has {length} bytes, expected {entry.length}"
            except (SparsestoreError, OSError) as error:
                reason = reason_of(error)
            if reason:
                self._note(manifest.version, key, 0, entry.length, None, reason)
                lost = True
        return document.n, None if lost else sum(entry.length for entry in document.objects)

    def names(self) -> None:
        """Check every byte of the names of features whose objects are there, and that they are names."""
        for features, manifest in self._named.items():
            sound = True
            for entry in read_document(self.storage, features).objects:
                key = f"{features.prefix}/{entry.key}"
                try:
                    found = self.storage.crc32c(key)
                    reason = "" if found == entry.crc32c else "the bytes do not match the crc32c of the object"
                except (SparsestoreError, OSError) as error:
                    reason = reason_of(error)
                self._count(entry.length)
                if reason:
                    sound = False
                    self._note(manifest.version, key, 0, entry.length, None, reason)
            if sound:
                try:
                    check_names(self.storage, features, manifest.n_features)
                except (SparsestoreError, OSError, ValueError) as error:
                    reason = str(error) if type(error) is ValueError else reason_of(error)
                    self._note(manifest.version, f"{features.prefix}/names", 0, 0, None, reason)

    def _salvaged(self, key: str) -> Manifest | None:
        """A manifest that is sound itself, whatever is wrong beside it."""
        try:
            payload = self.storage.read(key)
            return Manifest.from_document(parse_json(payload, key), key) if unseal(payload, crc32c) else None
        except (SparsestoreError, OSError):
            return None

    def _lines(self, manifest: Manifest) -> list[Place]:
        """Segments of a version with the rows that they begin at, read from all pages that are sound."""
        lines: list[SegmentLine] = []
        damaged = False
        before = 0  # lines whose first row is found by counting from the start
        for page in manifest.pages:
            self.objects += 1
            self.n_bytes += page.object.length
            try:
                found = self._page(manifest, page.object)
                if len(found) != page.segments:
                    raise CorruptStoreError(f"it names {len(found)} segments, expected {page.segments}")
                lines += found
            except (SparsestoreError, OSError) as error:
                damaged = True
                entry = page.object
                self._note(manifest.version, entry.key, 0, entry.length, None, reason_of(error))
            if not damaged:
                before = len(lines)
        lines += manifest.segments
        rows = np.array([line.rows for line in lines], np.int64)
        starts = np.cumsum(rows) - rows
        if damaged:
            starts[before:] += manifest.rows - int(rows.sum())
        else:
            totals = int(rows.sum()), sum(line.nnz for line in lines)
            if totals != (manifest.rows, manifest.nnz):
                reason = f"its segments have {totals} rows and entries, expected {(manifest.rows, manifest.nnz)}"
                self._note(manifest.version, manifest_key(manifest.version), 0, 0, None, reason)
        first_inline = len(lines) - len(manifest.segments)
        return [
            Place(
                manifest.version,
                line,
                int(start) if not damaged or i < before or i >= first_inline else None,
                manifest.n_features,
                manifest.columns,
            )
            for i, (line, start) in enumerate(zip(lines, starts.tolist(), strict=True))
        ]

    def _page(self, manifest: Manifest, entry: ObjectEntry) -> tuple[SegmentLine, ...]:
        payload = self.storage.read(entry.key)
        if len(payload) != entry.length:
            raise CorruptStoreError(f"it has {len(payload)} bytes, expected {entry.length}")
        if crc32c(payload) != entry.crc32c:
            raise CorruptStoreError("the bytes do not match their crc32c in the manifest")
        return manifest.page_lines(parse_json(payload, entry.key), entry.key)

    def _note(self, version: int, key: str, start: int, stop: int, rows: tuple[int, int] | None, reason: str) -> None:
        self._found.append(str(Problem(self.storage.name, version, key, start, stop, rows, reason)))

    # ------------------------------------------------------------------ documents and lengths

    def documents(self, number: int, place: Place, narrowest: Place | None) -> int:
        """Check segment.json and the lengths of all that it names; bytes of the objects that are there.

        `narrowest` is its place in the version of fewest features, where not all have as many.
        """
        segment = SegmentCheck(self.storage, place)
        self.objects += 1
        length = segment.read_document()
        self.n_bytes += length
        if length and narrowest is not None:
            segment.compare_width(narrowest)
        total = segment.look_at_lengths()
        self.objects += len(segment.entries) + len(segment.lost)
        self._lost[number] = segment.lost
        self._problems[number] = segment.problems
        return total

    # ------------------------------------------------------------------ every byte

    def deep(self, numbers: list[int], places: list[Place]) -> None:
        """Check every byte of some segments, whose documents and lengths were checked."""
        segments = {}
        self._blocks.clear()  # of the segments before
        for number, place in zip(numbers, places, strict=True):
            segment = SegmentCheck(self.storage, place, self._blocks)
            if segment.read_document(self._lost[number]):
                segments[number] = segment
            elif not self._problems[number]:  # it was sound a moment ago
                self._problems[number] += segment.problems
        every = list(segments.values())
        self._compare([(segment, entry) for segment in every for entry in segment.plain()])
        for segment in every:
            segment.describe()
        self._shards([shard for segment in every for shard in segment.shards(indptr=True)])
        for segment in every:
            segment.finish_offsets()
        rest = [shard for segment in every for shard in segment.shards(indptr=False)]
        for group in batches([shard.entry.length for shard in rest], _GROUP_BYTES):
            self._shards([rest[i] for i in group])
        self._compare([(segment, entry) for segment in every for entry in segment.undescribed()])
        for number, segment in segments.items():
            segment.statistics()
            self._problems[number] += segment.problems

    def _count(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes
        self.told(self.n_bytes)

    def _run(self, work: Callable[[T], R], tasks: Sequence[T]) -> closing[Generator[R, None, None]]:
        """Results as they come; whoever leaves the block has all threads end first."""
        return closing(as_done(work, tasks, self._n_threads))

    def _compare(self, tasks: list[tuple[SegmentCheck, ObjectEntry]]) -> None:
        """Compare whole objects with their crc32c."""
        with self._run(whole_object, tasks) as results:
            for segment, entry, payload, problem in results:
                self._count(entry.length)
                if problem:
                    segment.note(entry.key, 0, entry.length, None, problem)
                    segment.damaged.add(entry.key)
                elif payload is not None:
                    segment.payloads[entry.key] = payload

    def _shards(self, shards: list[ShardCheck]) -> None:
        """Check some shards."""
        tasks = []
        for shard in shards:
            shard.begin(self.direct)
            tasks += [(shard, unit) for unit in shard.units()]
            self._count(shard.entry.length - int(shard.facts.lengths.sum()))

        def work(task: tuple[ShardCheck, Unit]) -> tuple[ShardCheck, list[Found]]:
            shard, unit = task
            return shard, shard.look(unit, self._rooms)

        with self._run(work, tasks) as results:
            for shard, found in results:
                shard.found += found
                self._count(sum(part.n_bytes for part in found))
        for shard in shards:
            shard.finish()
