"""Compiled loops of `verify`: what stored bytes are, found in one pass over them. What that means is judged elsewhere.

Kept as machine code like the loops of the reading path (`native`): numba, with its own cache, would cost half a second
before the first byte is checked, in which a core checks gigabytes.

Whole objects have checksums too. They are not read twice: the checksum of a whole follows from those of its parts,
since that of A followed by B is ``crc(A) * x^(8 len(B)) + crc(B)`` modulo the polynomial, in GF(2). The arithmetic is
that of M. Adler's crc32_combine (zlib 1.2.12, crc32.c: multmodp, x2nmodp), with the polynomial of crc32c.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from google_crc32c import value
from numpy.typing import NDArray

from sparsestore.kernels.checks import PIECE, WORDS, LackingInstructionError, _instructions, shift_tables
from sparsestore.kernels.native import Kernel

__all__ = [
    "combine",
    "combine_numpy",
    "combined",
    "look",
    "row_lengths",
    "row_lengths_numpy",
    "row_turns",
    "row_turns_numpy",
    "survey",
    "survey_numpy",
]

Array = NDArray[Any]

BLOCK = 32  # words of each lane at once
LANE = 21 * BLOCK
REST = WORDS - 3 * LANE
_POLYNOMIAL = 0x82F63B78  # of crc32c, its bits reversed as everywhere in such checksums


@Kernel(needs=_instructions)  # type: ignore[call-arg]
def survey(words: Array, values: Array, shifts: Array, out_crcs: Array, out_largest: Array, out_turns: Array) -> None:
    """Of each piece of 16 KiB its crc32c, its largest number, and how many numbers do not exceed the one before.

    Parameters
    ----------
    words : uint64 array
        The bytes: as many whole pieces as `out_crcs` has room for.
    values : unsigned array
        The same memory, or other, as far as it holds numbers; may be empty. The first has none before it.
    shifts : (2, 4, 256) uint32 array
        As `checks.shift_tables` gives them for `LANE` and `REST`.
    out_crcs : (n,) uint32 array
        May be empty.
    out_largest, out_turns : (m,) arrays of the dtype of `values`
        For each piece of `values`, the last of which may be short.
    """
    size = np.uint64(PIECE) // np.uint64(values.itemsize)
    step = np.uint64(3 * 8 * BLOCK) // np.uint64(values.itemsize)
    for i in range(max(len(out_crcs), len(out_largest))):
        start = np.uint64(i) * size
        stop = min(start + size, np.uint64(len(values)))
        largest = turns = values.dtype.type(0)  # narrow, so that as many are counted at once as compared
        if start < stop:
            largest = values[start]
            if i > 0:
                turns = values.dtype.type(largest <= values[start - np.uint64(1)])
        j = start + np.uint64(1)
        at = np.uint64(i) * np.uint64(WORDS)
        a, b, c = np.uint64(0xFFFFFFFF), np.uint64(0), np.uint64(0)
        # numbers and checksums by turns, as many bytes of each: they use different parts of a core, which runs them at
        # once. One after the other they take a fifth longer.
        for block in range(LANE // BLOCK + 1):
            if i < len(out_largest):
                end = min(start + step * np.uint64(block + 1), stop)
                for k in range(j, end):
                    number = values[np.uint64(k)]
                    largest = max(largest, number)
                    turns = values.dtype.type(turns + values.dtype.type(number <= values[np.uint64(k) - np.uint64(1)]))
                j = max(j, end)
            if i < len(out_crcs) and block < LANE // BLOCK:
                for _ in range(BLOCK):
                    a = crc32_of_eight(a, words[at])  # type: ignore[name-defined]  # noqa: F821
                    b = crc32_of_eight(b, words[at + np.uint64(LANE)])  # type: ignore[name-defined]  # noqa: F821
                    c = crc32_of_eight(c, words[at + np.uint64(2 * LANE)])  # type: ignore[name-defined]  # noqa: F821
                    at += np.uint64(1)
        if i < len(out_largest):
            out_largest[i] = largest
            out_turns[i] = turns
        if i < len(out_crcs):
            at += np.uint64(2 * LANE)
            for _ in range(REST):
                c = crc32_of_eight(c, words[at])  # type: ignore[name-defined]  # noqa: F821
                at += np.uint64(1)
            for k in range(4):
                byte = np.uint64(8 * k)
                c ^= np.uint64(shifts[0, k, b >> byte & np.uint64(255)])
                c ^= np.uint64(shifts[1, k, a >> byte & np.uint64(255)])
            out_crcs[i] = c ^ np.uint64(0xFFFFFFFF)


def survey_numpy(stored: Array, values: Array, out_crcs: Array, out_largest: Array, out_turns: Array) -> None:
    """Twin of `survey`, over bytes, of which the last piece may have fewer than others."""
    for i in range(len(out_crcs)):
        out_crcs[i] = value(stored[i * PIECE : (i + 1) * PIECE])
    size = PIECE // values.itemsize
    for i in range(len(out_largest)):
        part = values[i * size : (i + 1) * size]
        before = values[max(i * size - 1, 0) : (i + 1) * size]
        out_largest[i] = part.max()
        out_turns[i] = np.count_nonzero(before[1:] <= before[:-1])


def look(stored: Array, values: Array, out_crcs: Array, out_largest: Array, out_turns: Array) -> None:
    """As `survey_numpy`, in the fastest way that this machine has. `stored` begins at a multiple of 8 bytes."""
    whole = len(stored) // PIECE
    try:
        words = stored[: whole * PIECE].view(np.uint64)
        survey(words, values, _shifts(), out_crcs[:whole], out_largest, out_turns)
    except LackingInstructionError:
        survey_numpy(stored, values, out_crcs, out_largest, out_turns)
        return
    for i in range(whole, len(out_crcs)):
        out_crcs[i] = value(stored[i * PIECE :])


_shifts = functools.cache(functools.partial(shift_tables, LANE, REST))


@Kernel
def row_lengths(offsets: Array, out_lengths: Array) -> int:
    """Lengths of rows, cut off to the dtype of `out_lengths`; the largest, uncut, and negative where one is.

    Parameters
    ----------
    offsets : (n + 1,) int64 array
        Where rows begin, and the last one ends.
    out_lengths : (n,) unsigned array
    """
    longest = np.uint64(0)
    for i in range(len(out_lengths)):
        length = np.uint64(offsets[np.uint64(i) + np.uint64(1)] - offsets[np.uint64(i)])
        longest = max(longest, length)
        out_lengths[np.uint64(i)] = length
    return np.int64(longest)  # type: ignore[return-value]


def row_lengths_numpy(offsets: Array, out_lengths: Array) -> int:
    """Twin of `row_lengths`."""
    lengths = np.diff(offsets).view(np.uint64)
    out_lengths[:] = lengths.astype(out_lengths.dtype)
    return int(lengths.max(initial=0).astype(np.int64))


@Kernel
def row_turns(values: Array, lengths: Array, begin: int, out_seen: Array) -> None:
    """Count rows that begin inside of `values`, after the first, with a number not above the one before.

    Parameters
    ----------
    values : unsigned array
        Numbers of consecutive entries.
    lengths : unsigned array
        Entries of consecutive rows; one more row begins where the last of these ends.
    begin : int
        Where the first of these rows begins, counted from the first of `values`: it may be before that.
    out_seen : (3,) int64 array
        Goes from one call to the next with the same values: how many were found, whether a row begins with the first
        value, and which of the values began the last row: those up to there are done with, as an empty row begins
        where others do.
    """
    found = out_seen[0]
    begins = out_seen[1]
    last = out_seen[2]
    at = np.int64(begin)
    i = np.int64(0)
    while i <= len(lengths) and at < len(values):
        if at > last:
            found += np.int64(values[np.uint64(at)] <= values[np.uint64(at) - np.uint64(1)])
            last = at
        elif at == 0:
            begins = np.int64(1)
        if i < len(lengths):
            at += np.int64(lengths[np.uint64(i)])
        i += 1
    out_seen[0] = found
    out_seen[1] = begins
    out_seen[2] = last


def row_turns_numpy(values: Array, lengths: Array, begin: int, out_seen: Array) -> None:
    """Twin of `row_turns`."""
    at = begin + np.append(0, np.cumsum(lengths, dtype=np.int64))
    out_seen[1] |= int((at == 0).any())
    at = np.unique(at)
    at = at[(at > out_seen[2]) & (at < len(values))]
    out_seen[0] += np.count_nonzero(values[at] <= values[at - 1])
    out_seen[2] = max(out_seen[2], at.max(initial=0))


@Kernel
def combine(crcs: Array, lengths: Array, powers: Array) -> int:
    """crc32c of parts laid end to end.

    Parameters
    ----------
    crcs : (n,) uint32 array
        Of each part.
    lengths : (n,) int64 array
        Bytes of each part.
    powers : (64,) uint32 array
        As `powers` gives them.
    """
    whole = np.uint32(0)
    known, factor = np.int64(-1), np.uint32(0)
    for i in range(len(crcs)):
        if lengths[i] != known:  # mostly all are equally long
            known, factor = lengths[i], np.uint32(1 << 31)
            bits, k = np.uint64(known), 3
            while bits:
                if bits & np.uint64(1):
                    a, b, product = powers[k], factor, np.uint32(0)
                    for _ in range(32):
                        product ^= b & (np.uint32(0) - (a >> np.uint32(31)))
                        a = np.uint32(a << np.uint32(1))
                        b = np.uint32(
                            (b >> np.uint32(1)) ^ (np.uint32(_POLYNOMIAL) & (np.uint32(0) - (b & np.uint32(1))))
                        )
                    factor = np.uint32(product)
                bits >>= np.uint64(1)
                k += 1
        a, b, product = np.uint32(whole), factor, np.uint32(0)
        for _ in range(32):
            product ^= b & (np.uint32(0) - (a >> np.uint32(31)))
            a = np.uint32(a << np.uint32(1))
            b = np.uint32((b >> np.uint32(1)) ^ (np.uint32(_POLYNOMIAL) & (np.uint32(0) - (b & np.uint32(1)))))
        whole = np.uint32(product ^ crcs[i])
    return np.int64(whole)  # type: ignore[return-value]


def combine_numpy(crcs: Array, lengths: Array, powers: Array) -> int:
    """Twin of `combine`."""
    whole = 0
    for crc, length in zip(crcs.tolist(), lengths.tolist(), strict=True):
        for k in range(length.bit_length()):
            if length >> k & 1:
                whole = _product(int(powers[k + 3]), whole)
        whole ^= crc
    return whole


def _product(a: int, b: int) -> int:
    """Product of two polynomials over GF(2) modulo that of crc32c; the highest bit is that of x^0."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.cache
def _powers() -> NDArray[np.uint32]:
    """x^(2^k) for each k below 64."""
    found = [1 << 30]
    while len(found) < 64:
        found.append(_product(found[-1], found[-1]))
    return np.array(found, np.uint32)


def combined(crcs: Array, lengths: Array) -> int:
    """crc32c of parts laid end to end, from the checksum and the number of bytes of each."""
    return int(combine(np.ascontiguousarray(crcs, np.uint32), np.ascontiguousarray(lengths, np.int64), _powers()))
