"""Compiled loops that check mapped bytes before anything reads them: which pieces rows touch, and what these hold.

A piece is checked at the rate at which memory gives it: `crc32c` has the steps. The next piece is fetched meanwhile: it
may lie anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google_crc32c import value
from numpy.typing import NDArray

from sparsestore.kernels.crc32c import PIECE, STEPS, WORDS, LackingInstructionError, shifts, steps
from sparsestore.kernels.native import Kernel
from sparsestore.kernels.prefetching import prefetching

__all__ = [
    "first_fault",
    "scan",
    "scan_numpy",
    "touched",
    "touched_numpy",
]

Array = NDArray[Any]

STRIP = 512  # pieces that are mapped, then checked
PIECES_MAPPED = 4  # at one fault
FETCHED = WORDS // (8 * STEPS)  # times 64 bytes of the next piece in each step, and what is left before the first


def _with_fetch() -> dict[str, Any]:
    return {**steps(), **prefetching()}


@Kernel(needs=_with_fetch)  # type: ignore[call-arg]
def scan(
    words: Array, values: Array, pieces: Array, expected: Array, shifts: Array, bound: int, out_touched: Array
) -> int:
    """Position in `pieces` of the first piece that is not as it should be, or -1.

    Parameters
    ----------
    words : uint64 array
        The bytes, of which piece number p is words 2,048 p to 2,048 (p + 1).
    values : unsigned array
        The same memory as far as it holds numbers: all must be below `bound`. Empty: whatever they are.
    pieces : (n,) int64 array
        Numbers of pieces.
    expected : (n,) uint32 array
        The crc32c of each. Empty: whatever they are.
    shifts : (3, 4, 256) uint32 array
        As `crc32c.shifts` gives them.
    out_touched : (1,) uint64 array
        A number of no meaning: for its sake the compiler keeps what touches pages ahead of their use.
    """
    size = np.uint64(PIECE) // np.uint64(values.itemsize)
    for begin in range(0, len(pieces), STRIP):
        end = min(begin + STRIP, len(pieces))
        # Linux maps 64 KiB of a file at the first touch: touched in a row, they take half of the time
        for i in range(begin, end):
            if i == begin or pieces[i] != pieces[i - 1] + 1 or pieces[i] % PIECES_MAPPED == 0:
                out_touched[0] += words[np.uint64(pieces[i]) * np.uint64(WORDS)]
        for i in range(begin, end):
            if len(values):  # before the checksum: the other way round, both together take half as long again
                start = np.uint64(pieces[i]) * size
                stop = min(start + size, np.uint64(len(values)))
                if start < stop:
                    largest = values[start]
                    for j in range(start, stop):
                        largest = max(largest, values[np.uint64(j)])
                    if np.uint64(largest) >= np.uint64(bound):
                        return i
            if len(expected):
                ahead = np.uint64(pieces[min(i + 1, end - 1)]) * np.uint64(WORDS)
                state = begin_piece(words, np.uint64(pieces[i]) * np.uint64(WORDS))  # type: ignore[name-defined]  # noqa: F821
                for _ in range(WORDS // 8 - FETCHED * STEPS):
                    fetch(words, ahead)  # type: ignore[name-defined]  # noqa: F821
                    ahead += np.uint64(8)
                for _ in range(STEPS):
                    for _ in range(FETCHED):
                        fetch(words, ahead)  # type: ignore[name-defined]  # noqa: F821
                        ahead += np.uint64(8)
                    state = step_piece(words, factors(), state)  # type: ignore[name-defined]  # noqa: F821
                if end_piece(shifts, state) != expected[i]:  # type: ignore[name-defined]  # noqa: F821
                    return i
    return -1


def scan_numpy(stored: Array, values: Array, pieces: Array, expected: Array, bound: int) -> int:
    """Twin of `scan`, over bytes, of which the last piece may have fewer than others."""
    size = PIECE // values.itemsize
    for i, piece in enumerate(pieces.tolist()):
        if len(expected) and value(stored[piece * PIECE : (piece + 1) * PIECE]) != int(expected[i]):
            return i
        if len(values) and int(values[piece * size : (piece + 1) * size].max(initial=0)) >= bound:
            return i
    return -1


def first_fault(stored: Array, values: Array, pieces: Array, expected: Array, bound: int) -> int:
    """Position of the first piece that is not as it should be, or -1, in the fastest way that this machine has.

    As `scan`, over bytes; the last number may be of a piece that has fewer than others.
    """
    whole = len(stored) // PIECE
    n = len(pieces) - int(len(pieces) > 0 and pieces[-1] >= whole)
    found = -1
    if n:
        try:
            words = stored[: whole * PIECE].view(np.uint64)
            found = scan(words, values, pieces[:n], expected[:n], shifts(), bound, np.zeros(1, np.uint64))
        except LackingInstructionError:
            found = scan_numpy(stored, values, pieces[:n], expected[:n], bound)
    if found < 0 and scan_numpy(stored, values, pieces[n:], expected[n:], bound) == 0:
        return n
    return found


@Kernel
def touched(starts: Array, lengths: Array, n: int, itemsize: int, seen: Array, out_pieces: Array) -> int:
    """Numbers of the pieces that hold entries [starts[i], starts[i] + lengths[i]) and are not in `seen`.

    Ascending and each once where the starts ascend. Fast where rows follow each other: pieces are looked at once a run.

    Parameters
    ----------
    starts : (m,) uint64 array
    lengths : (m,) int64 array
    n : int
        Entries that there are. The result is -1 where a row ends past them.
    itemsize : int
        Bytes of an entry.
    seen : (pieces,) bool array
    out_pieces : int64 array
        With room for two a row, and for each whole piece's worth of entries one more.

    Returns
    -------
    int
        How many were written to `out_pieces`.
    """
    size, found = np.uint64(itemsize), np.uint64(0)
    low, high = np.uint64(1), np.uint64(0)  # pieces from low to high were looked at last
    i = 0
    while i < len(starts):
        start = stop = np.uint64(starts[i])
        while i < len(starts) and np.uint64(starts[i]) == stop:
            stop += np.uint64(lengths[i])
            i += 1
        if stop > np.uint64(n):
            return -1
        if stop > start:
            first = start * size // np.uint64(PIECE)
            last = (stop * size - np.uint64(1)) // np.uint64(PIECE) + np.uint64(1)
            if first < low or first > high:
                low = high = first
            for piece in range(max(first, high), last):
                if not seen[np.uint64(piece)]:
                    out_pieces[found] = piece
                    found += np.uint64(1)
            high = max(high, last)
    return np.int64(found)  # type: ignore[return-value]


def touched_numpy(starts: Array, lengths: Array, n: int, itemsize: int, seen: Array, out_pieces: Array) -> int:
    """Twin of `touched`; ascending and each once in any case."""
    first, last = starts.astype(np.int64), starts.astype(np.int64) + lengths
    if len(last) and last.max() > n:
        return -1
    first, last = first[lengths > 0] * itemsize // PIECE, -(-last[lengths > 0] * itemsize // PIECE)
    steps = np.zeros(len(seen) + 1, np.int64)
    np.add.at(steps, first, 1)
    np.add.at(steps, last, -1)
    pieces = np.flatnonzero((np.cumsum(steps)[:-1] > 0) & ~seen)
    out_pieces[: len(pieces)] = pieces
    return len(pieces)
