"""Compiled loops of the read path: find rows, copy them, spread them out, check them.

Index arithmetic is unsigned throughout: with signed indices numba adds a wrap-around test to every access, which costs
1.5 to 3.5 times. Callers check bounds before they call: compiled code does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels.native import Kernel
from sparsestore.kernels.prefetching import AHEAD, prefetching

__all__ = [
    "densify",
    "densify_numpy",
    "fill",
    "fill_numpy",
    "first_descent",
    "first_descent_numpy",
    "gather",
    "gather_indices",
    "gather_indices_numpy",
    "gather_numpy",
    "locate",
    "locate_numpy",
    "scatter",
    "scatter_constant",
    "scatter_constant_numpy",
    "scatter_numpy",
]

Array = NDArray[Any]
CLEARED = np.uint64(1 << 14)  # cells of a dense array that are cleared before they are filled: about 64 KiB
ANCHOR_SHIFT = np.uint64(10)  # one absolute offset every 1,024 rows


@Kernel(needs=prefetching)  # type: ignore[call-arg]
def gather(
    indices: Array, data: Array, starts: Array, lengths: Array, targets: Array, out_indices: Array, out_data: Array
) -> None:
    """Copy entries [starts[i], starts[i] + lengths[i]) to targets[i] of the outputs, converted to their dtypes."""
    n_rows = np.uint64(len(starts))
    for i in range(n_rows):
        # rows come in any order: without this every one would wait for memory
        coming = np.uint64(i) + AHEAD
        if coming < n_rows:
            fetch_row(indices, starts[coming], lengths[coming])  # type: ignore[name-defined]  # noqa: F821
            fetch_row(data, starts[coming], lengths[coming])  # type: ignore[name-defined]  # noqa: F821
        source, target = np.uint64(starts[i]), np.uint64(targets[i])
        n = np.uint64(lengths[i])
        for j in range(n):
            out_indices[target + np.uint64(j)] = indices[source + np.uint64(j)]
        for j in range(n):
            out_data[target + np.uint64(j)] = data[source + np.uint64(j)]


@Kernel(needs=prefetching)  # type: ignore[call-arg]
def gather_indices(indices: Array, starts: Array, lengths: Array, targets: Array, out_indices: Array) -> None:
    """As `gather`, for one array: where the values are constant, or absent."""
    n_rows = np.uint64(len(starts))
    for i in range(n_rows):
        # rows come in any order: without this every one would wait for memory
        coming = np.uint64(i) + AHEAD
        if coming < n_rows:
            fetch_row(indices, starts[coming], lengths[coming])  # type: ignore[name-defined]  # noqa: F821
        source, target = np.uint64(starts[i]), np.uint64(targets[i])
        n = np.uint64(lengths[i])
        for j in range(n):
            out_indices[target + np.uint64(j)] = indices[source + np.uint64(j)]


@Kernel
def fill(value: Any, lengths: Array, targets: Array, out: Array) -> None:
    """Set entries [targets[i], targets[i] + lengths[i]) of the output to one value."""
    for i in range(len(lengths)):
        target = np.uint64(targets[i])
        for j in range(np.uint64(lengths[i])):
            out[target + np.uint64(j)] = value


@Kernel
def locate(rows: Array, lengths: Array, anchors: Array, out_starts: Array, out_lengths: Array) -> None:
    """Offset and length of each row, from row lengths and an absolute offset every 1,024 rows.

    A row that follows the one before it costs one addition, another one a sum over at most 1,023 lengths.
    """
    previous, offset = np.uint64(0), np.uint64(0)
    for i in range(len(rows)):
        row = np.uint64(rows[i])
        if i > 0 and row == previous + np.uint64(1):
            offset += np.uint64(lengths[previous])
        else:
            anchor = row >> ANCHOR_SHIFT
            offset = np.uint64(anchors[anchor])
            total = np.uint64(0)
            for r in range(anchor << ANCHOR_SHIFT, row):
                total += np.uint64(lengths[np.uint64(r)])
            offset += total
        out_starts[i] = offset
        out_lengths[i] = lengths[row]
        previous = row


@Kernel(needs=prefetching)  # type: ignore[call-arg]
def scatter(indices: Array, data: Array, starts: Array, lengths: Array, targets: Array, width: int, out: Array) -> int:
    """Make row targets[i] of a dense array of entries [starts[i], starts[i] + lengths[i]), and zero elsewhere.

    `targets` ascend; `out` is the array's cells in C order, `width` of them a row. Gives the number of entries that
    have no cell there; these are left out.
    """
    outside = 0
    n_rows, wide = np.uint64(len(starts)), np.uint64(width)
    cleared = np.uint64(0)  # rows whose cells are zero already
    for i in range(n_rows):
        if np.uint64(i) >= cleared:
            # not all at once: what was just cleared is in the cache; nor each by itself: rows may be short
            cleared = min(np.uint64(i) + CLEARED // wide + np.uint64(1), n_rows)
            low, high = np.uint64(targets[i]), np.uint64(targets[cleared - np.uint64(1)])
            if high - low >= cleared - np.uint64(i):  # rows of others lie between
                cleared, high = np.uint64(i) + np.uint64(1), low
            for cell in range(low * wide, (high + np.uint64(1)) * wide):
                out[np.uint64(cell)] = 0
        coming = np.uint64(i) + AHEAD
        if coming < n_rows:
            fetch_row(indices, starts[coming], lengths[coming])  # type: ignore[name-defined]  # noqa: F821
            fetch_row(data, starts[coming], lengths[coming])  # type: ignore[name-defined]  # noqa: F821
        row = np.uint64(targets[i]) * wide
        for j in range(np.uint64(starts[i]), np.uint64(starts[i]) + np.uint64(lengths[i])):
            at = np.uint64(j)
            feature = np.uint64(indices[at])
            if feature < wide:
                out[row + feature] = data[at]
            else:
                outside += 1
    return outside


@Kernel(needs=prefetching)  # type: ignore[call-arg]
def scatter_constant(
    indices: Array, value: Any, starts: Array, lengths: Array, targets: Array, width: int, out: Array
) -> int:
    """As `scatter`, where all entries have one value."""
    outside = 0
    n_rows, wide = np.uint64(len(starts)), np.uint64(width)
    cleared = np.uint64(0)
    for i in range(n_rows):
        if np.uint64(i) >= cleared:
            cleared = min(np.uint64(i) + CLEARED // wide + np.uint64(1), n_rows)
            low, high = np.uint64(targets[i]), np.uint64(targets[cleared - np.uint64(1)])
            if high - low >= cleared - np.uint64(i):
                cleared, high = np.uint64(i) + np.uint64(1), low
            for cell in range(low * wide, (high + np.uint64(1)) * wide):
                out[np.uint64(cell)] = 0
        coming = np.uint64(i) + AHEAD
        if coming < n_rows:
            fetch_row(indices, starts[coming], lengths[coming])  # type: ignore[name-defined]  # noqa: F821
        row = np.uint64(targets[i]) * wide
        for j in range(np.uint64(starts[i]), np.uint64(starts[i]) + np.uint64(lengths[i])):
            feature = np.uint64(indices[np.uint64(j)])
            if feature < wide:
                out[row + feature] = value
            else:
                outside += 1
    return outside


@Kernel
def densify(indptr: Array, indices: Array, data: Array, out: Array) -> None:
    """Write each entry into its cell of a zeroed dense array."""
    for row in range(len(indptr) - 1):
        for j in range(np.uint64(indptr[row]), np.uint64(indptr[row + 1])):
            at = np.uint64(j)
            out[np.uint64(row), np.uint64(indices[at])] = data[at]


@Kernel
def first_descent(indptr: Array, indices: Array) -> int:
    """Number of the first row whose column numbers do not ascend strictly, or -1."""
    for row in range(len(indptr) - 1):
        for j in range(np.uint64(indptr[row]) + np.uint64(1), np.uint64(indptr[row + 1])):
            at = np.uint64(j)
            if indices[at] <= indices[at - np.uint64(1)]:
                return row
    return -1


def _entries(starts: Array, lengths: Array) -> Array:
    """Numbers of all entries of the ranges, one range after the other."""
    lengths = np.asarray(lengths, np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    shift = np.asarray(starts, np.int64) - (ends - lengths)
    entries: Array = np.arange(total, dtype=np.int64) + np.repeat(shift, lengths)
    return entries


def gather_numpy(
    indices: Array, data: Array, starts: Array, lengths: Array, targets: Array, out_indices: Array, out_data: Array
) -> None:
    """Twin of `gather`."""
    source, target = _entries(starts, lengths), _entries(targets, lengths)
    out_indices[target] = indices[source]
    out_data[target] = data[source]


def gather_indices_numpy(indices: Array, starts: Array, lengths: Array, targets: Array, out_indices: Array) -> None:
    """Twin of `gather_indices`."""
    out_indices[_entries(targets, lengths)] = indices[_entries(starts, lengths)]


def fill_numpy(value: Any, lengths: Array, targets: Array, out: Array) -> None:
    """Twin of `fill`."""
    out[_entries(targets, lengths)] = value


def locate_numpy(rows: Array, lengths: Array, anchors: Array, out_starts: Array, out_lengths: Array) -> None:
    """Twin of `locate`; `anchors` only have to agree with the lengths."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    out_starts[:] = offsets[rows] + int(anchors[0] if len(anchors) else 0)
    out_lengths[:] = lengths[rows]


def scatter_numpy(
    indices: Array, data: Array, starts: Array, lengths: Array, targets: Array, width: int, out: Array
) -> int:
    """Twin of `scatter`."""
    cells = out.reshape(-1, width)
    cells[targets] = 0
    entries = _entries(starts, lengths)
    rows, features = np.repeat(targets, lengths), indices[entries].astype(np.int64)
    inside = (features >= 0) & (features < width)
    cells[rows[inside], features[inside]] = data[entries[inside]]
    return int(len(entries) - inside.sum())


def scatter_constant_numpy(
    indices: Array, value: Any, starts: Array, lengths: Array, targets: Array, width: int, out: Array
) -> int:
    """Twin of `scatter_constant`."""
    return scatter_numpy(indices, np.full(len(indices), value), starts, lengths, targets, width, out)


def densify_numpy(indptr: Array, indices: Array, data: Array, out: Array) -> None:
    """Twin of `densify`."""
    out[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), indices] = data


def first_descent_numpy(indptr: Array, indices: Array) -> int:
    """Twin of `first_descent`."""
    if len(indices) < 2:
        return -1
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    bad = (row[1:] == row[:-1]) & (indices[1:] <= indices[:-1])
    return int(row[1:][np.argmax(bad)]) if bad.any() else -1
