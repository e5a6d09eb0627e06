"""Random words and orders as pure functions of (seed, stream, epoch, window): no state to save or to restore."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsestore.forking import imported
from sparsestore.kernels import ranking

__all__ = [
    "BLOCKS",
    "CONVERSION",
    "DRAWN",
    "FEISTEL",
    "OFFSET",
    "SPLITS",
    "WINDOW",
    "Permutation",
    "check_seed",
    "mix",
    "order",
    "sorted_order",
    "words",
]

BLOCKS, WINDOW, FEISTEL, SPLITS, CONVERSION, OFFSET, DRAWN = range(7)
"""Streams: what the words are for. Words of different streams have nothing to do with each other."""

REAL_BELOW = 2**22
"""Fewer items than this are permuted for real: a table of at most 16 MiB."""

_BUCKET_BITS = 16
_RANKED = 1 << 18  # up to here a counting sort stays in the cache, and takes half the time of numpy's
_ROUNDS = 6  # 2 and 3 rounds fail position and neighbour-distance chi-square tests; 4 and 6 pass from 2**16 items


def check_seed(seed: int) -> None:
    """Raise ValueError unless `seed` is an integer, ``0 <= seed < 2**64``."""
    # a float would be cut to an integer on its way into the generator: 1.5 would give the order of 1
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ValueError(f"seed is {seed!r}, expected an integer, 0 <= seed < 2**64")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}, expected 0 <= seed < 2**64")


def words(seed: int, stream: int, epoch: int, window: int, n: int) -> NDArray[np.uint64]:
    """Random words of a counter-based generator, the same on every platform and in every release.

    The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key
    (seed, stream) and counter (0, 0, epoch, window): numpy guarantees the integers of a bit generator across
    versions, and does not guarantee those of `Generator.permutation`.

    Parameters
    ----------
    seed, stream, epoch, window : int
        Each from 0 to 2**64 - 1.
    n : int
        Number of words.

    Returns
    -------
    (n,) uint64 array

    Raises
    ------
    ValueError
        If a key is out of range.

    Examples
    --------
    >>> [hex(word) for word in words(42, 0, 0, 0, 2)]
    ['0xd1f8817d4d62880e', '0x307266b65cc8797e']
    """
    check_seed(seed)
    if not (0 <= epoch < 2**64 and 0 <= window < 2**64):
        raise ValueError(f"epoch is {epoch} and window is {window}, expected 0 to 2**64 - 1")
    key, counter = np.array([seed, stream], np.uint64), np.array([0, 0, epoch, window], np.uint64)
    return np.asarray(imported("numpy.random").Philox(key=key, counter=counter).random_raw(n), np.uint64)


def order(seed: int, stream: int, epoch: int, window: int, n: int) -> NDArray[np.int64]:
    """Uniform permutation of 0 to n - 1: the stable argsort of `words` with the same arguments.

    Returns
    -------
    (n,) int64 array

    Examples
    --------
    >>> order(42, 0, 3, 0, 10)
    array([5, 3, 4, 8, 7, 6, 1, 0, 2, 9])
    """
    keys = words(seed, stream, epoch, window, n)
    if 2 <= n <= _RANKED:
        bits = min((n - 1).bit_length(), _BUCKET_BITS)
        ends, ranked = np.zeros((1 << bits) + 1, np.int64), np.empty(n, np.int64)
        ranking.rank(keys, 64 - bits, ends, ranked)
        return ranked
    return sorted_order(keys)


def sorted_order(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The stable argsort of words of which hardly any two are equal.

    Examples
    --------
    >>> sorted_order(np.array([7, 3, 5, 3], np.uint64))
    array([1, 3, 2, 0])
    """
    ranked = np.argsort(keys)
    in_order = keys[ranked]
    if (in_order[1:] == in_order[:-1]).any():
        # numpy's default sort is 6 times as fast and differs from the stable one only where two words are equal
        ranked = np.argsort(keys, kind="stable")
    return ranked.astype(np.int64, copy=False)


class Permutation:
    """A permutation of 0 to n - 1 for one epoch, read in slices.

    Below 2**22 items it is `order` of stream 0; above, a Feistel network over the next power of two with cycle
    walking (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002), which takes no memory.
    Immutable: any number of threads may read it.

    Parameters
    ----------
    n : int
        Number of items.
    seed, epoch : int
        Keys, each from 0 to 2**64 - 1.

    Examples
    --------
    >>> permutation = Permutation(10, seed=42, epoch=3)
    >>> permutation[2:5], permutation.inverse(permutation[2:5])
    (array([4, 8, 7]), array([2, 3, 4]))
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        check_seed(seed)
        self._n = n
        self._table: NDArray[np.int32] | None = None
        if n < REAL_BELOW:
            self._table = order(seed, BLOCKS, epoch, 0, n).astype(np.int32)
            return
        bits = (n - 1).bit_length()
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64(2 ** (bits // 2) - 1)
        self._high_mask = np.uint64(2 ** (bits - bits // 2) - 1)
        self._keys = words(seed, FEISTEL, epoch, 0, _ROUNDS)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, at: slice) -> NDArray[np.int64]:
        start, stop, step = at.indices(self._n)
        if self._table is not None:
            return self._table[start:stop:step].astype(np.int64)
        return self._walk(np.arange(start, stop, step, dtype=np.uint64), range(_ROUNDS))

    def inverse(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the given values stand: ``permutation[i:i + 1] == values[j]`` for ``i == inverse(values)[j]``."""
        if self._table is not None:
            where = np.empty(self._n, np.int32)
            where[self._table] = np.arange(self._n, dtype=np.int32)
            return where[values].astype(np.int64)
        return self._walk(values.astype(np.uint64), range(_ROUNDS - 1, -1, -1))

    def _walk(self, x: NDArray[np.uint64], rounds: range) -> NDArray[np.int64]:
        x = self._encrypt(x, rounds)
        outside = np.flatnonzero(x >= self._n)
        while len(outside):  # less than half of the domain is outside, so this ends after a few steps
            x[outside] = self._encrypt(x[outside], rounds)
            outside = outside[x[outside] >= self._n]
        return x.astype(np.int64)

    def _encrypt(self, x: NDArray[np.uint64], rounds: range) -> NDArray[np.uint64]:
        # the halves stay where they are and take turns, so that one of them may be a bit longer and that running
        # the rounds backwards is the inverse
        low, high = x & self._low_mask, x >> self._low_bits
        for i in rounds:
            if i % 2:
                high = high ^ (mix(low + self._keys[i]) & self._high_mask)
            else:
                low = low ^ (mix(high + self._keys[i]) & self._low_mask)
        return (high << self._low_bits) | low


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers one to one: the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
