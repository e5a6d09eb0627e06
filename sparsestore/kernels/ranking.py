"""Compiled argsort of random words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels.native import Kernel

__all__ = ["rank", "rank_numpy"]

Array = NDArray[Any]


@Kernel
def rank(words: Array, shift: int, out_ends: Array, out: Array) -> None:
    """Stable argsort of uint64 words that are spread evenly: a counting sort by their upper bits, then insertions.

    Parameters
    ----------
    words : (n,) uint64 array
    shift : int
        ``words >> shift`` is the bucket of a word.
    out_ends : (buckets + 1,) int64 array of zeros
        Scratch.
    out : (n,) int64 array
        The ranking.

    Notes
    -----
    Linear in n where there are about as many buckets as words (E. J. Isaac and R. C. Singleton, "Sorting by address
    calculation", J. ACM 3, 1956). Words that are not spread evenly are sorted too, slower.
    """
    n = np.uint64(len(words))
    by = np.uint64(shift)
    one = np.uint64(1)
    for i in range(n):
        out_ends[(words[np.uint64(i)] >> by) + one] += 1
    for b in range(one, np.uint64(len(out_ends))):
        out_ends[np.uint64(b)] += out_ends[np.uint64(b) - one]
    for i in range(n):
        bucket = words[np.uint64(i)] >> by
        out[np.uint64(out_ends[bucket])] = i
        out_ends[bucket] += 1
    for i in range(one, n):
        number = out[np.uint64(i)]
        word = words[np.uint64(number)]
        j = np.uint64(i)
        while j > np.uint64(0) and words[np.uint64(out[j - one])] > word:
            out[j] = out[j - one]
            j -= one
        out[j] = number


def rank_numpy(words: Array, shift: int, out_ends: Array, out: Array) -> None:
    """Twin of `rank`."""
    out_ends[:] = np.append(0, np.bincount((words >> np.uint64(shift)).astype(np.int64), minlength=len(out_ends) - 1))
    np.cumsum(out_ends, out=out_ends)
    out[:] = np.argsort(words, kind="stable")
