"""Put rows in order in bounded memory: triples into rows, rows into a random order.

Both are bucket sorts of two passes. Pass 1 deals the input out to bucket files, pass 2 sorts one bucket at a time in
memory; a bucket that turns out too large for that is dealt out again. What fits in memory touches no file.
"""

from __future__ import annotations

import errno
import json
import resource
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import Rows, index_dtype
from sparsestore.errors import ResourceError
from sparsestore.plan import shuffle
from sparsestore.sources.base import Block, Triples
from sparsestore.storage import free_disk_bytes

__all__ = ["KEY_ROWS", "KEY_STREAM", "Duplicates", "shuffled_blocks", "sorted_rows"]

Array = NDArray[Any]
Arrays = dict[str, Array]
Duplicates = Literal["sum", "last", "error"]

KEY_STREAM = shuffle.CONVERSION
"""Stream of `plan.shuffle.words` that conversion draws its keys from."""
KEY_ROWS = 65_536
"""Rows that share one draw of keys. Part of the order that a seed stands for: it can not change."""

MAX_FILES = 256  # more would make the pieces written to each small and meet the limit of open files
UNKNOWN_FILES = 64  # where the input doesn't tell its size
MAX_BLOCK_ROWS = 1 << 20
BLOCK_ENTRIES = 1 << 19

# names of the arrays that rows travel as
COLUMN = "column."  # sets columns apart from the arrays of the matrix
MASKED = " (masked)"
ENTRIES = ("indices", "data")  # arrays with an element an entry, not a row
TEXT, TEXT_BYTES = "text.", "text-bytes."  # a column of strings travels as lengths (-1: missing) and utf-8


# ------------------------------------------------------------------------------------------------- triples into rows


