"""scipy's sparse layouts, and dense ones, as blocks of rows or as triples, from arrays that are read front to back.

Every function holds at most `max_bytes` at a time, or one row where a row needs more (of a file, four times as much
and no more); arrays in memory are read as views.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore import csr
from sparsestore.csr import Rows
from sparsestore.errors import SourceError
from sparsestore.parallel import ahead
from sparsestore.sources.base import Block, Triples
from sparsestore.values import cast, misfit

__all__ = [
    "Read",
    "bsr_blocks",
    "check_range",
    "converted",
    "coo_triples",
    "csc_triples",
    "csr_blocks",
    "csr_blocks_in_order",
    "dense_blocks",
    "dia_triples",
    "reader",
    "sorted_blocks",
]

Array = NDArray[Any]
Read = Callable[[int], Array]
"""Gives the next n elements (along the first axis) of an array; fewer are an error."""

_ROW_BYTES = 32  # what a row costs while it is made canonical, beside its entries
_DUPLICATES = 1 << 20  # what a row with more entries than features may cost at any `max_bytes`
_LONG_ROW = 4  # what a row of a file may cost, in `max_bytes`
_TRIPLE_BYTES = 96  # what an entry costs while it becomes a triple


def reader(name: str, array: Array) -> Read:
    """Read an array in memory, as views."""
    at = 0

    def read(n: int) -> Array:
        nonlocal at
        part = array[at : at + n]
        if len(part) < n:
            raise SourceError(f"{name}: an array of its {len(array)} elements is too short, expected {at + n}")
        at += n
        return part

    return read


def _entry_bytes(dtype: np.dtype[Any]) -> int:
    """What an entry of a CSR block costs while it is made canonical: read, converted, sorted, checked."""
    return 3 * (8 + dtype.itemsize)


def _fitting(start: int, n: int, max_bytes: int, cost: Callable[[int], int]) -> int:
    """The highest stop in (start, n] with ``cost(stop) <= max_bytes``, at least start + 1; `cost` must not decrease."""
    return start + max(1, bisect_right(range(start + 1, n + 1), max_bytes, key=cost))


def _stop(bounds: Array, start: int, row_bytes: int, entry_bytes: int, max_bytes: int) -> int:
    """Where the rows that `max_bytes` holds end, of rows whose entries lie between the `bounds`."""
    base = int(bounds[start])
    return _fitting(
        start, len(bounds) - 1, max_bytes, lambda k: row_bytes * (k - start) + entry_bytes * (int(bounds[k]) - base)
    )


def _known_to_scipy(values: Array) -> Array:
    """The values in a dtype that scipy takes: in this machine's byte order, float16 as float32."""
    return values.astype(np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("="), copy=False)


def converted(name: str, values: Array, dtype: np.dtype[Any]) -> Array:
    """Values in the dtype; floats may be rounded, any other change is an error."""
    out, at = cast(values, dtype)
    if at is not None:
        raise SourceError(f"{name}: {misfit(values[at], dtype)}")
    return out


def _rows(
    name: str,
    first: int,
    indptr: Array,
    indices: Array,
    data: Array,
    n_features: int,
    width: int,
    dtype: np.dtype[Any],
) -> Rows:
    """Canonical rows of some of the entries of a CSR matrix; `first` is the number of the first row."""
    n = len(indptr) - 1
    data = converted(f"{name}: in rows {first} to {first + n}", data, dtype)
    if indices.dtype not in (np.int32, np.int64):
        indices = indices.astype(np.int64)
    try:
        raw = Rows(indptr - indptr[0] if indptr[0] else indptr, indices, data, n_features)
        csr.check(raw)
        if csr.is_canonical(raw):  # as most are: scipy would copy, and look again
            return Rows(raw.indptr, indices.astype(csr.index_dtype(width), copy=False), data, width)
        rows = csr.canonical(raw, first)
    except ValueError as error:
        raise SourceError(f"{name}: in rows {first} to {first + n}: {error}") from error
    return Rows(rows.indptr, rows.indices.astype(csr.index_dtype(width), copy=False), rows.data, width)


