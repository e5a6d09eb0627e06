"""What a consumer gets: some rows, what stands beside them, and which rows they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsestore.csr import Rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["SAMPLE_WEIGHT", "Batch", "PieceData", "targets"]

Array = NDArray[Any]
T = TypeVar("T")

SAMPLE_WEIGHT = "sample_weight"


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as a model takes them.

    Attributes
    ----------
    x : (n, n_features) scipy.sparse.csr_array, or array with ``layout="dense"``
        Canonical: column numbers ascend inside each row.
    y : (n,) or (n, k) array, dict of such, or None
        The chosen column; a dict by name where several were chosen beside "sample_weight", None where none was.
    sample_weight : (n,) array or None
    row_ids : (n,) int64 array
        Row numbers in the store that was opened: ``store[batch.row_ids]`` equals ``batch.x``.
    columns : dict of str to (n,) or (n, k) array
        Every chosen column by its name.

    Notes
    -----
    The arrays are the consumer's: made for one window, never written to or handed out again. Batches of one window are
    disjoint slices of the same memory (no copy is made), so one kept batch keeps its window's memory, `window_rows`
    rows, alive: copy what is to be kept for long. A dense `x` has memory of its own.
    """

    x: csr_array | Array
    y: Array | dict[str, Array] | None
    sample_weight: Array | None
    row_ids: NDArray[np.int64]
    columns: dict[str, Array]


@dataclass(frozen=True, slots=True)
class PieceData:
    """Whole batches, read together, their rows in final order, in arrays that nobody else holds.

    Attributes
    ----------
    x : Rows
    columns : dict of str to (n,) or (n, k) array
    row_ids : (n,) int64 array
        Row numbers in the store.
    batch_bounds : (n_batches + 1,) int64 array
        Batch b is rows ``batch_bounds[b]`` to ``batch_bounds[b + 1]``.
    """

    x: Rows
    columns: dict[str, Array]
    row_ids: NDArray[np.int64]
    batch_bounds: NDArray[np.int64]

    def batch(self, b: int, layout: str) -> Batch:
        """Batch b of the piece; `layout` is "sparse" or "dense"."""
        start, stop = int(self.batch_bounds[b]), int(self.batch_bounds[b + 1])
        rows = self.x.slice(start, stop)
        columns = {name: values[start:stop] for name, values in self.columns.items()}
        y, sample_weight = targets(columns)
        x = rows.to_scipy() if layout == "sparse" else rows.to_dense()
        return Batch(x, y, sample_weight, self.row_ids[start:stop], columns)


def targets(columns: Mapping[str, T]) -> tuple[T | dict[str, T] | None, T | None]:
    """`y` and `sample_weight` of the chosen columns: one column is y itself, several are a dict, none is None.

    Examples
    --------
    >>> targets({"y": 1, "sample_weight": 2})
    (1, 2)
    >>> targets({"click": 0, "buy": 1})
    ({'click': 0, 'buy': 1}, None)
    """
    beside = {name: values for name, values in columns.items() if name != SAMPLE_WEIGHT}
    y: T | dict[str, T] | None = beside or None
    if len(beside) == 1:
        (y,) = beside.values()
    return y, columns.get(SAMPLE_WEIGHT)