def sorted_rows(
    triples: Iterable[Triples],
    n_rows: int,
    n_features: int,
    *,
    dtype: DTypeLike | None,
    max_bytes: int,
    scratch: Path,
    duplicates: Duplicates = "sum",
    size: int | None = None,
) -> Iterator[Rows]:
    """Sort triples into canonical rows: a two-pass bucket sort over bands of rows.

    Memory stays within `max_bytes` (plus 2 MiB), as long as the blocks of `triples` take at most an eighth of it and
    no single row needs more than half: entries waiting for pass 1 take a quarter, their scattered copy a quarter, and
    in pass 2 a band with all its copies a half. A row that alone exceeds this is held whole. Where `triples` needs
    more than a quarter, every entry is written to disk once and read once (a skewed band twice).

    Parameters
    ----------
    triples : iterable of Triples
        Entries in any order.
    n_rows, n_features : int
        Shape of the matrix; rows without entries are rows.
    dtype : numpy dtype or None
        Logical dtype of the values. None: the dtype of the first triples, which the others must fit.
    max_bytes : int
        Budget in bytes.
    scratch : Path
        Folder for bucket files, made when needed; what is made in it is removed again in every case.
    duplicates : {"sum", "last", "error"}
        What several entries at one place become: their sum (integers exactly, or an error), the last in reading
        order, or an error.
    size : int, optional
        Total of `Triples.position`, from which the number of bands and the disk space needed are estimated.

    Yields
    ------
    Rows
        Consecutive rows, at most 1,048,576 at a time, together all `n_rows`. A block stays valid after the next.

    Raises
    ------
    ValueError
        An entry outside the shape, a value that `dtype` can not hold, or a duplicate where those are errors.
    ResourceError
        Too little disk space.
    """
    if duplicates not in ("sum", "last", "error"):
        raise ValueError(f"duplicates must be 'sum', 'last' or 'error', found {duplicates!r}")
    block_rows = _power_below(max(1, min(MAX_BLOCK_ROWS, max_bytes // 64)))
    sorter = _TripleSort(n_rows, n_features, duplicates, block_rows, max_bytes // 4, max_bytes // 2)
    stream = sorter.checked(triples, dtype)
    held, n_bytes, position = _filled(stream, sorter.hold_bytes)
    if n_bytes <= sorter.hold_bytes:
        yield from sorter.emit(_joined(held) if held else sorter.nothing(dtype), 0, n_rows)
        return
    estimate = n_bytes * size // position if size and position else None
    with _scratch_folder(scratch, estimate) as folder:
        rest = (arrays for arrays, _ in stream)
        yield from sorter.spilled(_chained(held, rest), folder, 0, n_rows, estimate)


@dataclass(frozen=True)
class _TripleSort:
    """The parameters of one sort. Entries travel as dicts of three arrays: "row" (unsigned), "feature", "value"."""

    n_rows: int
    n_features: int
    duplicates: Duplicates
    block_rows: int
    hold_bytes: int
    band_bytes: int

    def nothing(self, dtype: DTypeLike | None) -> Arrays:
        return {
            "row": np.zeros(0, self.row_dtype),
            "feature": np.zeros(0, index_dtype(self.n_features)),
            "value": np.zeros(0, dtype if dtype is not None else np.float32),
        }

    @property
    def row_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint32 if self.n_rows <= 2**32 else np.uint64)

    def checked(self, triples: Iterable[Triples], dtype: DTypeLike | None) -> Iterator[tuple[Arrays, int]]:
        """Entries in the dtypes of this sort; compiled loops write where they say, so they are checked here again."""
        to = np.dtype(dtype) if dtype is not None else None
        for block in triples:
            if len(block.rows) == 0:
                continue
            for name, numbers, limit in (
                ("row", block.rows, self.n_rows),
                ("feature", block.features, self.n_features),
            ):
                low, high = int(numbers.min()), int(numbers.max())
                if low < 0 or high >= limit:
                    raise ValueError(f"{name} number {low if low < 0 else high} found, expected 0 to {limit - 1}")
            to = to or block.values.dtype
            yield (
                {
                    "row": block.rows.astype(self.row_dtype),
                    "feature": block.features.astype(index_dtype(self.n_features)),
                    "value": _cast(block.values, to, block.rows, block.features),
                },
                block.position,
            )

    def spilled(
        self, stream: Iterable[Arrays], folder: Path, start: int, stop: int, estimate: int | None
    ) -> Iterator[Rows]:
        """Rows start to stop, by way of a file for each band of rows."""
        n_files = _number_of_files(estimate, self.band_bytes // 3)  # in memory a band takes up to 3 times its bytes
        shift = max(0, (stop - start - 1).bit_length() - (n_files.bit_length() - 1))
        n_bands = ((stop - start - 1) >> shift) + 1
        files = _BucketFiles(folder, n_bands)
        with files.writing():
            for held in _batched(stream, self.hold_bytes):
                for band, arrays in _scattered(held, start, shift, n_bands):
                    files.append(band, arrays)
                    del arrays
        for band in range(n_bands):
            first, last = start + (band << shift), min(stop, start + ((band + 1) << shift))
            if last - first == 1 or files.n_entries(band) * self.entry_bytes(files) <= self.band_bytes:
                yield from self.emit(files.load(band), first, last)
            else:
                inner = folder / f"{band}.split"
                yield from self.spilled(files.frames(band), inner, first, last, files.n_bytes(band))
            files.remove(band)

    def entry_bytes(self, files: _BucketFiles) -> int:
        """Most bytes that an entry of a band takes in pass 2."""
        feature, value = files.dtypes["feature"].itemsize, files.dtypes["value"].itemsize
        record = self.row_dtype.itemsize + feature + value
        # read and placed; read and cut into blocks; placed, merged, with a mask, starts and sums of 8 bytes
        return max(record + feature + value, 2 * record, 2 * (feature + value) + 17)

    def emit(self, arrays: Arrays, start: int, stop: int) -> Iterator[Rows]:
        """Rows start to stop of entries in memory, in blocks of at most `block_rows`; empties `arrays`."""
        # placing entries in blocks that the processor's cache holds is 3 times faster than placing all at once
        parts = len(arrays["row"]) // BLOCK_ENTRIES + 1
        block_rows = max(1, min(self.block_rows, _power_below(max(1, stop - start)) // parts))
        if stop - start <= block_rows:
            if stop > start:
                yield self.rows(arrays, start, stop)
            return
        shift = block_rows.bit_length() - 1
        n_blocks = ((stop - start - 1) >> shift) + 1
        blocks = _scattered(deque([dict(arrays)]), start, shift, n_blocks, empties=True)
        arrays.clear()
        for block, part in blocks:
            first = start + (block << shift)
            yield self.rows(part, first, min(stop, first + (1 << shift)))

    def rows(self, arrays: Arrays, start: int, stop: int) -> Rows:
        """Rows start to stop by a counting sort; empties `arrays`."""
        from sparsestore.kernels import bucket

        row, feature, value = arrays["row"], arrays["feature"], arrays["value"]
        arrays.clear()
        indptr = np.zeros(stop - start + 1, np.int64)
        bucket.count(row, np.uint64(start), np.uint64(0), indptr[1:])
        np.cumsum(indptr, out=indptr)
        indices, data = np.empty_like(feature), np.empty_like(value)
        cursors = indptr[:-1].astype(np.uint64)
        bucket.place(row, feature, bucket.as_bits(value), np.uint64(start), cursors, indices, bucket.as_bits(data))
        del row, feature, value, cursors
        bucket.sort_in_rows(indptr, indices, bucket.as_bits(data))
        return self.merged(Rows(indptr, indices, data, self.n_features), start)

    def merged(self, rows: Rows, start: int) -> Rows:
        """The rows with entries at the same place made one."""
        if rows.nnz < 2:
            return rows
        fresh = np.empty(rows.nnz, bool)  # an entry that is not a repeat of the one before it
        fresh[0] = True
        np.not_equal(rows.indices[1:], rows.indices[:-1], out=fresh[1:])
        inner = rows.indptr[1:-1]
        fresh[inner[inner < rows.nnz]] = True
        if fresh.all():
            return rows
        if self.duplicates == "error":
            at = int(np.argmin(fresh))
            row = start + int(np.searchsorted(rows.indptr, at, side="right")) - 1
            raise ValueError(
                f"row {row} has feature {int(rows.indices[at])} more than once: "
                "give duplicates='sum' or duplicates='last' to accept that"
            )
        starts = np.flatnonzero(fresh)
        indptr = np.searchsorted(starts, rows.indptr)
        indices = rows.indices[starts]
        if self.duplicates == "last":
            data = rows.data[np.append(starts[1:], rows.nnz) - 1]
        else:
            data = _sums(rows, starts, start)
        return Rows(indptr.astype(np.int64, copy=False), indices, data, self.n_features)


def _scattered(
    pieces: deque[Arrays], start: int, shift: int, n_bands: int, *, empties: bool = False
) -> Iterator[tuple[int, Arrays]]:
    """Deal entries out by ``(row - start) >> shift``, emptying `pieces`; yields (band, its entries as they came)."""
    from sparsestore.kernels import bucket

    counts = np.zeros(n_bands, np.int64)
    for piece in pieces:
        bucket.count(piece["row"], np.uint64(start), np.uint64(shift), counts)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    cursors = bounds[:-1].astype(np.uint64)
    out = {name: np.empty(int(bounds[-1]), array.dtype) for name, array in pieces[0].items()}
    for piece in _drained(pieces):
        bucket.scatter(
            piece["row"],
            piece["feature"],
            bucket.as_bits(piece["value"]),
            np.uint64(start),
            np.uint64(shift),
            cursors,
            out["row"],
            out["feature"],
            bucket.as_bits(out["value"]),
        )
    for band in range(n_bands):
        if counts[band] or empties:
            yield band, {name: array[bounds[band] : bounds[band + 1]] for name, array in out.items()}


def _cast(values: Array, dtype: np.dtype[Any], rows: Array, features: Array) -> Array:
    """Values in `dtype`; rounding of floats is fine, any other change is an error."""
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
        rounds = dtype.kind == "f"
        bad = np.isinf(cast) & ~np.isinf(values.astype(np.float64, copy=False)) if rounds else cast != values
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"row {int(rows[at])}, feature {int(features[at])}: value {values[at]} does not fit {dtype}: "
            "give a wider dtype="
        )
    return cast


def _sums(rows: Rows, starts: NDArray[np.int64], first_row: int) -> Array:
    """Sums of the runs of entries that begin at `starts`, in the dtype of the values; any is the sum of booleans."""
    values = rows.data
    if values.dtype.kind == "b":
        return np.logical_or.reduceat(values, starts)
    if values.dtype.kind == "f":
        sums = np.add.reduceat(values, starts, dtype=np.float64)
        with np.errstate(over="ignore"):
            cast = sums.astype(values.dtype)
        bad = np.isinf(cast) & np.isfinite(sums)
    else:
        wide = np.uint64 if values.dtype == np.uint64 else np.int64
        sums = np.add.reduceat(values, starts, dtype=wide)
        limits = np.iinfo(values.dtype)
        bad = (sums < limits.min) | (sums > limits.max)
        if values.dtype.itemsize == 8:
            # int64 sums can wrap: where the rounded sum comes near the limits, Python's integers decide
            near = np.flatnonzero(np.abs(np.add.reduceat(values, starts, dtype=np.float64)) >= 2.0**62)
            stops = np.append(starts[1:], len(values))
            for at in near.tolist():
                bad[at] |= not limits.min <= sum(values[starts[at] : stops[at]].tolist()) <= limits.max
        cast = sums.astype(values.dtype)
    if bad.any():
        at = int(np.argmax(bad))
        row = first_row + int(np.searchsorted(rows.indptr, starts[at], side="right")) - 1
        raise ValueError(
            f"row {row}, feature {int(rows.indices[starts[at]])}: the sum of its duplicates does not fit "
            f"{values.dtype}: give a wider dtype="
        )
    return cast


# --------------------------------------------------------------------------------------------- rows in a random order


def shuffled_blocks(
    blocks: Iterable[Block],
    *,
    seed: int,
    max_bytes: int,
    scratch: Path,
    first_row_id: int = 0,
    size: int | None = None,
) -> Iterator[Block]:
    """Shuffle all rows exactly, each order equally likely, in bounded memory.

    Row i gets a random 64-bit key, word ``i % 65536`` of ``plan.shuffle.words(seed, 4, 0, i // 65536, ...)``, and the
    output is sorted by key (rows with equal keys keep their order). So the order is a pure function of the number of
    rows and the seed, whatever the blocks and `max_bytes`. Buckets take the highest bits of the key.

    Memory stays within `max_bytes` (plus 2 MiB), as long as the incoming blocks take at most an eighth of it and no
    single row more: rows waiting for pass 1 take a quarter, and while they are dealt out twice more; in pass 2 a
    bucket takes a half and its order and the block handed out another quarter. Columns of strings are estimated.
    Where the input takes more than a quarter it is written to disk once and read once.

    Parameters
    ----------
    blocks : iterable of Block
        Rows with columns of any dtype, (n,) or (n, k), strings too; every block has the same columns.
    seed : int
        64 bits.
    max_bytes : int
        Budget in bytes.
    scratch : Path
        Folder for bucket files, made when needed; what is made in it is removed again in every case.
    first_row_id : int
        `row_id` of the first incoming row.
    size : int, optional
        Total of `Block.position`, from which the number of buckets and the disk space needed are estimated.

    Yields
    ------
    Block
        Rows in their new order with the added column "row_id" (int64): `first_row_id` + the row's incoming number.
        `position` counts the rows given so far. Strings come as object arrays.

    Raises
    ------
    ValueError
        A block with other columns than the first, or with a column "row_id".
    ResourceError
        Too little disk space.
    """
    shuffler = _RowShuffle(max_bytes // 4, max_bytes // 2, max(1, max_bytes // 8))
    stream = shuffler.keyed(blocks, seed, first_row_id)
    held, n_bytes, position = _filled(stream, shuffler.hold_bytes)
    if n_bytes <= shuffler.hold_bytes:
        if held:
            yield from shuffler.emit(_joined(held))
        return
    estimate = n_bytes * size // position if size and position else None
    with _scratch_folder(scratch, estimate) as folder:
        rest = (arrays for arrays, _ in stream)
        yield from shuffler.spilled(_chained(held, rest), folder, 0, estimate)


class _RowShuffle:
    """One shuffle. Rows travel as dicts of arrays: "key", "length", the entries "indices" and "data", and columns."""

    def __init__(self, hold_bytes: int, bucket_bytes: int, block_bytes: int) -> None:
        self.hold_bytes = hold_bytes
        self.bucket_bytes = bucket_bytes
        self.block_bytes = block_bytes
        self.n_features = 0  # of the widest block so far; complete before the first row is given out
        self.n_given = 0

    def keyed(self, blocks: Iterable[Block], seed: int, first_row_id: int) -> Iterator[tuple[Arrays, int]]:
        """Rows with their key and `row_id`, and the position in the input."""
        row, window, words = 0, -1, np.zeros(0, np.uint64)
        names: set[str] | None = None
        for block in blocks:
            n = len(block.x)
            if "row_id" in block.columns:
                raise ValueError(
                    "the source has a column 'row_id' already, which shuffling adds: leave it out or rename it"
                )
            columns = _movable(block.columns)
            found = {name.removeprefix(COLUMN) for name in columns}
            if names is not None and names != found:
                raise ValueError(f"columns {sorted(found)} from row {row} on, expected {sorted(names)}")
            names = found
            self.n_features = max(self.n_features, block.x.n_features)
            if n == 0:
                continue
            key = np.empty(n, np.uint64)
            at = 0
            while at < n:
                if (row + at) // KEY_ROWS != window:
                    window = (row + at) // KEY_ROWS
                    words = shuffle.words(seed, KEY_STREAM, 0, window, KEY_ROWS)
                offset = (row + at) % KEY_ROWS
                take = min(n - at, KEY_ROWS - offset)
                key[at : at + take] = words[offset : offset + take]
                at += take
            row_id = np.arange(first_row_id + row, first_row_id + row + n, dtype=np.int64)
            x = block.x
            yield (
                {
                    "key": key,
                    "length": np.diff(x.indptr),
                    "indices": x.indices,
                    "data": x.data,
                    COLUMN + "row_id": row_id,
                    **columns,
                },
                block.position,
            )
            row += n

    def spilled(self, stream: Iterable[Arrays], folder: Path, used: int, estimate: int | None) -> Iterator[Block]:
        """Rows in order of key, by way of a file for each value of the key's bits after the first `used`."""
        bits = min(_number_of_files(estimate, self.bucket_bytes).bit_length() - 1, 64 - used)
        files = _BucketFiles(folder, 1 << bits)
        with files.writing():
            for held in _batched(stream, self.hold_bytes):
                self.deal(held, files, used, bits)
        for bucket in range(1 << bits):
            n_rows = files.n_entries(bucket)
            # beside its arrays a bucket in memory has an order, an indptr and the starts of its rows
            if files.n_bytes(bucket) + 24 * n_rows <= self.bucket_bytes or n_rows <= 1 or used + bits == 64:
                if n_rows:
                    yield from self.emit(files.load(bucket))
            else:
                inner = folder / f"{bucket}.split"
                yield from self.spilled(files.frames(bucket), inner, used + bits, files.n_bytes(bucket))
            files.remove(bucket)

    def deal(self, held: deque[Arrays], files: _BucketFiles, used: int, bits: int) -> None:
        """Append the rows held to the files of their buckets, in their order; empties `held`."""
        arrays = _joined(held)
        buckets = ((arrays["key"] << np.uint64(used)) >> np.uint64(64 - bits)).astype(np.uint16)
        bounds = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=1 << bits))])
        dealt = self.taken(arrays, np.argsort(buckets, kind="stable"))  # a radix sort on 16 bits
        arrays.clear()
        entries = np.concatenate([[0], np.cumsum(dealt["length"])])[bounds]
        for bucket in range(1 << bits):
            if bounds[bucket] == bounds[bucket + 1]:
                continue
            rows = slice(bounds[bucket], bounds[bucket + 1])
            cut = slice(entries[bucket], entries[bucket + 1])
            files.append(bucket, {name: array[cut if name in ENTRIES else rows] for name, array in dealt.items()})

    def taken(self, arrays: Arrays, order: NDArray[np.int64]) -> Arrays:
        """Copy the rows in the order given."""
        indptr = np.zeros(len(arrays["length"]) + 1, np.int64)
        np.cumsum(arrays["length"], out=indptr[1:])
        x = _taken(Rows(indptr, arrays["indices"], arrays["data"], self.n_features), order)
        rest = {name: array[order] for name, array in arrays.items() if name not in ENTRIES}
        return {**rest, "indices": x.indices, "data": x.data}

    def emit(self, arrays: Arrays) -> Iterator[Block]:
        """Blocks of the rows in order of key, gathered a block at a time."""
        order = np.argsort(arrays.pop("key"), kind="stable")
        indptr = np.zeros(len(order) + 1, np.int64)
        np.cumsum(arrays["length"], out=indptr[1:])
        x = Rows(indptr, arrays["indices"], arrays["data"], self.n_features)
        columns = {name.removeprefix(COLUMN): array for name, array in arrays.items() if name.startswith(COLUMN)}
        masks = {name: columns.pop(name + MASKED) for name in list(columns) if name + MASKED in columns}
        n_bytes = _nbytes(arrays) // len(order) + 1
        step = max(1, self.block_bytes // n_bytes)
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            self.n_given += len(rows)
            given = {name: array[rows] for name, array in columns.items()}
            given |= {name: np.ma.array(given[name], mask=mask[rows]) for name, mask in masks.items()}
            yield Block(_taken(x, rows), given, self.n_given)


def _taken(x: Rows, order: NDArray[np.int64]) -> Rows:
    """Copy the rows in that order, values as bits: no dtype is left out, and fewer loops are compiled."""
    from sparsestore.kernels import bucket

    bits = Rows(x.indptr, x.indices, bucket.as_bits(x.data), x.n_features).take(order)
    return Rows(bits.indptr, bits.indices, bits.data.view(x.data.dtype), x.n_features)


def _movable(columns: Mapping[str, Array]) -> Arrays:
    """Columns as they travel: numpy's strings of variable width as objects, masks beside their columns."""
    out: Arrays = {}
    for name, values in columns.items():
        if isinstance(values, np.ma.MaskedArray):
            out[COLUMN + name + MASKED] = np.ma.getmaskarray(values)
            values = values.data
        out[COLUMN + name] = values.astype(object) if values.dtype.kind == "T" else values
    return out


# ------------------------------------------------------------------------------------------------ dicts of arrays


def _nbytes(arrays: Arrays) -> int:
    """Bytes of memory; a string counts with its characters and what Python adds to it."""
    total = 0
    for array in arrays.values():
        total += array.nbytes
        if array.dtype.kind == "O":
            total += sum(57 + len(text) for text in array.ravel() if isinstance(text, str))
    return total


def _joined(pieces: deque[Arrays]) -> Arrays:
    """One dict of the concatenated arrays; empties `pieces`, an array at a time to save memory."""
    parts = list(pieces)
    pieces.clear()
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def _filled(stream: Iterator[tuple[Arrays, int]], max_bytes: int) -> tuple[deque[Arrays], int, int]:
    """Items until they take more than `max_bytes` or the stream ends, their bytes, and the position after them."""
    held: deque[Arrays] = deque()
    n_bytes, position = 0, 0
    for arrays, position in stream:  # noqa: B007
        held.append(arrays)
        n_bytes += _nbytes(arrays)
        if n_bytes > max_bytes:
            break
    return held, n_bytes, position


def _drained(held: deque[Arrays]) -> Iterator[Arrays]:
    """Give up one item after the other, so that each can be freed when it has been used."""
    while held:
        yield held.popleft()


def _chained(held: deque[Arrays], rest: Iterable[Arrays]) -> Iterator[Arrays]:
    yield from _drained(held)
    yield from rest


def _batched(stream: Iterable[Arrays], max_bytes: int) -> Iterator[deque[Arrays]]:
    """Items in batches of more than `max_bytes`, the last one of less; the taker empties each to free its memory."""
    batch: deque[Arrays] = deque()
    n_bytes = 0
    for arrays in stream:
        batch.append(arrays)
        n_bytes += _nbytes(arrays)
        del arrays
        if n_bytes > max_bytes:
            yield batch
            batch, n_bytes = deque(), 0
    if batch:
        yield batch


# ------------------------------------------------------------------------------------------------------ bucket files


@contextmanager
def _scratch_folder(scratch: Path, n_bytes: int | None) -> Iterator[Path]:
    """Give a fresh folder inside `scratch`, removed with all it holds; about `n_bytes` will be written to it."""
    made = not scratch.exists()
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        if n_bytes is not None:
            free = free_disk_bytes(scratch)
            if free < n_bytes:
                raise ResourceError(
                    f"{scratch} has {free} bytes free, its bucket files will take about {n_bytes}: "
                    "free some, or pass a max_bytes that all fits in"
                )
        with tempfile.TemporaryDirectory(prefix="sort-", dir=scratch) as folder:
            yield Path(folder)
    finally:
        if made:
            shutil.rmtree(scratch, ignore_errors=True)


def _number_of_files(n_bytes: int | None, bucket_bytes: int) -> int:
    """Power of two from 2 to 256: enough that buckets come out at half of `bucket_bytes`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = MAX_FILES if soft == resource.RLIM_INFINITY else soft // 2  # the other half is the caller's
    wanted = UNKNOWN_FILES if n_bytes is None else 2 * n_bytes // max(1, bucket_bytes) + 1
    return max(2, min(1 << (wanted - 1).bit_length(), MAX_FILES, _power_below(max(2, spare))))


def _power_below(n: int) -> int:
    """Largest power of two that is at most n."""
    return 1 << (n.bit_length() - 1)


class _BucketFiles:
    """Files of frames, one a bucket. A frame is a dict of arrays: a line of JSON (names, dtypes, shapes), bytes."""

    def __init__(self, folder: Path, n_buckets: int) -> None:
        self.folder = folder
        self.dtypes: dict[str, np.dtype[Any]] = {}
        self._files: dict[int, BufferedWriter] = {}
        self._lengths: list[dict[str, int]] = [{} for _ in range(n_buckets)]
        self._bytes = [0] * n_buckets
        folder.mkdir(exist_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The time in which frames are appended; closes the files."""
        try:
            yield
            for file in self._files.values():
                with _named_disk_errors(self.folder):
                    file.flush()
        finally:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def append(self, bucket: int, arrays: Arrays) -> None:
        """Append one frame to a bucket."""
        self._bytes[bucket] += _nbytes(arrays)
        encoded = _encoded(arrays)
        lengths = self._lengths[bucket]
        for name, array in encoded.items():
            known = self.dtypes.get(name, array.dtype)
            self.dtypes[name] = np.promote_types(known, array.dtype)
            lengths[name] = lengths.get(name, 0) + len(array)
        head = json.dumps([[name, array.dtype.str, array.shape] for name, array in encoded.items()]).encode()
        frame = b"".join([head, b"\n", *(array.tobytes() for array in encoded.values())])
        with _named_disk_errors(self.folder):
            if bucket not in self._files:
                self._files[bucket] = self._path(bucket).open("wb")
            self._files[bucket].write(frame)

    def n_entries(self, bucket: int) -> int:
        """Length of a bucket's first array."""
        return next(iter(self._lengths[bucket].values()), 0)

    def n_bytes(self, bucket: int) -> int:
        """Bytes of memory that a bucket's arrays take."""
        return self._bytes[bucket]

    def frames(self, bucket: int) -> Iterator[Arrays]:
        """Frames of a bucket in the order they were appended."""
        with self._path(bucket).open("rb") as file:
            while line := file.readline():
                arrays = {}
                for name, dtype, shape in json.loads(line):
                    arrays[name] = np.empty(shape, dtype)
                    _fill(file, arrays[name])
                yield _decoded(arrays)

    def load(self, bucket: int) -> Arrays:
        """A bucket's arrays, each in one piece, in the dtype that all frames of all buckets fit."""
        out: Arrays = {}
        at: dict[str, int] = {}
        if not self._lengths[bucket]:
            return {name: np.zeros(0, dtype) for name, dtype in self.dtypes.items()}
        with self._path(bucket).open("rb") as file:
            while line := file.readline():
                for name, dtype, shape in json.loads(line):
                    if name not in out:
                        out[name] = np.empty((self._lengths[bucket][name], *shape[1:]), self.dtypes[name])
                    start = at.get(name, 0)
                    at[name] = start + shape[0]
                    part = out[name][start : at[name]]
                    if part.dtype == dtype:
                        _fill(file, part)
                    else:
                        piece = np.empty(shape, dtype)
                        _fill(file, piece)
                        part[...] = piece
        return _decoded(out)

    def remove(self, bucket: int) -> None:
        """Give a bucket's disk space back."""
        self._path(bucket).unlink(missing_ok=True)

    def _path(self, bucket: int) -> Path:
        return self.folder / f"{bucket}.bin"


def _fill(file: BufferedReader, array: Array) -> None:
    """Read exactly the array's bytes into it."""
    if not array.size:
        return
    found = file.readinto(array.reshape(-1).view(np.uint8).data)
    if found != array.nbytes:
        raise OSError(errno.EIO, f"bucket file cut short: {found} of {array.nbytes} bytes", file.name)


@contextmanager
def _named_disk_errors(folder: Path) -> Iterator[None]:
    """Make a full disk an error that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = free_disk_bytes(folder)
            raise ResourceError(f"no space left for bucket files in {folder} ({free} bytes free)") from error
        raise


def _encoded(arrays: Arrays) -> Arrays:
    """Arrays with those of strings replaced by two of numbers."""
    out: Arrays = {}
    for name, array in arrays.items():
        if array.dtype.kind != "O":
            out[name] = array
            continue
        if array.ndim != 1:
            raise ValueError(
                f"column {name.removeprefix(COLUMN)!r} of strings has shape {array.shape}, expected one a row"
            )
        texts: list[bytes] = []
        lengths = np.empty(len(array), np.int64)
        for i, text in enumerate(array):
            if isinstance(text, str):
                texts.append(text.encode("utf-8", "surrogatepass"))
                lengths[i] = len(texts[-1])
            elif text is None or text != text:  # NaN is how pandas marks a missing string
                lengths[i] = -1
            else:
                raise ValueError(f"column {name.removeprefix(COLUMN)!r} holds {text!r}, expected strings")
        out[TEXT + name] = lengths
        out[TEXT_BYTES + name] = np.frombuffer(b"".join(texts), np.uint8)
    return out


def _decoded(arrays: Arrays) -> Arrays:
    """The opposite of `_encoded`; missing strings are None."""
    out: Arrays = {}
    for name, array in arrays.items():
        if name.startswith(TEXT_BYTES):
            continue
        if not name.startswith(TEXT):
            out[name] = array
            continue
        name = name.removeprefix(TEXT)
        buffer = arrays[TEXT_BYTES + name].tobytes()
        texts = np.empty(len(array), object)
        at = 0
        for i, length in enumerate(array.tolist()):
            if length >= 0:
                texts[i] = buffer[at : at + length].decode("utf-8", "surrogatepass")
                at += length
        out[name] = texts
    return out
