"""How often bytes stand in a text: what has to be known before arrays are made for what it spells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["count", "count_numpy"]

_RUN = 128  # of bytes, as many as a counter of 8 bits holds: compiled to instructions for 32 bytes at a time


@njit(nogil=True, cache=True)
def count(text: Any, first: Any, second: Any, third: Any) -> Any:
    """How often each of three bytes stands in a (n,) uint8 array."""
    a, b, c = np.int64(0), np.int64(0), np.int64(0)
    n = np.uint64(len(text))
    at, run = np.uint64(0), np.uint64(_RUN)
    while at + run <= n:
        x, y, z = np.uint8(0), np.uint8(0), np.uint8(0)
        for k in range(run):
            byte = text[at + np.uint64(k)]
            x = np.uint8(x + np.uint8(byte == first))
            y = np.uint8(y + np.uint8(byte == second))
            z = np.uint8(z + np.uint8(byte == third))
        a += x
        b += y
        c += z
        at += run
    while at < n:
        a += text[at] == first
        b += text[at] == second
        c += text[at] == third
        at += np.uint64(1)
    return a, b, c


def count_numpy(text: NDArray[np.uint8], first: int, second: int, third: int) -> tuple[int, int, int]:
    """Twin of `count`."""
    return tuple(int(np.count_nonzero(text == byte)) for byte in (first, second, third))  # type: ignore[return-value]
