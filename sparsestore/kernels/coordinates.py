"""The compiled loop behind sparse tensors: row and feature number of every entry, side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels.native import Kernel
from sparsestore.kernels.prefetching import AHEAD, prefetching

__all__ = ["coordinates", "coordinates_numpy"]

Array = NDArray[Any]


@Kernel(needs=prefetching)  # type: ignore[call-arg]
def coordinates(indices: Array, starts: Array, lengths: Array, targets: Array, rows: Array, out: Array) -> None:
    """Write pairs (rows[i], feature number) of entries [starts[i], starts[i] + lengths[i]) from pair targets[i] on.

    `out` holds the pairs one after the other: twice as many elements as there are entries.
    """
    n_rows = np.uint64(len(starts))
    for i in range(n_rows):
        # rows come in any order: without this every one would wait for memory
        coming = np.uint64(i) + AHEAD
        if coming < n_rows:
            fetch_row(indices, starts[coming], lengths[coming])  # type: ignore[name-defined]  # noqa: F821
        source, target = np.uint64(starts[i]), np.uint64(targets[i]) * np.uint64(2)
        row = rows[i]
        for j in range(np.uint64(lengths[i])):
            at = target + np.uint64(j) * np.uint64(2)
            out[at] = row
            out[at + np.uint64(1)] = indices[source + np.uint64(j)]


def coordinates_numpy(indices: Array, starts: Array, lengths: Array, targets: Array, rows: Array, out: Array) -> None:
    """Twin of `coordinates`."""
    for start, length, target, row in zip(
        starts.tolist(), lengths.tolist(), targets.tolist(), rows.tolist(), strict=True
    ):
        pairs = out[2 * target : 2 * (target + length)].reshape(-1, 2)
        pairs[:, 0] = row
        pairs[:, 1] = indices[start : start + length]
