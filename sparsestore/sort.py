"""Put rows in order in bounded memory: triples into rows, rows into a random order.

Both are bucket sorts of two passes. Pass 1 deals the input out to bucket files, pass 2 sorts one bucket at a time in
memory; a bucket that turns out too large for that is dealt out again. What fits in memory touches no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.buckets import (
    COLUMN,
    Arrays,
    BucketFiles,
    batched,
    chained,
    drained,
    filled,
    joined,
    nbytes,
    number_of_files,
    power_below,
    scratch_folder,
)
from sparsestore.csr import Rows, firsts, index_dtype
from sparsestore.errors import ResourceError
from sparsestore.memory import give_back
from sparsestore.parallel import ahead
from sparsestore.plan import shuffle
from sparsestore.sources.base import Block, Triples
from sparsestore.values import cast, misfit, overflow, sums

__all__ = ["KEY_ROWS", "KEY_STREAM", "ORDER_BYTES", "Duplicates", "random_order", "shuffled_blocks", "sorted_rows"]

Array = NDArray[Any]
Duplicates = Literal["sum", "last", "error"]

KEY_STREAM = shuffle.CONVERSION
"""Stream of `plan.shuffle.words` that conversion draws its keys from."""
KEY_ROWS = 65_536
"""Rows that share one draw of keys. Part of the order that a seed stands for: it can not change."""

ORDER_BYTES = 24
"""Bytes of memory a row that `random_order`, or `sorted_rows` with an order, takes at most."""

FRAME_BYTES = 256 << 10  # of a bucket that are written together, about
MAX_BLOCK_ROWS = 1 << 20
BLOCK_ENTRIES = 1 << 19
ROW_BYTES = 4 << 20  # a row may take so much at any `max_bytes`

# names of the arrays that rows travel as
MASKED = ".mask"  # behind a column's name, which can not end so
ENTRIES = ("indices", "data")  # arrays with an element an entry, not a row


# ------------------------------------------------------------------------------------------------- triples into rows


def sorted_rows(
    triples: Iterable[Triples],
    n_rows: int | None,
    n_features: int | None,
    *,
    dtype: DTypeLike | None,
    max_bytes: int,
    scratch: Path,
    duplicates: Duplicates = "sum",
    size: int | None = None,
    order: NDArray[np.int64] | None = None,
    name: str = "the triples",
    whole: bool = False,
) -> Iterator[Rows]:
    """Sort triples into canonical rows: a two-pass bucket sort over bands of rows.

    Memory stays within `max_bytes` (plus 2 MiB), as long as the blocks of `triples` take at most an eighth of it and
    no single row needs more than half: entries waiting for pass 1 take a quarter, their scattered copy a quarter, and
    in pass 2 a band with all its copies a half. A row that alone exceeds this is held whole, up to all of `max_bytes`.
    Where `triples` needs more than a quarter, every entry is written to disk once and read once (a skewed band twice).

    Parameters
    ----------
    triples : iterable of Triples
        Entries in any order.
    n_rows, n_features : int, optional
        Shape of the matrix; rows without entries are rows. None: as the last entries tell, or `Triples.n_rows`. Then
        bands are made for the rows that the first quarter of `max_bytes` has; entries of higher ones go to a band of
        their own, which is dealt out again.
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
    order : (n_rows,) int64 array, optional
        Another order of the rows, such as `random_order`: row i given is row ``order[i]`` of the triples. It takes
        `ORDER_BYTES` a row beside `max_bytes`, and saves the pass that shuffling the rows afterwards would need.
    name : str
        What messages call the triples: the file that they are from.
    whole : bool
        Floats are whole numbers, and a sum that would be rounded is an error.

    Yields
    ------
    Rows
        Consecutive rows, at most 1,048,576 at a time, together all `n_rows`. A block stays valid after the next.

    Raises
    ------
    ValueError
        An entry outside the shape, a value that `dtype` can not hold, or a duplicate where those are errors.
    ResourceError
        Too little disk space, or a row that alone takes more than `max_bytes`.
    """
    if duplicates not in ("sum", "last", "error"):
        raise ValueError(f"duplicates must be 'sum', 'last' or 'error', found {duplicates!r}")
    block_rows = power_below(max(1, min(MAX_BLOCK_ROWS, max_bytes // 64)))
    budgets = max_bytes // 4, max_bytes // 2
    sorter = _TripleSort(n_rows, n_features, duplicates, block_rows, *budgets, order, name=name, whole=whole)
    if order is not None:
        sorter.ranks = np.empty(len(order), np.int64)
        sorter.ranks[order] = np.arange(len(order))
    stream = sorter.checked(triples, dtype)
    held, n_bytes, position = filled(stream, sorter.hold_bytes)
    if n_bytes <= sorter.hold_bytes:
        yield from sorter.emit(joined(held) if held else sorter.nothing(dtype), 0, sorter.rows_known)
        return
    estimate = n_bytes * size // position if size and position else None
    stop = sorter.rows_known
    if n_rows is None and size and position and _ascends(held):
        stop = stop * size // position
    with scratch_folder(scratch, estimate) as folder:
        rest = (arrays for arrays, _ in stream)
        yield from sorter.spilled(chained(held, rest), folder, 0, max(1, stop), estimate, open_end=n_rows is None)


def _ascends(held: deque[Arrays]) -> bool:
    """Whether rows come more or less in order, so that higher ones are to come."""
    return len(held) > 1 and int(held[-1]["row"].min()) >= int(held[0]["row"].max())


@dataclass
class _TripleSort:
    """One sort. Entries travel as dicts of three arrays: "row" (unsigned), "feature", "value"."""

    n_rows: int | None
    n_features: int | None
    duplicates: Duplicates
    block_rows: int
    hold_bytes: int
    band_bytes: int
    order: NDArray[np.int64] | None = None
    ranks: NDArray[np.int64] | None = None
    name: str = "the triples"
    whole: bool = False
    rows_seen: int = 0
    features_seen: int = 0

    @property
    def rows_known(self) -> int:
        """How many rows there are; once all entries were seen where the shape was not given."""
        return self.rows_seen if self.n_rows is None else self.n_rows

    @property
    def width(self) -> int:
        """How many features there are, as `rows_known`."""
        return self.features_seen if self.n_features is None else self.n_features

    def original(self, row: int) -> int:
        """Number of a row among the triples."""
        return row if self.order is None else int(self.order[row])

    def nothing(self, dtype: DTypeLike | None) -> Arrays:
        return {
            "row": np.zeros(0, np.uint32),
            "feature": np.zeros(0, index_dtype(self.width)),
            "value": np.zeros(0, dtype if dtype is not None else np.float32),
        }

    def checked(self, triples: Iterable[Triples], dtype: DTypeLike | None) -> Iterator[tuple[Arrays, int]]:
        """Entries in the dtypes of this sort; compiled loops write where they say, so they are checked here again."""
        to = np.dtype(dtype) if dtype is not None else None
        for block in triples:
            self.rows_seen = max(self.rows_seen, block.n_rows)
            if len(block.rows) == 0:
                continue
            highest = []
            for name, numbers, limit in (
                ("row", block.rows, self.n_rows),
                ("feature", block.features, self.n_features),
            ):
                low, high = int(numbers.min()), int(numbers.max())
                if low < 0 or (limit is not None and high >= limit):
                    expected = "at least 0" if limit is None else f"0 to {limit - 1}"
                    found = low if low < 0 else high
                    raise ValueError(f"{self.name}: {name} number {found} found, expected {expected}")
                highest.append(high)
            self.rows_seen = max(self.rows_seen, highest[0] + 1)
            self.features_seen = max(self.features_seen, highest[1] + 1)
            to = to or block.values.dtype
            row_dtype = np.uint32 if self.rows_known <= 2**32 else np.uint64
            rows = block.rows if self.ranks is None else self.ranks[block.rows]
            yield (
                {
                    "row": rows.astype(row_dtype),
                    "feature": block.features.astype(index_dtype(self.width)),
                    "value": _cast(self.name, block.values, to, block.rows, block.features),
                },
                block.position,
            )

    def spilled(
        self,
        stream: Iterable[Arrays],
        folder: Path,
        start: int,
        stop: int,
        estimate: int | None,
        *,
        open_end: bool = False,
    ) -> Iterator[Rows]:
        """Rows start to stop, by way of a file for each band of rows; with an open end the last one's go on behind."""
        n_files = number_of_files(estimate, self.band_bytes // 3)  # in memory a band takes up to 3 times its bytes
        shift = max(0, (stop - start - 1).bit_length() - (n_files.bit_length() - 1))
        n_bands = ((stop - start - 1) >> shift) + 1
        files = BucketFiles(folder, n_bands)
        with files.writing():
            for held in batched(stream, self.hold_bytes):
                for band, arrays in _scattered(held, start, shift, n_bands):
                    files.append(band, arrays)
                    del arrays
        emitted = 0
        for band in range(n_bands):
            first, last = start + (band << shift), min(stop, start + ((band + 1) << shift))
            if open_end:  # all entries are known by now, and with them how many rows there are: more or fewer
                last = self.rows_known if band == n_bands - 1 else min(last, self.rows_known)
                if last <= first:
                    files.remove(band)
                    continue
            if last - first == 1:
                self.check_row(first, files.n_entries(band), self.entry_bytes(files))
            if last - first == 1 or files.n_entries(band) * self.entry_bytes(files) <= self.band_bytes:
                yield from self.emit(files.load(band), first, last)
            else:
                inner = folder / f"{band}.split"
                yield from self.spilled(files.frames(band), inner, first, last, files.n_bytes(band))
            files.remove(band)
            emitted += files.n_bytes(band)
            if emitted > self.band_bytes:  # not each time: pages that are given back have to be made again
                give_back()
                emitted = 0

    def check_row(self, row: int, n_entries: int, entry_bytes: int) -> None:
        """A row is sorted whole: what a small file expands to must not fill the memory."""
        n_bytes, most = n_entries * entry_bytes, max(2 * self.band_bytes, ROW_BYTES)
        if n_bytes > most:
            raise ResourceError(
                f"row {self.original(row)} has {n_entries} entries, which take {n_bytes} bytes to sort, expected at "
                f"most {most}: give a larger max_bytes"
            )

    def entry_bytes(self, files: BucketFiles) -> int:
        """Most bytes that an entry of a band takes in pass 2."""
        feature, value = files.dtypes["feature"].itemsize, files.dtypes["value"].itemsize
        record = files.dtypes["row"].itemsize + feature + value
        # read and placed; read and cut into blocks; placed, merged, with a mask, starts and sums of 8 bytes
        return max(record + feature + value, 2 * record, 2 * (feature + value) + 17)

    def emit(self, arrays: Arrays, start: int, stop: int) -> Iterator[Rows]:
        """Rows start to stop of entries in memory, in blocks of at most `block_rows`; empties `arrays`."""
        # placing entries in blocks that the processor's cache holds is 3 times faster than placing all at once
        parts = len(arrays["row"]) // BLOCK_ENTRIES + 1
        block_rows = max(1, min(self.block_rows, power_below(max(1, stop - start)) // parts))
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
        feature = feature.astype(index_dtype(self.width), copy=False)  # a wider one may have come with another band
        arrays.clear()
        indptr = np.zeros(stop - start + 1, np.int64)
        bucket.count(row, np.uint64(start), np.uint64(0), indptr[1:])
        np.cumsum(indptr, out=indptr)
        indices, data = np.empty_like(feature), np.empty_like(value)
        cursors = indptr[:-1].astype(np.uint64)
        bucket.place(row, feature, bucket.as_bits(value), np.uint64(start), cursors, indices, bucket.as_bits(data))
        del row, feature, value, cursors
        bucket.sort_in_rows(indptr, indices, bucket.as_bits(data))
        return self.merged(Rows(indptr, indices, data, self.width), start)

    def merged(self, rows: Rows, start: int) -> Rows:
        """The rows with entries at the same place made one."""
        if rows.nnz < 2:
            return rows
        fresh = firsts(rows)
        if fresh.all():
            return rows
        if self.duplicates == "error":
            at = int(np.argmin(fresh))
            row = self.original(start + int(np.searchsorted(rows.indptr, at, side="right")) - 1)
            raise ValueError(
                f"{self.name}: row {row} has feature {int(rows.indices[at])} more than once: "
                "give duplicates='sum' or duplicates='last' to accept that"
            )
        starts = np.flatnonzero(fresh)
        indptr = np.searchsorted(starts, rows.indptr)
        indices = rows.indices[starts]
        if self.duplicates == "last":
            data = rows.data[np.append(starts[1:], rows.nnz) - 1]
        else:
            data, bad = sums(rows.data, starts, whole=self.whole)
            if bad is not None:
                row = self.original(start + int(np.searchsorted(rows.indptr, starts[bad], side="right")) - 1)
                raise ValueError(f"{self.name}: row {row}, feature {int(indices[bad])}: {overflow(data.dtype)}")
        return Rows(indptr.astype(np.int64, copy=False), indices, data, self.width)


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
    dtypes = {name: np.result_type(*{piece[name].dtype for piece in pieces}) for name in pieces[0]}
    out = {name: np.empty(int(bounds[-1]), dtype) for name, dtype in dtypes.items()}
    for piece in drained(pieces):
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


def _cast(name: str, values: Array, dtype: np.dtype[Any], rows: Array, features: Array) -> Array:
    """Values in `dtype`; rounding of floats is fine, any other change is an error."""
    out, at = cast(values, dtype)
    if at is not None:
        raise ValueError(f"{name}: row {int(rows[at])}, feature {int(features[at])}: {misfit(values[at], dtype)}")
    return out


# --------------------------------------------------------------------------------------------- rows in a random order


def random_order(n_rows: int, seed: int) -> NDArray[np.int64]:
    """The order in which `shuffled_blocks` gives so many rows: row i of it is row ``order[i]`` of the input.

    Examples
    --------
    >>> random_order(5, seed=0)
    array([4, 0, 3, 2, 1])
    """
    keys = np.empty(n_rows, np.uint64)
    for window, start in enumerate(range(0, n_rows, KEY_ROWS)):
        part = keys[start : start + KEY_ROWS]
        part[:] = shuffle.words(seed, KEY_STREAM, 0, window, KEY_ROWS)[: len(part)]
    return shuffle.sorted_order(keys)


def shuffled_blocks(
    blocks: Iterable[Block],
    *,
    seed: int,
    max_bytes: int,
    scratch: Path,
    first_row_id: int = 0,
    size: int | None = None,
    numbered: bool = False,
) -> Iterator[Block]:
    """Shuffle all rows exactly, each order equally likely, in bounded memory.

    Row i gets a random 64-bit key, word ``i % 65536`` of ``plan.shuffle.words(seed, 4, 0, i // 65536, ...)``, and the
    output is sorted by key (rows with equal keys keep their order). So the order is a pure function of the number of
    rows and the seed, whatever the blocks and `max_bytes`. Buckets take the highest bits of the key.

    Memory stays within `max_bytes` (plus 2 MiB), as long as the incoming blocks take at most an eighth of it and no
    single row more: rows waiting for pass 1 take a quarter, and while they are dealt out as much once more; in pass 2
    the bucket that is given out and the one that is read meanwhile take a quarter each, their orders and the block
    handed out another. Columns of strings are estimated. Where the input takes more than a quarter it is written to
    disk once and read once; values that are all the same are not.

    Parameters
    ----------
    blocks : iterable of Block
        Rows with columns of any dtype, (n,) or (n, k), strings too; every block has the same columns, each masked there
        or not.
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
    numbered : bool
        Whether blocks bring the numbers of their rows, as column "row_id".

    Yields
    ------
    Block
        Rows in their new order with the added column "row_id" (int64): `first_row_id` + the row's incoming number.
        `position` counts the rows given so far. Strings come as object arrays.

    Raises
    ------
    ValueError
        A block with other columns than the first, or with a column "row_id" that is not expected.
    ResourceError
        Too little disk space.
    """
    shuffler = _RowShuffle(max_bytes // 4, max_bytes // 4, max(1, max_bytes // 8))
    stream = shuffler.keyed(blocks, seed, first_row_id, numbered)
    held, n_bytes, position = filled(stream, shuffler.hold_bytes)
    if n_bytes <= shuffler.hold_bytes:
        if held:
            yield from shuffler.emit(shuffler.in_order(shuffler.joined(held)))
        return
    estimate = n_bytes * size // position if size and position else None
    with scratch_folder(scratch, estimate) as folder:
        rest = (arrays for arrays, _ in stream)
        yield from shuffler.spilled(chained(held, rest), folder, 0, estimate)


class _RowShuffle:
    """One shuffle. Rows travel as dicts of arrays: "key", "length", the entries "indices" and "data", and columns.

    As long as all values are the same, rows travel without "data", and as long as no value of a column is missing,
    without its mask. The first block with others ends that, so that rows without are the first ones of every bucket.
    """

    def __init__(self, hold_bytes: int, bucket_bytes: int, block_bytes: int) -> None:
        self.hold_bytes = hold_bytes
        self.bucket_bytes = bucket_bytes
        self.block_bytes = block_bytes
        self.n_features = 0  # of the widest block so far; complete before the first row is given out
        self.dtype: np.dtype[Any] = np.dtype(bool)  # of all values
        self.constant: Array | None = None  # (1,): the value of all entries of rows without "data"
        self.is_constant = True
        self.masks: list[str] = []  # of the columns that had one so far
        self.n_given = 0

    def keyed(
        self, blocks: Iterable[Block], seed: int, first_row_id: int, numbered: bool
    ) -> Iterator[tuple[Arrays, int]]:
        """Rows with their key and `row_id`, and the position in the input."""
        row, window, words = 0, -1, np.zeros(0, np.uint64)
        names: set[str] | None = None
        for block in blocks:
            n = len(block.x)
            if "row_id" in block.columns and not numbered:
                raise ValueError(
                    "the source has a column 'row_id' already, which shuffling adds: leave it out or rename it"
                )
            found = set(block.columns)
            if names is not None and names != found:
                raise ValueError(f"columns {sorted(found)} from row {row} on, expected {sorted(names)}")
            names = found
            columns = self.movable(block.columns)
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
                    **({} if self.is_the_same(x.data) else {"data": x.data}),
                    **({} if numbered else {COLUMN + "row_id": row_id}),
                    **columns,
                },
                block.position,
            )
            row += n

    def spilled(self, stream: Iterable[Arrays], folder: Path, used: int, estimate: int | None) -> Iterator[Block]:
        """Rows in order of key, by way of a file for each value of the key's bits after the first `used`."""
        bits = min(number_of_files(estimate, self.bucket_bytes).bit_length() - 1, 64 - used)
        files = BucketFiles(folder, 1 << bits)
        with files.writing():
            for held in batched(stream, min(self.hold_bytes, FRAME_BYTES << bits)):
                self.deal(held, files, used, bits)
        emitted = 0
        last = used + bits == 64

        def small(bucket: int) -> bool:
            """Whether a bucket may be in memory: its arrays, an order, an indptr and the starts of its rows."""
            n_rows = files.n_entries(bucket)
            return (
                n_rows <= 1
                or last
                or files.n_bytes(bucket) + self.lacking(files, bucket) + 24 * n_rows <= (self.bucket_bytes)
            )

        def load(bucket: int) -> Arrays | None:
            if not small(bucket):
                return None
            arrays = self.in_order(files.load(bucket)) if files.n_entries(bucket) else {}
            files.remove(bucket)
            return arrays

        with closing(ahead(load, range(1 << bits))) as loaded:
            for bucket, arrays in enumerate(loaded):
                if arrays:
                    yield from self.emit(arrays)
                elif arrays is None:
                    inner = folder / f"{bucket}.split"
                    yield from self.spilled(files.frames(bucket), inner, used + bits, files.n_bytes(bucket))
                    files.remove(bucket)
                del arrays
                emitted += files.n_bytes(bucket)
                if emitted > self.bucket_bytes:
                    give_back()
                    emitted = 0

    def movable(self, columns: Mapping[str, Array]) -> Arrays:
        """Columns as they travel: numpy's strings of variable width as objects, masks beside their columns."""
        out: Arrays = {}
        for name, values in columns.items():
            mask = COLUMN + name + MASKED
            masked = isinstance(values, np.ma.MaskedArray)
            if masked and mask not in self.masks:
                self.masks.append(mask)
            if mask in self.masks:
                out[mask] = np.ma.getmaskarray(values)
            values = np.ma.getdata(values) if masked else values
            out[COLUMN + name] = values.astype(object) if values.dtype.kind == "T" else values
        return out

    def is_the_same(self, data: Array) -> bool:
        """Whether all values so far are the same, to the last bit."""
        self.dtype = np.promote_types(self.dtype, data.dtype)
        if self.is_constant and len(data):
            if self.constant is None:
                self.constant = data[:1].copy()
            bits = data.view(f"u{data.itemsize}")
            same = data.dtype == self.constant.dtype and bits[0] == self.constant.view(bits.dtype)[0]
            self.is_constant = bool(same and (bits == bits[0]).all())
        return self.is_constant

    def lacking(self, files: BucketFiles, bucket: int) -> int:
        """Bytes of the values and masks that a bucket's rows came without, where others came with theirs."""
        n_bytes = sum(files.n_entries(bucket) - files.n_entries(bucket, mask) for mask in self.masks)
        if self.is_constant:
            return n_bytes
        n = files.n_entries(bucket, "indices") - files.n_entries(bucket, "data")
        return n_bytes + files.dtypes["data"].itemsize * n

    def completed(self, arrays: Arrays) -> Arrays:
        """With the masks of all rows, and the values of all entries, where some need theirs."""
        for mask in self.masks:
            shape = arrays[mask.removesuffix(MASKED)].shape
            known = arrays.get(mask, np.empty((0, *shape[1:]), bool))
            if n := shape[0] - len(known):
                arrays = {**arrays, mask: np.concatenate([np.zeros((n, *shape[1:]), bool), known])}
        there = arrays.get("data")
        n = len(arrays["indices"]) - (0 if there is None else len(there))
        if self.is_constant or self.constant is None or (there is not None and not n):
            return arrays
        dtype = self.constant.dtype if there is None else np.promote_types(self.constant.dtype, there.dtype)
        data = np.full(len(arrays["indices"]), self.constant[0], dtype)
        data[n:] = () if there is None else there
        return {**arrays, "data": data}

    def deal(self, held: deque[Arrays], files: BucketFiles, used: int, bits: int) -> None:
        """Append the rows held to the files of their buckets, in their order; empties `held`."""
        arrays = self.joined(held)
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
        data = arrays.get("data")
        _, indices, values = _taken(indptr, arrays["indices"], data, order)
        rest = {name: array[order] for name, array in arrays.items() if name not in ENTRIES}
        return {**rest, "indices": indices, **({} if values is None else {"data": values})}

    def joined(self, held: deque[Arrays]) -> Arrays:
        """One dict of all arrays; empties `held`."""
        for _ in range(len(held)):
            held.append(self.completed(held.popleft()))
        return joined(held)

    def in_order(self, arrays: Arrays) -> Arrays:
        """With the order of the rows in place of their keys."""
        order = shuffle.sorted_order(arrays.pop("key"))
        return {**self.completed(arrays), "order": order}

    def emit(self, arrays: Arrays) -> Iterator[Block]:
        """Blocks of the rows in order, gathered a block at a time."""
        order = arrays.pop("order")
        indptr = np.zeros(len(order) + 1, np.int64)
        np.cumsum(arrays["length"], out=indptr[1:])
        columns = {name.removeprefix(COLUMN): array for name, array in arrays.items() if name.startswith(COLUMN)}
        masks = {name: columns.pop(name + MASKED) for name in list(columns) if name + MASKED in columns}
        data = arrays.get("data")
        n_bytes = (nbytes(arrays) + self.dtype.itemsize * len(arrays["indices"]) * (data is None)) // len(order) + 1
        step = max(1, self.block_bytes // n_bytes)
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            self.n_given += len(rows)
            given = {name: array[rows] for name, array in columns.items()}
            given |= {name: np.ma.array(given[name], mask=mask[rows]) for name, mask in masks.items()}
            ends, indices, values = _taken(indptr, arrays["indices"], data, rows)
            if values is None:
                values = np.full(len(indices), 0 if self.constant is None else self.constant[0], self.dtype)
            x = Rows(ends, indices, values, self.n_features)
            yield Block(x, given, self.n_given)


def _taken(
    indptr: NDArray[np.int64], indices: Array, data: Array | None, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Array, Array | None]:
    """Copy the rows in that order, values as bits: no dtype is left out, and fewer loops are compiled."""
    from sparsestore.kernels import bucket

    if data is None:
        return *Rows(indptr, indices, np.empty(0, np.uint8), 0).take_indices(order), None
    bits = Rows(indptr, indices, bucket.as_bits(data), 0).take(order)
    return bits.indptr, bits.indices, bits.data.view(data.dtype)
