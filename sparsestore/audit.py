"""What a deep `verify` looks at, in which units, and what follows from what it found. Decides; reads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsestore.checksum import PIECE
from sparsestore.format import ROW_ID, ColumnSchema, ObjectEntry, SegmentDocument
from sparsestore.statistics import COUNT_ROWS
from sparsestore.zarr_format import ArraySpec

__all__ = [
    "Expected",
    "Fault",
    "Problem",
    "ShardFacts",
    "Unit",
    "arrays_of",
    "batches",
    "cut_chunks",
    "cut_pieces",
    "damage",
    "expectations",
    "most_bytes",
    "runs",
    "spec_problem",
]

Ints = NDArray[np.int64]

STRETCH = 16
"""Damaged pieces that follow each other, from which on they are one problem and not one each."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a store; its text is one line.

    Attributes
    ----------
    store : str
    version : int
    key : str
        Of the object, in the store.
    start, stop : int
        Bytes of the object.
    rows : (int, int) or None
        Rows of the store that are lost with them; None where that can not be told.
    reason : str
    """

    store: str
    version: int
    key: str
    start: int
    stop: int
    rows: tuple[int, int] | None
    reason: str

    def __str__(self) -> str:
        rows = f" (rows {self.rows[0]} to {self.rows[1]})" if self.rows else ""
        reason = "; ".join(line.strip() for line in self.reason.splitlines())
        return f"{self.store}: version {self.version}, {self.key}, bytes {self.start} to {self.stop}{rows}: {reason}"


# ---- which arrays a segment has, and what they must be


class Expected(NamedTuple):
    """What the documents above an array say that it is; None where they say nothing.

    Attributes
    ----------
    dtype : str or None
    shape : tuple of int or None
    compressed : bool or None
    required : bool
    barred : str
        Why there must be no such array; empty where there may be.
    """

    dtype: str | None
    shape: tuple[int, ...] | None
    compressed: bool | None = None
    required: bool = True
    barred: str = ""


def expectations(document: SegmentDocument, columns: Mapping[str, ColumnSchema]) -> dict[str, Expected]:
    """The arrays that a segment must or may have, by path."""
    rows, nnz, packed = document.rows, document.nnz, document.profile == "compact"
    found = {
        "X/indptr": Expected("int64", (rows + 1,), True),
        "X/indices": Expected(document.indices_dtype, (nnz,), packed),
        "X/data": Expected(document.data_dtype, (nnz,), packed and not document.constant),
        "stats/nnz": Expected(None, (-(-rows // COUNT_ROWS),)),
    }
    for name, schema in {**columns, ROW_ID: ColumnSchema("int64")}.items():
        found[f"columns/{name}"] = Expected(schema.dtype, (rows, *schema.shape), True, required=name != ROW_ID)
        barred = f"there is no mask of a column with {schema.shape[0]} values a row" if schema.shape else ""
        found[f"columns/{name}.mask"] = Expected("bool", (rows,), True, required=False, barred=barred)
        found[f"stats/labels/{name}"] = Expected("float64", None, required=False)
    return found


def arrays_of(keys: Iterable[str]) -> list[str]:
    """Paths of the arrays among the objects of a segment: X/indptr first, as it tells which entries are which rows'."""
    found = []
    for key in keys:
        path, _, name = key.rpartition("/")
        inner = path.removeprefix("checksums/")
        deep = inner.startswith(("X/", "columns/")) or path == "stats/nnz" or path.startswith("stats/labels/")
        if name == "zarr.json" and deep:
            found.append(path)
    return sorted(found, key=lambda path: (path != "X/indptr", path))


def spec_problem(spec: ArraySpec, expected: Expected) -> str:
    """What is wrong with the description of an array; empty where nothing is."""
    if expected.barred:
        return expected.barred
    if expected.dtype is not None and spec.dtype != expected.dtype:
        return f"the dtype is {spec.dtype}, expected {expected.dtype}"
    if expected.shape is not None and spec.shape != expected.shape:
        return f"the shape is {spec.shape}, expected {expected.shape}"
    if expected.compressed is not None and (spec.codec.name != "none") != expected.compressed:
        return f"the codec is {spec.codec.name}, expected {'compressed' if expected.compressed else 'none'}"
    return spec.border_problem if expected.compressed is False else ""


# ---- in which units


def most_bytes(n_threads: int, rows: int, chunk_bytes: int = 0) -> int:
    """Memory that a deep check takes at most: its threads' rooms, lengths of some rows, counts of each 256 rows.

    Parameters
    ----------
    n_threads : int
    rows : int
        Of the largest segment.
    chunk_bytes : int
        Of the longest inner chunk, decoded: of no account in a store as the format's own writer makes it, unless a row
        of a column has more than 2 MiB.
    """
    return n_threads * max(6 << 20, 3 * chunk_bytes) + (16 << 20) + rows // 8


class Unit(NamedTuple):
    """Pieces, or chunks, `first` to `last` of a shard: what one thread looks at in one go."""

    first: int
    last: int


