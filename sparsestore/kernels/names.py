"""Which of some known names stands in bytes: a hash table that compiled loops look into.

The hash is FNV-1a of 64 bits (G. Fowler, L. C. Noll, K.-P. Vo).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["Names", "find", "names_of"]

_ONE, _U32 = np.uint64(1), np.uint64(32)
_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


class Names(NamedTuple):
    """Distinct names, each in a group; the same name may be in several groups."""

    text: NDArray[np.uint8]
    """One behind the other."""
    starts: NDArray[np.int64]
    """(n + 1,) where each begins."""
    groups: NDArray[np.int64]
    """(n,)"""
    table: NDArray[np.int64]
    """Number of the name at each place, or -1: at least half of the places."""


def names_of(names: Sequence[bytes], groups: Sequence[int]) -> Names:
    """The table of some names."""
    table = np.full(1 << (2 * len(names)).bit_length(), -1, np.int64)
    starts = np.zeros(len(names) + 1, np.int64)
    np.cumsum([len(name) for name in names], out=starts[1:])
    text, of = np.frombuffer(b"".join(names), np.uint8), np.array(groups, np.int64)
    _fill(text, starts, of, table)
    return Names(text, starts, of, table)


@njit(nogil=True, cache=True, inline="always")
def _hash(text: Any, begin: Any, end: Any, group: Any) -> Any:
    h = (_BASIS ^ np.uint64(group)) * _PRIME
    for k in range(begin, end):
        h = (h ^ np.uint64(text[k])) * _PRIME
    return h ^ (h >> _U32)


@njit(nogil=True, cache=True)
def _fill(text: Any, starts: Any, groups: Any, table: Any) -> None:
    last = np.uint64(len(table) - 1)
    for number in range(np.uint64(len(groups))):
        at = _hash(text, np.uint64(starts[number]), np.uint64(starts[number + _ONE]), groups[number]) & last
        while table[at] >= 0:
            at = (at + _ONE) & last
        table[at] = np.int64(number)


@njit(nogil=True, cache=True, inline="always")
def find(text: Any, begin: Any, end: Any, group: Any, names: Any, starts: Any, groups: Any, table: Any) -> Any:
    """Number of the name that stands in `text` from `begin` to `end` (uint64), in this group, or -1."""
    last = np.uint64(len(table) - 1)
    at = _hash(text, begin, end, group) & last
    while table[at] >= 0:
        number = np.uint64(table[at])
        start = np.uint64(starts[number])
        if groups[number] == group and np.uint64(starts[number + _ONE]) - start == end - begin:
            k = begin
            while k < end and text[k] == names[start + (k - begin)]:
                k += _ONE
            if k == end:
                return table[at]
        at = (at + _ONE) & last
    return np.int64(-1)
