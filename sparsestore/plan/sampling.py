"""Which rows of a window come, and how often, where rows have weights: arithmetic on whole numbers; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.plan import shuffle as shuffling

__all__ = ["Drawn", "correction", "draw", "systematic", "whole"]

Ints = NDArray[np.int64]

_BITS = 62  # of a sum of whole weights: with the number of draws beside it, 63 bits hold it


@dataclass(frozen=True, slots=True)
class Drawn:
    """The rows drawn from a window.

    Attributes
    ----------
    rows : (m,) int64 array
        Numbers of rows of the window, in the order of training; as many as the window has rows. Some come more than
        once, others not at all.
    total : float
        Weight of all rows of the window together.
    """

    rows: Ints
    total: float


def draw(
    weights: NDArray[np.float64],
    order: Ints,
    *,
    seed: int,
    epoch: int,
    window: int,
    strata: NDArray[Any] | None = None,
) -> Drawn:
    """Draw as many rows as a window has, with replacement, each as often as its weight says, up to one row.

    A row with the share s of the window's weight comes floor(s * m) or ceil(s * m) times, s * m times in expectation:
    so where all weights are equal, every row comes once. Rows without weight never come, unless no row has any: then
    each comes once, for a window has to have its rows, and `correction` is 0.

    Parameters
    ----------
    weights : (m,) float64 array
        Of the window's rows; finite, 0 or more.
    order : (m,) int64 array
        A random order of the rows. Rows are laid end to end in it before points at equal distances pick some: laid in
        the order of the file, neighbours would never come together.
    seed, epoch, window : int
        Keys of the random words.
    strata : (m,) array, optional
        Class of each row. The number of rows drawn of a class is then its share too, up to one row.

    Returns
    -------
    Drawn

    Examples
    --------
    >>> drawn = draw(np.array([0.0, 1.0, 1.0, 2.0]), np.array([3, 1, 0, 2]), seed=0, epoch=0, window=0)
    >>> np.bincount(drawn.rows, minlength=4), drawn.total
    (array([0, 1, 1, 2]), 4.0)
    """
    n = len(weights)
    numbers, unit = whole(weights)
    sum_of_all = int(numbers.sum())
    if not sum_of_all:
        return Drawn(order, 0.0)
    # within a class the order stays random; classes one after the other make points at equal distances fall fairly
    laid = order if strata is None else order[np.argsort(strata[order], kind="stable")]
    (word,) = shuffling.words(seed, shuffling.OFFSET, epoch, window, 1).tolist()
    counts = systematic(numbers[laid], n, word * sum_of_all >> 64)
    # what comes several times stands together until it is permuted
    rows = np.repeat(laid, counts)[shuffling.order(seed, shuffling.DRAWN, epoch, window, n)]
    return Drawn(rows, float(np.ldexp(float(sum_of_all), unit)))


def whole(weights: NDArray[np.float64]) -> tuple[Ints, int]:
    """Weights as whole numbers of a unit that is a power of two, the smallest with which their sum is below 2**62.

    Whole numbers are added and divided exactly, the same on every machine. Weights of up to 40 bits, such as whole
    numbers and their halves, are not changed in windows of up to four million rows; others are rounded by less than
    2**-40 of the largest one.

    Returns
    -------
    numbers : (m,) int64 array
    unit : int
        A weight is ``number * 2.0**unit``.

    Examples
    --------
    >>> numbers, unit = whole(np.array([0.5, 0.0, 3.0]))
    >>> numbers * 2.0**unit
    array([0.5, 0. , 3. ])
    """
    largest = float(weights.max(initial=0.0))
    unit = int(np.frexp(largest)[1]) + len(weights).bit_length() - _BITS
    return np.rint(np.ldexp(weights, -unit)).astype(np.int64), unit


def systematic(numbers: Ints, n: int, offset: int) -> Ints:
    """How often each of some items comes in `n` draws: systematic resampling, which needs one random number.

    Items are laid end to end, each as long as its number. Points at equal distances, ``sum / n``, of which the first is
    at ``offset / n``, pick them. An item of length a comes floor(n * a / sum) or ceil(n * a / sum) times, and
    n * a / sum times on the average over all offsets (Madow and Madow, "On the theory of systematic sampling", Annals
    of Mathematical Statistics, 1944; as resampling, Kitagawa, "Monte Carlo filter and smoother for non-Gaussian
    nonlinear state space models", Journal of Computational and Graphical Statistics, 1996). No way of drawing whose
    expectations are these has a smaller variance of the count of an item; independent draws have about that of
    a Poisson number.

    Parameters
    ----------
    numbers : (m,) int64 array
        0 or more; their sum is above 0 and below 2**62.
    n : int
        Number of draws, below 2**31.
    offset : int
        ``0 <= offset < sum``: at random, for expectations that hold.

    Returns
    -------
    (m,) int64 array
        Counts, `n` together.

    Examples
    --------
    >>> systematic(np.array([1, 0, 4, 5]), 5, offset=9)
    array([0, 0, 2, 3])
    """
    ends = np.cumsum(numbers)
    step, rest = divmod(int(ends[-1]), n)
    k = np.arange(n, dtype=np.int64)
    # point k is at (k * sum + offset) / n, rounded down: ends are whole, so it lies before the same ones
    points = k * step + (k * rest + offset) // n
    before = np.searchsorted(points, ends)
    return np.diff(before, prepend=0).astype(np.int64, copy=False)


def correction(total: float, n: int, total_of_all: float, n_of_all: int) -> float:
    """What the rows drawn from a window count: its weight a row, as a share of the weight a row of all.

    As each window gives as many rows as it has, rows of a heavy window come too seldom and those of a light one too
    often, by just this factor. Over the windows of an epoch its mean, a row, is 1.

    Parameters
    ----------
    total, total_of_all : float
        Weight of the window, and of all rows.
    n, n_of_all : int
        Rows of the window, and of all.

    Examples
    --------
    >>> correction(total=6.0, n=4, total_of_all=10.0, n_of_all=20)
    3.0
    """
    return total / total_of_all * (n_of_all / n)
