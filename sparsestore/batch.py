"""What a consumer gets: some rows, what stands beside them, and which rows they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsestore.csr import Rows
from sparsestore.forking import imported

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["SAMPLE_WEIGHT", "Batch", "Strip", "check_targets", "check_texts", "check_whole", "targets"]

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
    The arrays are the consumer's until it lets go of the last of them and of their views; only then is their memory
    used again. Some batches that follow each other share a block of memory, so one kept batch keeps its neighbours', a
    few MiB: copy what is to be kept for long.
    """

    x: csr_array | Array
    y: Array | dict[str, Array] | None
    sample_weight: Array | None
    row_ids: NDArray[np.int64]
    columns: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Strip:
    """Some batches in a row, copied out together.

    Attributes
    ----------
    x : Rows, or (n, n_features) array
        All their rows: a dense array where that was asked for.
    columns : dict of str to (n,) or (n, k) array
    row_ids : (n,) int64 array
        Row numbers in the store.
    bounds : (n_batches + 1,) list of int
        Batch b is rows ``bounds[b]`` to ``bounds[b + 1]``.
    """

    x: Rows | Array
    columns: dict[str, Array]
    row_ids: NDArray[np.int64]
    bounds: list[int]

    def batches(self) -> Iterator[Batch]:
        """The batches, each over its part of the strip's memory."""
        for start, stop in pairwise(self.bounds):
            columns = {name: values[start:stop] for name, values in self.columns.items()}
            y, sample_weight = targets(columns)
            x = self.x.slice(start, stop).to_scipy() if isinstance(self.x, Rows) else self.x[start:stop]
            yield Batch(x, y, sample_weight, self.row_ids[start:stop], columns)


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


def check_targets(columns: Iterable[str]) -> None:
    """See that there is a target where there are weights.

    Raises
    ------
    ValueError
        There is none.
    """
    if tuple(columns) == (SAMPLE_WEIGHT,):
        raise ValueError(
            f"columns has {SAMPLE_WEIGHT!r} and nothing to weigh: add 'y', or leave it out, and weights, which give it"
        )


def check_texts(texts: Iterable[str], framework: str) -> None:
    """See that no chosen column holds texts.

    Raises
    ------
    ValueError
        One does.
    """
    if found := ", ".join(map(repr, texts)):
        raise ValueError(
            f"column {found} holds texts, and {framework} has no tensors of texts: choose others with columns="
        )


def check_whole(columns: Mapping[str, Array]) -> None:
    """See that no value of some columns is missing.

    Raises
    ------
    ValueError
        One is.
    """
    for name, values in columns.items():
        if (masked := imported("numpy.ma")).is_masked(values):
            missing = int(masked.getmaskarray(values).sum())
            raise ValueError(f"column {name!r} lacks {missing} of {values.size} values, and a tensor can not say so")