def _bounds(name: str, noun: str, read: Read, n: int, n_entries: int, max_bytes: int) -> Iterator[tuple[int, Array]]:
    """Pieces of an indptr for rows (or columns) `first` to ``first + len - 1``, each with both its ends, checked."""
    last = read(1).astype(np.int64)
    if last[0] != 0:
        raise SourceError(f"{name}: indptr starts at {int(last[0])}, expected 0")
    step = max(1, max_bytes // (2 * _ROW_BYTES))
    for first in range(0, n, step):
        piece = np.concatenate([last, read(min(step, n - first)).astype(np.int64)])
        falls = piece[1:] < piece[:-1]
        if falls.any():
            at = int(np.argmax(falls))
            raise SourceError(f"{name}: indptr falls at {noun} {first + at}: {int(piece[at])} to {int(piece[at + 1])}")
        if piece[-1] > n_entries:
            raise SourceError(f"{name}: indptr goes up to {int(piece[-1])}, but there are {n_entries} entries")
        yield first, piece
        last = piece[-1:]


def _check_row(what: str, n_bytes: int, max_bytes: int) -> None:
    """A row is held whole, and a small file can be made to have one that fills any memory."""
    most = max(_LONG_ROW * max_bytes, _DUPLICATES)
    if n_bytes > most:
        raise SourceError(
            f"{what}, which takes {n_bytes} bytes to read, expected at most {most}: give a larger max_bytes, or "
            "convert the matrix from memory"
        )


def csr_blocks(
    name: str,
    indptr: Read,
    indices: Read,
    data: Read,
    *,
    shape: tuple[int, int],
    n_entries: int,
    width: int,
    dtype: np.dtype[Any],
    max_bytes: int,
    in_memory: bool = False,
    beside_bytes: int = 0,
) -> Iterator[Block]:
    """Rows of a CSR matrix, sorted, duplicates summed; positions are rows. What stands beside one takes memory too."""
    n_rows, n_features = shape
    entry, row_bytes = _entry_bytes(dtype), _ROW_BYTES + beside_bytes
    for first, bounds in _bounds(name, "row", indptr, n_rows, n_entries, max_bytes):
        start, n = 0, len(bounds) - 1
        while start < n:
            base = int(bounds[start])
            stop = _stop(bounds, start, row_bytes, entry, max_bytes // 2)
            count = int(bounds[stop]) - base
            if not in_memory:
                if count > n_features and entry * count > max(max_bytes, _DUPLICATES) and stop == start + 1:
                    # no matrix has this; a hostile file may, to make us hold it
                    raise SourceError(f"{name}: row {first + start} has {count} entries, expected at most {n_features}")
                _check_row(f"{name}: row {first + start} has {count} entries", _ROW_BYTES + entry * count, max_bytes)
            at = first + start
            x = _rows(name, at, bounds[start : stop + 1], indices(count), data(count), n_features, width, dtype)
            yield Block(x, {}, first + stop)
            start = stop


def csr_blocks_in_order(
    name: str,
    indptr: Array,
    indices: Array,
    data: Array,
    order: NDArray[np.int64],
    *,
    shape: tuple[int, int],
    width: int,
    dtype: np.dtype[Any],
    max_bytes: int,
) -> Iterator[Block]:
    """As `csr_blocks` of a matrix in memory, but row i is row ``order[i]``; a row may take more than `max_bytes`.

    The arrays are contiguous and in this machine's byte order. Beside `max_bytes` the bounds of rows take 8 bytes each.
    What is wrong in a row is told with its number here.
    """
    # while one block is made, the one before is used
    entry, step = _entry_bytes(dtype) + 8 + dtype.itemsize, max(1, max_bytes // (4 * _ROW_BYTES))
    n_entries = min(len(indices), len(data))
    for _ in _bounds(name, "row", reader(name, indptr), shape[0], n_entries, max_bytes):
        pass  # a copy by wrong ones would leave the arrays
    bits = data.view(f"u{data.itemsize}")  # so no dtype is left out, and fewer loops are compiled
    whole = Rows(indptr.astype(np.int64, copy=False), indices, bits, shape[1])

    def pieces() -> Iterator[tuple[int, NDArray[np.int64]]]:
        for first in range(0, shape[0], step):
            rows = order[first : first + step]
            bounds = np.concatenate([[0], np.cumsum(whole.indptr[1:][rows] - whole.indptr[:-1][rows])])
            start = 0
            while start < len(rows):
                stop = _stop(bounds, start, 2 * _ROW_BYTES, entry, max_bytes // 4 * 3)
                yield first + start, rows[start:stop]
                start = stop

    same = _all_same(bits)
    values = bits[:0]

    def block(piece: tuple[int, NDArray[np.int64]]) -> Block:
        nonlocal values
        at, rows = piece
        if same:  # as those of clicks are: nothing to copy
            ends, numbers = whole.take_indices(rows)
            if len(values) < len(numbers):
                values = np.full(len(numbers), bits[0])
            taken = Rows(ends, numbers, values[: len(numbers)], shape[1])
        else:
            taken = whole.take(rows)
        x = _rows(name, at, taken.indptr, taken.indices, taken.data.view(data.dtype), shape[1], width, dtype)
        return Block(x, {}, at + len(rows))

    with closing(ahead(block, pieces())) as blocks:
        yield from blocks


def _all_same(values: Array) -> bool:
    """Whether there is one value, however often; soon told where there are several."""
    step = 1 << 20
    return len(values) > 0 and not any(
        (values[start : start + step] != values[0]).any() for start in range(0, len(values), step)
    )


def bsr_blocks(
    name: str,
    indptr: Read,
    indices: Read,
    data: Read,
    *,
    shape: tuple[int, int],
    block: tuple[int, int],
    n_entries: int,
    width: int,
    dtype: np.dtype[Any],
    max_bytes: int,
    in_memory: bool = False,
) -> Iterator[Block]:
    """Rows of a BSR matrix; the zeros that only fill its blocks are dropped; positions are rows."""
    from scipy.sparse import bsr_array

    n_rows, n_features = shape
    height, length = block
    entry = 2 * _entry_bytes(dtype) * height * length
    for first, bounds in _bounds(name, "block row", indptr, n_rows // height, n_entries, max_bytes // height):
        start, n = 0, len(bounds) - 1
        while start < n:
            base = int(bounds[start])
            stop = _stop(bounds, start, _ROW_BYTES * height, entry, max_bytes // 2)
            count = int(bounds[stop]) - base
            if count > n_features // length and entry * count > max(max_bytes, _DUPLICATES) and stop == start + 1:
                raise SourceError(
                    f"{name}: block row {first + start} has {count} blocks, expected at most {n_features // length}"
                )
            if not in_memory:
                what = f"{name}: block row {first + start}, of {height} rows, has {count} blocks of {height} x {length}"
                _check_row(what, _ROW_BYTES * height + entry * count, max_bytes)
            at, numbers = (first + start) * height, indices(count)
            if count and not 0 <= int(numbers.min()) <= int(numbers.max()) < n_features // length:
                raise SourceError(
                    f"{name}: in rows {at} to {(first + stop) * height}: block numbers {int(numbers.min())} to "
                    f"{int(numbers.max())}, expected 0 to {n_features // length - 1}"
                )
            blocks = bsr_array(
                (_known_to_scipy(data(count)), numbers, bounds[start : stop + 1] - base),
                shape=((stop - start) * height, n_features),
            )
            rows = blocks.tocsr()
            rows.eliminate_zeros()
            x = _rows(name, at, rows.indptr, rows.indices, rows.data, n_features, width, dtype)
            yield Block(x, {}, (first + stop) * height)
            start = stop


def sorted_blocks(
    name: str,
    row: Array,
    col: Array,
    data: Array,
    *,
    shape: tuple[int, int],
    width: int,
    dtype: np.dtype[Any],
    max_bytes: int,
) -> Iterator[Block]:
    """Rows of a COO matrix in memory, duplicates summed; positions are rows.

    Beside `max_bytes` at most 28 bytes an entry (none where the rows ascend already), nothing that grows with the rows.
    """
    n_rows, n_features = shape
    check_range(name, "row", row, n_rows)
    order = None if bool((row[1:] >= row[:-1]).all()) else np.argsort(row, kind="stable")
    ascending = row if order is None else row[order]
    entry = 8 + 2 * _entry_bytes(dtype)
    start = at = 0

    def entries_before(stop: int) -> int:
        # a number of another dtype would make numpy convert the whole array
        return int(np.searchsorted(ascending, ascending.dtype.type(stop)))

    def cost(stop: int) -> int:
        return _ROW_BYTES * (stop - start) + entry * (entries_before(stop) - at)

    while start < n_rows:
        stop = _fitting(start, n_rows, max_bytes, cost)
        to = entries_before(stop)
        some: Any = slice(at, to) if order is None else order[at:to]
        indptr = np.zeros(stop - start + 1, np.int64)
        np.cumsum(np.bincount(ascending[at:to] - start, minlength=stop - start), out=indptr[1:])
        x = _rows(name, start, indptr, col[some], data[some], n_features, width, dtype)
        yield Block(x, {}, stop)
        start, at = stop, to


def check_range(name: str, noun: str, values: Array, stop: int) -> None:
    """Raise SourceError where a number lies outside 0 to `stop`."""
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < stop:
        raise SourceError(
            f"{name}: {noun} numbers from {int(values.min())} to {int(values.max())}, expected 0 to {stop - 1}"
        )


def dense_blocks(
    name: str,
    read: Callable[[int, int], Array],
    shape: tuple[int, int],
    *,
    width: int,
    dtype: np.dtype[Any],
    max_bytes: int,
    beside_bytes: int = 0,
    first: int = 0,
) -> Iterator[Block]:
    """Rows of a dense matrix from the `first` on, in C or Fortran order; zeros are dropped; positions are rows.

    ``read(start, stop)`` gives rows as they are, of up to 8 bytes an element; `shape` counts the rows from 0.
    """
    # at worst every element is an entry: read, where it is, its index thrice, its value twice, the last block's
    step = max(1, max_bytes // (_ROW_BYTES + beside_bytes + shape[1] * (40 + 3 * dtype.itemsize)))
    for start in range(first, shape[0], step):
        part = read(start, min(start + step, shape[0]))
        rows = csr.from_dense(part.astype(part.dtype.newbyteorder("="), copy=False))
        indices = rows.indices.astype(csr.index_dtype(width), copy=False)
        values = converted(f"{name}: in rows {start} to {start + len(part)}", rows.data, dtype)
        yield Block(Rows(rows.indptr, indices, values, width), {}, start + len(part))


def csc_triples(
    name: str,
    indptr: Read,
    indices: Read,
    data: Read,
    *,
    shape: tuple[int, int],
    n_entries: int,
    dtype: np.dtype[Any],
    max_bytes: int,
) -> Iterator[Triples]:
    """Entries of a CSC matrix, column after column; positions are entries."""
    step = max(1, max_bytes // 2 // _TRIPLE_BYTES)
    for first, bounds in _bounds(name, "column", indptr, shape[1], n_entries, max_bytes // 2):
        for start in range(int(bounds[0]), int(bounds[-1]), step):
            stop = min(start + step, int(bounds[-1]))
            rows = indices(stop - start).astype(np.int64)
            check_range(name, "row", rows, shape[0])
            low, high = np.searchsorted(bounds, [start, stop - 1], side="right") - 1
            counts = np.diff(np.clip(bounds[low : high + 2], start, stop))
            columns = np.repeat(np.arange(first + low, first + high + 1), counts)
            yield Triples(rows, columns, converted(name, data(stop - start), dtype), stop)


def coo_triples(
    name: str,
    row: Read,
    col: Read,
    data: Read,
    *,
    shape: tuple[int, int],
    n_entries: int,
    dtype: np.dtype[Any],
    max_bytes: int,
) -> Iterator[Triples]:
    """Entries of a COO matrix in its own order; positions are entries."""
    step = max(1, max_bytes // _TRIPLE_BYTES)
    for start in range(0, n_entries, step):
        n = min(step, n_entries - start)
        rows, columns = row(n).astype(np.int64), col(n).astype(np.int64)
        check_range(name, "row", rows, shape[0])
        check_range(name, "column", columns, shape[1])
        yield Triples(rows, columns, converted(name, data(n), dtype), start + n)


def dia_triples(
    name: str, offsets: Array, data: Read, length: int, *, shape: tuple[int, int], dtype: np.dtype[Any], max_bytes: int
) -> Iterator[Triples]:
    """Entries of a DIA matrix, diagonal after diagonal, zeros dropped; positions are elements of `data`.

    Element j of the diagonal at offset k, of `length` elements, is entry (j - k, j); what lies outside is padding.
    """
    step = max(1, max_bytes // _TRIPLE_BYTES)
    done = 0
    for number in offsets.tolist():
        offset = min(max(number, -shape[0]), shape[1])  # beyond these there is no element: keep clear of int64's ends
        for start in range(0, length, step):
            values = data(min(step, length - start))
            columns = np.arange(start, start + len(values))
            rows = columns - offset
            kept = (rows >= 0) & (rows < shape[0]) & (columns < shape[1]) & (values != 0)
            done += len(values)
            yield Triples(rows[kept], columns[kept], converted(name, values[kept], dtype), done)
