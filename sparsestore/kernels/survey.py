"""Compiled loops of `verify`: what stored bytes are, found in one pass over them. What that means is judged elsewhere.

Kept as machine code like the loops of the reading path (`native`): numba, with its own cache, would cost half a second
before the first byte is checked, in which a core checks gigabytes.

Whole objects have checksums too. They are not read twice: the checksum of a whole follows from those of its parts,
since that of A followed by B is ``crc(A) * x^(8 len(B)) + crc(B)`` modulo the polynomial, in GF(2). The arithmetic is
that of M. Adler's crc32_combine (zlib 1.2.12, crc32.c: multmodp, x2nmodp), with the polynomial of crc32c.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from types import FunctionType
from typing import Any

import numpy as np
from google_crc32c import value
from numpy.typing import NDArray

from sparsestore.kernels.crc32c import PIECE, STEPS, WORDS, LackingInstructionError, shifts, steps
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
    "sweep",
    "sweep_numpy",
    "swept",
]

Array = NDArray[Any]

BLOCK = 24  # steps at once, of a checksum
PORTION = -(-PIECE * BLOCK // (STEPS * 128)) * 128  # bytes of numbers at once: as many, and whole rounds of the loop
_POLYNOMIAL = 0x82F63B78  # of crc32c, its bits reversed as everywhere in such checksums


def _piece(
    words: Array, at: Any, values: Array, start: Any, stop: Any, before: Any, counts: Any, sums: Any, shifts: Array
) -> Any:
    """Largest number, turns and crc32c of a piece: words from `at` on, and numbers `start` to `stop`.

    `before` is the number before the first; 0 and `counts` false where there is none. The crc32c only where `sums`.
    """
    portion = np.uint64(PORTION) // np.uint64(values.itemsize)
    largest = turns = values.dtype.type(0)  # narrow, so that as many are counted at once as compared
    if start < stop:
        largest = values[start]
        turns = values.dtype.type(counts and largest <= before)
    j = start + np.uint64(1)
    state = no_piece()  # type: ignore[name-defined]  # noqa: F821
    if sums:
        state = begin_piece(words, at)  # type: ignore[name-defined]  # noqa: F821
    # numbers and checksums by turns, as many bytes of each: they use different parts of a core, which runs them at
    # once. One after the other they take a fifth longer.
    for block in range(STEPS // BLOCK):
        if start < stop:
            end = min(start + np.uint64(1) + portion * np.uint64(block + 1), stop)
            for k in range(j, end):
                number = values[np.uint64(k)]
                largest = max(largest, number)
                turns = values.dtype.type(turns + values.dtype.type(number <= values[np.uint64(k) - np.uint64(1)]))
            j = max(j, end)
        if sums:
            for _ in range(BLOCK):
                state = step_piece(words, factors(), state)  # type: ignore[name-defined]  # noqa: F821
    crc = np.uint32(0)
    if sums:
        crc = end_piece(shifts, state)  # type: ignore[name-defined]  # noqa: F821
    return largest, turns, crc


def _looking() -> dict[str, Any]:
    """`_piece`, to be put where it is called, and pread(2) by its address."""
    names = steps()
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    def pread(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word, short = ir.IntType(64), ir.IntType(32)
        address, descriptor, place, n, at = arguments
        kind = ir.FunctionType(word, (short, word, word, word))
        function = builder.inttoptr(address, kind.as_pointer())
        return builder.call(function, (builder.trunc(descriptor, short), place, n, at))

    @intrinsic
    def read_at(_typing: Any, _address: Any, _descriptor: Any, _place: Any, _n: Any, _at: Any) -> Any:
        return types.int64(*[types.int64] * 5), pread

    whole = FunctionType(_piece.__code__, {**globals(), **names}, "_piece")
    return {"piece": njit(inline="always")(whole), "read_at": read_at}


@Kernel(needs=_looking)  # type: ignore[call-arg]
def survey(words: Array, values: Array, shifts: Array, out_crcs: Array, out_largest: Array, out_turns: Array) -> None:
    """Of each piece of 16 KiB its crc32c, its largest number, and how many numbers do not exceed the one before.

    Parameters
    ----------
    words : uint64 array
        The bytes: as many whole pieces as `out_crcs` has room for.
    values : unsigned array
        The same memory, or other, as far as it holds numbers; may be empty. The first has none before it.
    shifts : (3, 4, 256) uint32 array
        As `crc32c.shifts` gives them.
    out_crcs : (n,) uint32 array
        May be empty.
    out_largest, out_turns : (m,) arrays of the dtype of `values`
        For each piece of `values`, the last of which may be short.
    """
    size = np.uint64(PIECE) // np.uint64(values.itemsize)
    before = values.dtype.type(0)
    for i in range(max(len(out_crcs), len(out_largest))):
        start = np.uint64(i) * size
        stop = max(min(start + size, np.uint64(len(values))), start)
        at = np.uint64(i) * np.uint64(WORDS)
        largest, turns, crc = piece(  # type: ignore[name-defined]  # noqa: F821
            words, at, values, start, stop, before, i > 0, i < len(out_crcs), shifts
        )
        if i < len(out_largest):
            out_largest[i] = largest
            out_turns[i] = turns
            before = values[stop - np.uint64(1)]
        if i < len(out_crcs):
            out_crcs[i] = crc


@Kernel(needs=_looking)  # type: ignore[call-arg]
def sweep(
    pread: int,
    descriptor: int,
    start: int,
    n_bytes: int,
    address: int,
    words: Array,
    values: Array,
    n_values: int,
    shifts: Array,
    lengths: Array,
    begin: int,
    out_crcs: Array,
    out_seen: Array,
) -> int:
    """Read a part of a file and look at it, in blocks that stay in the processor's cache from one to the other.

    What is seen suffices to say that all is well. Where it is not, somebody else looks for what is wrong.

    Parameters
    ----------
    pread, address : int
        Where the function pread(2) is, and the elements of `words`.
    descriptor, start, n_bytes : int
        Of the file, and the bytes to read. The last piece may be short: its crc32c is left out.
    words : uint64 array
        Room for a block: a whole number of pieces.
    values : unsigned array
        The same memory. Only its dtype counts where `n_values` is 0.
    n_values : int
        Numbers that the bytes begin with.
    shifts : (3, 4, 256) uint32 array
    lengths, begin
        Rows, as `row_turns` has them.
    out_crcs : (n_bytes // PIECE,) uint32 array
    out_seen : (6,) uint64 array
        Numbers that do not exceed the one before; those of them that begin a row after the first number; whether a row
        begins with that; the largest number, the first and the last.

    Returns
    -------
    int
        Bytes that were read: fewer where the file ends before, or the system refused.
    """
    size = np.int64(PIECE) // np.int64(values.itemsize)
    all_turns = np.uint64(0)
    row_turns = np.uint64(0)
    begins = np.uint64(0)
    most = np.uint64(0)
    first = np.uint64(0)
    before = values.dtype.type(0)
    last_row = np.int64(0)
    row = np.int64(begin)
    i = np.int64(0)
    done = np.int64(0)
    number = np.int64(0)  # of the first piece of the block
    sound = True
    while sound and done < n_bytes:
        wanted = min(n_bytes - done, np.int64(len(words)) * 8)
        got = np.int64(0)
        while sound and got < wanted:
            n = read_at(  # type: ignore[name-defined]  # noqa: F821
                pread, descriptor, address + got, wanted - got, start + done + got
            )
            sound = n > 0
            if sound:
                got += n
        if sound:
            low = number * size  # of the numbers in the block
            held = max(min(n_values - low, wanted // np.int64(values.itemsize)), np.int64(0))
            for k in range((wanted + np.int64(PIECE) - 1) // np.int64(PIECE)):
                begins_at = np.uint64(k * size)
                ends_at = np.uint64(max(min((k + 1) * size, held), k * size))
                sums = (k + 1) * np.int64(PIECE) <= wanted
                at = np.uint64(k) * np.uint64(WORDS)
                counts = number + k > 0
                largest, turns, crc = piece(  # type: ignore[name-defined]  # noqa: F821
                    words, at, values, begins_at, ends_at, before, counts, sums, shifts
                )
                if sums:
                    out_crcs[number + k] = crc
                if begins_at < ends_at:
                    if number + k == 0:
                        first = np.uint64(values[0])
                    all_turns += np.uint64(turns)
                    most = max(most, np.uint64(largest))
                    while i <= len(lengths) and row < low + np.int64(ends_at):  # while the piece is near
                        if row > last_row:  # an empty row begins where others do
                            earlier = before
                            if row > low + np.int64(begins_at):
                                earlier = values[np.uint64(row - low) - np.uint64(1)]
                            row_turns += np.uint64(values[np.uint64(row - low)] <= earlier)
                            last_row = row
                        elif row == 0:
                            begins = np.uint64(1)
                        if i < len(lengths):
                            row += np.int64(lengths[np.uint64(i)])
                        i += 1
                    before = values[ends_at - np.uint64(1)]
            number += wanted // np.int64(PIECE)
            done += wanted
    out_seen[0] = all_turns
    out_seen[1] = row_turns
    out_seen[2] = begins
    out_seen[3] = most
    out_seen[4] = first
    out_seen[5] = np.uint64(before)
    return done  # type: ignore[return-value]


def sweep_numpy(
    descriptor: int, start: int, n_bytes: int, dtype: Any, n_values: int, lengths: Array, begin: int, out_seen: Array
) -> tuple[list[int], int]:
    """Twin of `sweep`; the checksums, and the bytes that were read."""
    payload = os.pread(descriptor, n_bytes, start)
    values = np.frombuffer(payload[: n_values * np.dtype(dtype).itemsize], dtype)
    seen = np.zeros(3, np.int64)
    row_turns_numpy(values, lengths, begin, seen)
    turns = np.count_nonzero(values[1:] <= values[:-1])
    out_seen[:3] = turns, seen[0], seen[1]
    out_seen[3:] = (values.max(), values[0], values[-1]) if len(values) else (0, 0, 0)
    whole = len(payload) // PIECE
    return [value(payload[i * PIECE : (i + 1) * PIECE]) for i in range(whole)], len(payload)


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
        survey(words, values, shifts(), out_crcs[:whole], out_largest, out_turns)
    except LackingInstructionError:
        survey_numpy(stored, values, out_crcs, out_largest, out_turns)
        return
    for i in range(whole, len(out_crcs)):
        out_crcs[i] = value(stored[i * PIECE :])


def swept(
    descriptor: int, start: int, n_bytes: int, room: Array, dtype: Any, n_values: int, lengths: Array, begin: int
) -> tuple[Array, Array] | None:
    """Read a part of a file, and look at it: checksums of its pieces, and what `sweep` sees.

    None where this machine has no fast way to do that, or where not all could be read.

    Parameters
    ----------
    descriptor, start, n_bytes : int
        Of the file, and the bytes.
    room : uint8 array
        Memory for a block, at a multiple of 8 bytes.
    dtype : unsigned dtype
    n_values : int
        Numbers that the bytes begin with, of this dtype.
    lengths, begin
        Rows, as `row_turns` has them.
    """
    address = _pread()
    if address is None:
        return None
    room = room[: len(room) // PIECE * PIECE]
    crcs, seen = np.zeros(-(-n_bytes // PIECE), np.uint32), np.zeros(6, np.uint64)
    whole = n_bytes // PIECE
    arguments = address, descriptor, start, n_bytes, room.ctypes.data, room.view(np.uint64), room.view(dtype), n_values
    try:
        done = sweep(*arguments, shifts(), lengths, begin, crcs[:whole], seen)
    except LackingInstructionError:
        return None
    if done != n_bytes:
        return None
    if whole < len(crcs):
        at = whole * PIECE % len(room)
        crcs[whole] = value(room[at : at + n_bytes - whole * PIECE])
    return crcs, seen


@functools.cache
def _pread() -> int | None:
    """Address of the C library's pread; None where there is none that takes 64 bits of an offset."""
    if sys.platform not in ("linux", "darwin") or sys.maxsize < 2**63 - 1:
        return None
    return ctypes.cast(ctypes.CDLL(None).pread, ctypes.c_void_p).value


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
    out_seen[1] |= int(len(values) > 0 and (at == 0).any())
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
