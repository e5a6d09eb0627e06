"""Bucket and counting sorts of (row, feature, value) triples: count, scatter, place, sort inside rows.

Every kernel moves entries in reading order, so equal keys keep it. Values are only moved, never read: callers hand them
over as unsigned integers of the same width (`as_bits`), which keeps the number of compiled variants at four and lets
float16 and bool travel too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "as_bits",
    "count",
    "count_numpy",
    "place",
    "place_numpy",
    "scatter",
    "scatter_numpy",
    "sort_in_rows",
    "sort_in_rows_numpy",
]

Array = NDArray[Any]

# insertion sort wins on short rows: argsort allocates
SHORT_ROW = 32


def as_bits(values: Array) -> Array:
    """Give the same memory as unsigned integers of the same width."""
    return values.view(f"u{values.dtype.itemsize}")


@njit(nogil=True, cache=True)
def count(rows: Array, first: np.uint64, shift: np.uint64, counts: Array) -> None:
    """Add to ``counts[(row - first) >> shift]`` one for each row number; rows are unsigned and at least `first`.

    What lies behind the last band counts as of it.
    """
    last = np.uint64(len(counts) - 1)
    for i in range(np.uint64(len(rows))):
        counts[min((np.uint64(rows[i]) - first) >> shift, last)] += 1


def count_numpy(rows: Array, first: int, shift: int, counts: Array) -> None:
    """Numpy twin of `count`."""
    bands = np.minimum((rows.astype(np.uint64) - np.uint64(first)) >> np.uint64(shift), np.uint64(len(counts) - 1))
    counts += np.bincount(bands.astype(np.int64), minlength=len(counts)).astype(counts.dtype)


@njit(nogil=True, cache=True)
def scatter(
    rows: Array,
    features: Array,
    values: Array,
    first: np.uint64,
    shift: np.uint64,
    cursors: Array,
    rows_out: Array,
    features_out: Array,
    values_out: Array,
) -> None:
    """Move each triple to the cursor (uint64, advanced) of its band, ``(row - first) >> shift``, the last at most."""
    last = np.uint64(len(cursors) - 1)
    for i in range(np.uint64(len(rows))):
        band = min((np.uint64(rows[i]) - first) >> shift, last)
        at = cursors[band]
        cursors[band] = at + np.uint64(1)
        rows_out[at] = rows[i]
        features_out[at] = features[i]
        values_out[at] = values[i]


def scatter_numpy(
    rows: Array,
    features: Array,
    values: Array,
    first: int,
    shift: int,
    cursors: Array,
    rows_out: Array,
    features_out: Array,
    values_out: Array,
) -> None:
    """Numpy twin of `scatter`."""
    bands = (rows.astype(np.uint64) - np.uint64(first)) >> np.uint64(shift)
    bands = np.minimum(bands, np.uint64(len(cursors) - 1)).astype(np.int64)
    order, at = _destinations(bands, cursors)
    rows_out[at] = rows[order]
    features_out[at] = features[order]
    values_out[at] = values[order]


@njit(nogil=True, cache=True)
def place(
    rows: Array,
    features: Array,
    values: Array,
    first: np.uint64,
    cursors: Array,
    features_out: Array,
    values_out: Array,
) -> None:
    """Move each entry to the cursor (uint64, advanced) of its row, ``row - first``: the end of a counting sort."""
    for i in range(np.uint64(len(rows))):
        row = np.uint64(rows[i]) - first
        at = cursors[row]
        cursors[row] = at + np.uint64(1)
        features_out[at] = features[i]
        values_out[at] = values[i]


def place_numpy(
    rows: Array, features: Array, values: Array, first: int, cursors: Array, features_out: Array, values_out: Array
) -> None:
    """Numpy twin of `place`."""
    order, at = _destinations((rows.astype(np.uint64) - np.uint64(first)).astype(np.int64), cursors)
    features_out[at] = features[order]
    values_out[at] = values[order]


def _destinations(groups: Array, cursors: Array) -> tuple[Array, Array]:
    """Order that sorts entries by group, stably, and where each of them goes; cursors advance."""
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups, minlength=len(cursors))
    within = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.repeat(cursors.astype(np.int64), counts) + within
    cursors += counts.astype(cursors.dtype)
    return order, at


@njit(nogil=True, cache=True)
def sort_in_rows(indptr: Array, features: Array, values: Array) -> None:
    """Sort each row's entries by feature number in place; equal features keep their order."""
    for row in range(np.uint64(len(indptr) - 1)):
        start = np.uint64(indptr[row])
        stop = np.uint64(indptr[row + np.uint64(1)])
        if stop - start <= np.uint64(SHORT_ROW):
            for i in range(start + np.uint64(1), stop):
                feature, value = features[i], values[i]
                at = np.uint64(i)
                while at > start and features[at - np.uint64(1)] > feature:
                    features[at] = features[at - np.uint64(1)]
                    values[at] = values[at - np.uint64(1)]
                    at -= np.uint64(1)
                features[at] = feature
                values[at] = value
            continue
        ascends = True
        for i in range(start + np.uint64(1), stop):
            if features[i - np.uint64(1)] > features[i]:
                ascends = False
                break
        if not ascends:
            order = np.argsort(features[start:stop], kind="mergesort")  # numba's name for the stable one
            features[start:stop] = features[start:stop][order]
            values[start:stop] = values[start:stop][order]


def sort_in_rows_numpy(indptr: Array, features: Array, values: Array) -> None:
    """Numpy twin of `sort_in_rows`."""
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((features, rows))
    features[:] = features[order]
    values[:] = values[order]
