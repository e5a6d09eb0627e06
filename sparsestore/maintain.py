"""gc: old versions, and what no version needs and no writer is making or may go on with. optimize: small segments."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from sparsestore import writer
from sparsestore.checksum import crc32c
from sparsestore.convert import REWRITE, rewrite_segments
from sparsestore.format import DRAWN, ROW_ID, Manifest, SegmentLine, is_own_key, manifest_key
from sparsestore.journal import FOLDER, Journal, JournalState, all_journals, owner_of
from sparsestore.layout import PROFILES, ValueRange, indices_dtype
from sparsestore.manifest import needed_keys, read_manifest, versions
from sparsestore.plan.selection import Selection
from sparsestore.progress import Progress
from sparsestore.reader import Reader
from sparsestore.segment import Segment
from sparsestore.sources.base import Block
from sparsestore.sources.store import StoreSource
from sparsestore.storage import LocalStorage, open_storage
from sparsestore.view import View
from sparsestore.writer import Replaced, is_begun, remove_skeleton

__all__ = ["gc", "mergeable", "optimize", "parse_age"]

log = logging.getLogger("sparsestore")

_OPEN_SEGMENTS = 256  # at a time: an open one takes some ten KiB, and files that are mapped
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_age(age: str | float) -> float:
    """Seconds in ``"24h"``, ``"30m"`` or a number of seconds.

    Examples
    --------
    >>> parse_age("1.5h")
    5400.0
    """
    if isinstance(age, (int, float, np.integer, np.floating)) and not isinstance(age, bool):
        seconds = float(age)
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhdw])\s*", str(age))
        if not match:
            raise ValueError(f"older_than is {age!r}, expected seconds or a string such as '24h', '30m' or '0s'")
        seconds = float(match[1]) * _SECONDS[match[2]]
    if not seconds >= 0:
        raise ValueError(f"older_than is {age!r}, expected no negative age")
    return seconds


def gc(
    path: str | os.PathLike[str], *, keep_versions: int = 1, older_than: str | float = "24h", dry_run: bool = False
) -> list[str]:
    """Remove all but the newest versions, then what no remaining version needs.

    Parameters
    ----------
    path : str or path-like
    keep_versions : int
        How many of the newest versions stay; at least 1.
    older_than : str or float
        Age from which goes what no version needs. What a writer made that ended before it published goes when its
        journal is that old: until then an interrupted conversion can be gone on with.
    dry_run : bool
        Only tell what would go.

    Returns
    -------
    list of str
        Keys removed, in order.

    Raises
    ------
    FileNotFoundError
        Where there is no store, nor the beginnings of one.
    CorruptStoreError
        Where a version that stays can not be read: nothing is removed then.

    Notes
    -----
    Versions go first, then journals, so that a crash half-way leaves garbage, and never a version without its segments
    or an interrupted conversion without its parts. Files that other processes have mapped stay readable to them. What a
    running writer makes is never removed, whatever its age, nor a version that was published since that writer began.
    Where nothing but the beginnings of a store were, its folder goes too. Only what has a name that writers give is
    ever removed: what somebody else put into a folder of the store stays, and a line of the log tells of it.
    """
    if isinstance(keep_versions, bool) or not isinstance(keep_versions, (int, np.integer)) or keep_versions < 1:
        raise ValueError(f"keep_versions is {keep_versions!r}, expected an integer of at least 1")
    oldest = time.time() - parse_age(older_than)
    storage = open_storage(path)
    if not versions(storage) and not is_begun(storage):
        read_manifest(storage)  # says what is there instead
    # Listed before writers are asked, and versions read after: what is listed and in no writer's journal was published
    # before the versions are read, or never will be.
    listed = [f"{folder}/{name}" for folder in DRAWN for name in storage.list(folder)]
    candidates = [key for key in listed if is_own_key(key)]
    if strange := [key for key in listed if not is_own_key(key)]:
        log.info("%s: %d names that no writer gave are left alone, such as %r", storage.name, len(strange), strange[0])
    writers = _Writers.of(storage, oldest)
    try:
        numbers = versions(storage)
        kept = numbers[-keep_versions:]
        # a writer that read the versions before may take any higher number than the newest of then: such a number must
        # not become free, or its version would be older than others by its rows and newer by none
        dropped = [number for number in numbers[:-keep_versions] if number <= writers.base]
        needed = needed_keys(storage, dropped)
        old = [manifest_key(number) for number in dropped]
        dead: list[str] = []
        rest: list[str] = []
        for key in candidates:
            if key in needed or key in writers.spared:
                continue
            owner = owner_of(key)
            if key in writers.dead:
                dead.append(key)
            elif (
                key in writers.lost
                or owner in writers.dead
                or (owner not in writers.known and _is_old(storage, key, oldest))
            ):
                rest.append(key)
        for folder, keys in (("versions", old), (FOLDER, dead), ("", rest)) if not dry_run else ():
            for key in keys:
                storage.remove(key)
            if folder and keys:
                storage.sync(folder)  # or a power cut could bring them back without what they name
    finally:
        writers.release()
    if not kept and not dry_run:
        remove_skeleton(storage, folders=1)
    return [*old, *dead, *rest]


def _is_old(storage: LocalStorage, key: str, oldest: float) -> bool:
    try:
        return storage.modified(key) <= oldest
    except FileNotFoundError:  # its writer was faster
        return False


@dataclass
class _Writers:
    """What the journals of a store say.

    Attributes
    ----------
    base : int
        The lowest version that a writer started from which lives, or may.
    known, dead : set of str
        Keys of the journals that are there; of those whose writer is dead, long enough.
    spared, lost : set of str
        Keys of what is being made, or may be gone on with; of what dead writers made.
    """

    base: int = 2**63
    known: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    spared: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    held: list[Journal] = field(default_factory=list)

    @classmethod
    def of(cls, storage: LocalStorage, oldest: float) -> _Writers:
        """Ask all journals; those whose parts are to go are held until `release`, so that nobody goes on with one."""
        writers = cls()
        try:
            for key in all_journals(storage):
                journal = Journal.adopt(storage, key)
                try:
                    state = journal.state if journal else JournalState.parse(storage.read(key))
                    old = journal is not None and storage.modified(key) <= oldest
                except FileNotFoundError:
                    continue
                finally:
                    if journal:
                        writers.held.append(journal)
                writers.known.add(key)
                if old:
                    writers.dead.add(key)
                    writers.lost |= state.made
                else:
                    writers.spared |= state.made
                    if journal:
                        journal.release()  # whoever comes with the same is to find it
                if journal is None or not (journal.locked or old):  # at work, or nobody knows
                    writers.base = min(writers.base, state.base)
        except BaseException:
            writers.release()
            raise
        return writers

    def release(self) -> None:
        """Let go of the journals of the dead."""
        for journal in self.held:
            journal.release()


# -------------------------------------------------------------------------------------------------------- optimize


def optimize(
    path: str | os.PathLike[str],
    *,
    reshuffle: bool = False,
    seed: int | None = None,
    profile: str | None = None,
    max_bytes: int | str = "1GiB",
    progress: Progress | bool | None = None,
) -> int:
    """Merge small segments into large ones, and give the number of the version that has them.

    The new version has the same rows in the same order, columns, numbers of rows, names and attrs. Segments of a
    gibibyte stay as they are, and so do those whose rows lie in a random order, each in its own: `reshuffle` puts all
    rows of the store in one. Where nothing is to be merged, and the store has the `profile`, nothing is written, and
    the newest version's number given.

    Memory is at most `max_bytes` and 2 MiB, as in `convert`, and 16 MiB for segments that are open, and half a KiB for
    each segment of the store. An interrupted call is gone on with when it is repeated, behind the last segment that was
    finished. Others may append meanwhile: their rows stay behind those that are there. Who has the store open reads on;
    `gc` removes the old segments.

    Parameters
    ----------
    path : str or path-like
    reshuffle : bool
        Put all rows in an exactly random order. "row_id" keeps the numbers they had.
    seed : int, optional
        Of the shuffle, as in `convert`.
    profile : {"raw", "compact"}, optional
        Write all segments that have another one anew; new segments of the store have it then.
    max_bytes : int or str
        Memory, e.g. ``"512MiB"``; at least 24 MiB.
    progress : callable, bool or None
        As in `convert`.

    Returns
    -------
    int

    Raises
    ------
    FileNotFoundError
        Where there is no store.
    FileExistsError
        Where another process replaced or merged the same segments meanwhile: nothing is changed then.
    ValueError, ResourceError, CorruptStoreError
        As in `convert`; the store keeps its version.

    Notes
    -----
    Splits are drawn a segment at a time: after merging, ``split(0.9, seed=0)`` gives other views than before, unless it
    goes by ``group``. States of loaders are of a version, and raise with another.
    """
    if profile is not None and profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}, expected one of {', '.join(PROFILES)}")
    if seed is not None and not reshuffle:
        raise ValueError(f"seed is {seed} but reshuffle is False: pass reshuffle=True (--reshuffle), or leave seed out")
    storage = open_storage(path)
    reader = Reader(storage, read_manifest(storage))
    try:
        before = reader.lines[: _begun(storage, reader.lines)]
        if reshuffle:
            groups = [range(len(before))] * bool(before)
        else:
            changed = None
            if profile is not None:
                changed = [each.document.profile != profile for each in _opened(reader, range(len(before)))]
            groups = mergeable(before, _sizes(reader.manifest, before), writer.PART_BYTES, changed)
        if not groups and profile in (None, reader.manifest.profile):
            log.info("%s: nothing to merge: %s", storage.name, _why_not(before))
            return reader.version
        found = [_replaced(reader, group, reshuffle) for group in groups]
        return rewrite_segments(
            _Runs(reader, groups, numbered=any(numbered for _, numbered in found)),
            storage,
            reader.manifest,
            before,
            [replaced for replaced, _ in found],
            facts={"segments": len(before), "ids": _ids(before)},
            profile=profile or reader.manifest.profile,
            shuffle=reshuffle,
            seed=seed,
            max_bytes=max_bytes,
            progress=progress,
        )
    finally:
        reader.close()


def mergeable(
    lines: Sequence[SegmentLine], sizes: Sequence[int], limit: int, changed: Sequence[bool] | None = None
) -> list[range]:
    """Which consecutive segments become one: together at most `limit`, each less than half of it, none shuffled.

    Any two that were made so are together more than `limit`, but for the last of all: to merge again finds nothing.

    Parameters
    ----------
    lines : sequence of SegmentLine
    sizes : sequence of int
        Their bytes.
    limit : int
    changed : sequence of bool, optional
        Those that are to be written anew, alone if need be.

    Examples
    --------
    >>> lines = [SegmentLine(str(i), 1, 1, 0) for i in range(6)]
    >>> mergeable(lines, [60, 30, 30, 30, 30, 60], 100)
    [range(1, 4)]
    """
    groups, first, total = list[range](), 0, 0

    def end(stop: int) -> None:
        if stop - first > 1 or (changed and any(changed[first:stop])):
            groups.append(range(first, stop))

    for number, (line, size) in enumerate(zip(lines, sizes, strict=True)):
        alone = line.shuffled or 2 * size >= limit
        if number > first and (alone or total + size > limit):
            end(number)
            first, total = number, 0
        total += size
        if alone:
            end(number + 1)
            first, total = number + 1, 0
    end(len(lines))
    return groups


def _sizes(manifest: Manifest, lines: Sequence[SegmentLine]) -> list[int]:
    """Bytes that a segment takes at most, as its writer counts them: additive, whatever dtypes it has."""
    entry = np.dtype(indices_dtype(manifest.n_features)).itemsize + max(np.dtype(manifest.dtype).itemsize, 4)
    row = (
        1
        + 8
        + sum(
            1 + math.prod(schema.shape) * (8 if schema.dtype == "string" else np.dtype(schema.dtype).itemsize)
            for schema in manifest.columns.values()
        )
    )
    return [line.nnz * entry + line.rows * row for line in lines]


def _why_not(lines: Sequence[SegmentLine]) -> str:
    n_shuffled = sum(line.shuffled for line in lines)
    if n_shuffled > 1:
        return (
            f"{n_shuffled} of {len(lines)} segments are shuffled, each in an order of its own: reshuffle=True "
            "(--reshuffle) puts all rows in one"
        )
    return f"{len(lines)} segment{'s' * (len(lines) != 1)}, none small beside another"


def _ids(lines: Sequence[SegmentLine]) -> str:
    return f"{crc32c(' '.join(line.id for line in lines).encode()):08x}"


def _begun(storage: LocalStorage, lines: Sequence[SegmentLine]) -> int:
    """Of how many segments an interrupted call was the rewriting, where they are there still; else all."""
    for key in all_journals(storage):
        try:
            job = JournalState.parse(storage.read(key)).job or {}
        except FileNotFoundError:
            continue
        source = job.get("source")
        if job.get("into") == REWRITE and isinstance(source, dict):
            n = source.get("segments")
            if isinstance(n, int) and 0 < n <= len(lines) and source.get("ids") == _ids(lines[:n]):
                return n
    return len(lines)


def _opened(reader: Reader, numbers: range) -> Iterator[Segment]:
    """Segments by number, few of them open at a time."""
    for number in numbers:
        if number % _OPEN_SEGMENTS == 0:
            reader.close()
        yield reader.segment(number)


def _replaced(reader: Reader, group: range, reshuffle: bool) -> tuple[Replaced, bool]:
    """A group as its writer is told of it; and whether its rows must bring their numbers."""
    lines = reader.lines[group.start : group.stop]
    values: ValueRange | None = None
    numbered = reshuffle or any(b.row_id_start != a.row_id_start + a.rows for a, b in pairwise(lines))
    for segment in () if reshuffle else _opened(reader, group):
        found = _values(segment, reader)
        values = found if values is None else values.union(found)
        numbered = numbered or segment.has(f"columns/{ROW_ID}")
    rows, start = sum(line.rows for line in lines), lines[0].row_id_start
    return Replaced(group.start, group.stop, rows, start, reshuffle or lines[0].shuffled, values), numbered


def _values(segment: Segment, reader: Reader) -> ValueRange:
    """What the dtype of a segment says of its values."""
    stored = np.dtype(segment.document.data_dtype)
    logical = reader.dtype.name
    if segment.document.constant:
        value = segment.constant
        return ValueRange(logical, stored.kind in "iu", value, value, segment.nnz)
    if stored.kind in "iu":
        info = np.iinfo(stored)
        return ValueRange(logical, True, info.min, info.max, segment.nnz)
    return ValueRange(logical, False, -math.inf, math.inf, segment.nnz)


class _Runs:
    """Rows of some segments of a store, as a source: no block has rows of two groups."""

    unit = "rows"
    sorted_rows = True
    feature_names = None  # the version keeps its own
    shuffled = None

    def __init__(self, reader: Reader, groups: Sequence[range], numbered: bool) -> None:
        self._reader = reader
        self._groups = groups
        self._view = View(reader, reader.storage.name, Selection.all(reader.segment_rows), None)
        self.name = reader.storage.name
        self.numbered = numbered
        self.n_rows: int | None = sum(int(reader.segment_rows[g.start : g.stop].sum()) for g in groups)
        self.n_features: int | None = reader.shape[1]
        self.dtype: np.dtype[Any] | None = reader.dtype
        own = {name: (schema.dtype, schema.shape) for name, schema in reader.manifest.columns.items()}
        self.columns: Mapping[str, tuple[str, tuple[int, ...]]] = {
            **own,
            **({ROW_ID: ("int64", ())} if numbered else {}),
        }
        self.size: int | None = self.n_rows

    def provenance(self) -> dict[str, Any]:
        return {"source": self.name}

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order, and close segments on the way."""
        starts, position = self._reader.segment_starts, 0
        for group in self._groups:
            for number in range(group.start, group.stop, _OPEN_SEGMENTS):
                last = min(number + _OPEN_SEGMENTS, group.stop) - 1
                at, stop = int(starts[number]), int(starts[last] + self._reader.segment_rows[last])
                for block in StoreSource(self._view, rows=slice(at, stop)).blocks(max_bytes):
                    rows = slice(at, at + len(block.x))
                    columns = {name: values for name, values in block.columns.items() if name != ROW_ID}
                    if self.numbered:
                        columns[ROW_ID] = self._view.column(ROW_ID)[rows]
                    at, position = rows.stop, position + len(block.x)
                    yield replace(block, columns=columns, position=position)
                self._reader.close()
