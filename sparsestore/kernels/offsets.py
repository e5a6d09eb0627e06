"""Row offsets: to row lengths, which take an eighth of the memory, and to where rows are once read into memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels.native import Kernel

__all__ = ["narrow", "narrow_numpy", "place", "place_numpy"]

Array = NDArray[Any]


@Kernel
def narrow(offsets: Array, longest: int, total: int, out_lengths: Array) -> int:
    """Lengths of the rows between offsets; whether (0 or 1) the offsets ascend from 0 or more to at most `total`.

    Parameters
    ----------
    offsets : (n + 1,) int64 array
    longest : int
        No step may be larger.
    total : int
    out_lengths : (n,) unsigned array
        Holds `longest`.
    """
    # as unsigned numbers those below 0 are beyond any total, and so is the step to a smaller one beyond any length
    bad = np.uint64(offsets[0]) > np.uint64(total)
    for i in range(len(out_lengths)):
        at, end = np.uint64(offsets[np.uint64(i)]), np.uint64(offsets[np.uint64(i) + np.uint64(1)])
        bad |= (end - at > np.uint64(longest)) | (end > np.uint64(total))
        out_lengths[np.uint64(i)] = end - at
    return 0 if bad else 1


def narrow_numpy(offsets: Array, longest: int, total: int, out_lengths: Array) -> int:
    """Twin of `narrow`."""
    steps = np.diff(offsets.astype(object))
    sound = bool(((steps >= 0) & (steps <= longest)).all() and offsets.min() >= 0 and offsets.max() <= total)
    if sound:
        out_lengths[:] = steps.astype(np.int64)
    return int(sound)


@Kernel
def place(starts: Array, lengths: Array, unit: int, total: int, out_units: Array, out_starts: Array) -> int:
    """Units that rows touch, ascending and each once, and where the rows start once these are laid end to end.

    Parameters
    ----------
    starts : (m,) uint64 array
        Ascending: the result is -1 where they do not.
    lengths : (m,) int64 array
    unit : int
        Entries of a unit.
    total : int
        Entries that there are. The result is -2 where a row ends past them.
    out_units : int64 array
        With room for all units that there are.
    out_starts : (m,) uint64 array
        0 for empty rows.

    Returns
    -------
    int
        How many were written to `out_units`.
    """
    size = np.uint64(unit)
    previous, count = np.uint64(0), np.uint64(0)
    # the units found last follow each other: they hold entries `low` to `high`, `high` starts unit number `number`
    low, high, number, shift = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    found, i, n = 0, np.uint64(0), np.uint64(len(starts))
    while i < n:
        start, length = np.uint64(starts[i]), np.uint64(lengths[i])
        out_starts[i] = 0
        if length:
            if start < previous:
                found, n = -1, i
            elif length > np.uint64(total) or start > np.uint64(total) - length:
                found, n = -2, i
            else:
                if start >= high:
                    number = start // size
                    low = high = number * size
                    shift = count * size
                while high < start + length:
                    out_units[count] = number
                    number += np.uint64(1)
                    count += np.uint64(1)
                    high += size
                out_starts[i] = start - low + shift
                previous = start
        i += np.uint64(1)
    return np.int64(count) if found == 0 else np.int64(found)  # type: ignore[return-value]


def place_numpy(starts: Array, lengths: Array, unit: int, total: int, out_units: Array, out_starts: Array) -> int:
    """Twin of `place`."""
    filled = lengths > 0
    first, last = starts[filled].astype(np.int64), starts[filled].astype(np.int64) + lengths[filled]
    if (first[1:] < first[:-1]).any():
        return -1
    if (last > total).any():
        return -2
    units = sorted({number for a, b in zip(first, last, strict=True) for number in range(a // unit, -(-b // unit))})
    out_units[: len(units)] = units
    out_starts[:] = 0
    out_starts[filled] = np.searchsorted(units, first // unit) * unit + first % unit
    return len(units)
