"""How often bytes stand in a text: what has to be known before arrays are made for what it spells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels.native import Kernel

__all__ = ["count", "count_numpy"]

_RUN = 128  # of bytes, as many as a counter of 8 bits holds: compiled to instructions for 32 bytes at a time


@Kernel
def _count(text: NDArray[np.uint8], first: int, second: int, third: int, out_counts: NDArray[np.int64]) -> None:
    """See `count`."""
    one, two, three = np.uint8(first), np.uint8(second), np.uint8(third)
    a, b, c = np.int64(0), np.int64(0), np.int64(0)
    n = np.uint64(len(text))
    at, run = np.uint64(0), np.uint64(_RUN)
    while at + run <= n:
        x, y, z = np.uint8(0), np.uint8(0), np.uint8(0)
        for k in range(run):
            byte = text[at + np.uint64(k)]
            x = np.uint8(x + np.uint8(byte == one))
            y = np.uint8(y + np.uint8(byte == two))
            z = np.uint8(z + np.uint8(byte == three))
        a += x
        b += y
        c += z
        at += run
    while at < n:
        a += text[at] == one
        b += text[at] == two
        c += text[at] == three
        at += np.uint64(1)
    out_counts[0], out_counts[1], out_counts[2] = a, b, c


def count(text: NDArray[np.uint8], first: int, second: int, third: int) -> tuple[int, int, int]:
    """How often each of three bytes stands in a (n,) uint8 array."""
    counts = np.empty(3, np.int64)
    _count(text, first, second, third, counts)
    a, b, c = counts.tolist()
    return a, b, c


def count_numpy(text: NDArray[np.uint8], first: int, second: int, third: int) -> tuple[int, int, int]:
    """Twin of `count`."""
    return tuple(int(np.count_nonzero(text == byte)) for byte in (first, second, third))  # type: ignore[return-value]