def cut_pieces(n_bytes: int, unit: int, weights: Ints | None = None) -> list[Unit]:
    """Units of the pieces of a shard's `n_bytes`.

    Parameters
    ----------
    n_bytes : int
    unit : int
        Bytes of a unit, with what is decoded for it; one piece at least.
    weights : (pieces + 1,) int64 array, optional
        Bytes to be decoded for the pieces before each: where rows are short these are more than the entries.
    """
    pieces = -(-n_bytes // PIECE)
    costs = np.arange(pieces + 1, dtype=np.int64) * PIECE
    if weights is not None:
        costs += weights - weights[0]
    numbers = costs[:-1] // unit
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    edges = [0, *cuts.tolist(), pieces]
    return [Unit(first, last) for first, last in pairwise(edges) if first < last]


def cut_chunks(n: int, unit: int, chunk_bytes: int) -> list[Unit]:
    """Units of the n chunks of a shard, each of `unit` bytes decoded; one chunk at least."""
    step = max(unit // max(chunk_bytes, 1), 1)
    return [Unit(first, min(first + step, n)) for first in range(0, n, step)]


def batches(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of things of these sizes, in order, in groups that reach `most`."""
    group: list[int] = []
    held = 0
    for number, size in enumerate(sizes):
        group.append(number)
        held += size
        if held >= most:
            yield group
            group, held = [], 0
    if group:
        yield group


# ---- what follows from what was found


class Fault(NamedTuple):
    """Something wrong with what bytes say; of no interest where the bytes themselves are damaged.

    Attributes
    ----------
    first, last : int
        Pieces or chunks of the shard that it was found in.
    start, stop : int
        Bytes of the shard.
    rows : (int, int) or None
        Of the segment.
    reason : str
    """

    first: int
    last: int
    start: int
    stop: int
    rows: tuple[int, int] | None
    reason: str


@dataclass(slots=True)
class ShardFacts:
    """What was found of one shard.

    Attributes
    ----------
    entry : ObjectEntry
    starts, lengths : (n,) int64 arrays
        Bytes of its pieces or chunks.
    expected : (n,) uint32 array or None
        Checksums kept beside the array; None where they are damaged or missing.
    crcs : (n,) uint32 array
        Those found.
    unread : list of Fault
        Parts that could not be read.
    index : Fault or None
        What is wrong with the index of the shard.
    crc : int or None
        Of the whole object, as it follows from its parts; None where some are unknown.
    faults : list of Fault
    """

    entry: ObjectEntry
    starts: Ints
    lengths: Ints
    expected: NDArray[np.uint32] | None
    crcs: NDArray[np.uint32]
    unread: list[Fault] = field(default_factory=list)
    index: Fault | None = None
    crc: int | None = None
    faults: list[Fault] = field(default_factory=list)


def damage(shard: ShardFacts, unit: str) -> list[Fault]:
    """What is wrong with a shard: each damaged thing once, as narrow as the checksums tell.

    A flipped bit fails the checksum of its piece and that of the object, and may make numbers that break rules: that
    is one problem. `unit` is "piece" or "chunk".
    """
    found = list(shard.unread)
    if shard.index is not None:
        found.append(shard.index)
    whole = shard.crc is not None and shard.crc == shard.entry.crc32c
    bad = np.zeros(len(shard.crcs), bool) if shard.expected is None else shard.crcs != shard.expected
    for fault in shard.unread:
        bad[fault.first : fault.last] = True
    lost = bad
    if whole:
        lost = np.zeros(len(bad), bool)
        if bad.any():
            found.append(
                Fault(
                    0,
                    len(bad),
                    0,
                    shard.entry.length,
                    None,
                    f"{np.count_nonzero(bad)} of its {len(bad)} checksums under checksums/ are not those of its "
                    f"{unit}s, and that of the whole object is right",
                )
            )
    elif shard.expected is None:
        lost = np.ones(len(bad), bool)
        if not found:
            found.append(_of_object(shard, ""))
    else:
        unread = np.zeros(len(bad), bool)
        for fault in shard.unread:
            unread[fault.first : fault.last] = True
        damaged = [part for run in runs(bad & ~unread) for part in _listed(run)]
        for first, last in damaged:
            starts = shard.starts[first:last]
            start, stop = int(starts.min()), int((starts + shard.lengths[first:last]).max())
            many = f" in any of {last - first} {unit}s" if last - first > 1 else ""
            reason = f"the bytes do not match their crc32c{many}"
            found.append(Fault(first, last, start, stop, None, reason))
        if not found and shard.crc is not None:
            found.append(_of_object(shard, f", though each {unit} matches its own"))
    found += [fault for fault in shard.faults if not lost[fault.first : fault.last].any()]
    return sorted(found, key=lambda fault: (fault.start, fault.stop))


def _of_object(shard: ShardFacts, more: str) -> Fault:
    entry = shard.entry
    found = "" if shard.crc is None else f" (found {shard.crc:08x}, expected {entry.crc32c:08x})"
    return Fault(
        0, len(shard.crcs), 0, entry.length, None, f"the bytes do not match the crc32c of the object{found}{more}"
    )


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open ranges in which a mask is true.

    Examples
    --------
    >>> runs(np.array([False, True, True, False, True]))
    [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _listed(run: tuple[int, int]) -> list[tuple[int, int]]:
    """A run of damaged pieces as the problems that it is."""
    first, last = run
    return [run] if last - first >= STRETCH else [(at, at + 1) for at in range(first, last)]
