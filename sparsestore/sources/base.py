"""What every input format gives: named blocks of rows, or triples in any order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sparsestore.csr import Rows

__all__ = ["Block", "Source", "Triples"]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a source and what stands beside them.

    Attributes
    ----------
    x : Rows
        Canonical rows. `x.n_features` is the source's, or, while that is not known yet, enough for these rows.
    columns : dict of str to (n,) or (n, k) array
        One value (or k) a row, for each column that the source has: "y", "sample_weight", "qid", ...
    position : int
        How far the source has been read, in the unit of `Source.size`; for progress only.
    """

    x: Rows
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    position: int = 0


@dataclass(frozen=True, slots=True)
class Triples:
    """Entries of a matrix in any order.

    Attributes
    ----------
    rows, features : (n,) int64 arrays
        0-based, already checked against the declared shape.
    values : (n,) array
    position : int
        As in `Block`.
    n_rows : int
        How many rows there are at least, where that is more than `rows` tell: those of entries that were left out.
    """

    rows: NDArray[np.int64]
    features: NDArray[np.int64]
    values: NDArray[Any]
    position: int = 0
    n_rows: int = 0


@runtime_checkable
class Source(Protocol):
    """An input format. Making one reads headers only; `blocks` may be called again and starts from the beginning.

    Attributes
    ----------
    name : str
        What messages and provenance call it: the path, or "scipy csr_matrix in memory".
    n_rows, n_features : int or None
        None where only the end of the input tells.
    dtype : numpy dtype or None
        Logical dtype of the values; None where only the values tell.
    columns : mapping of str to (dtype string, trailing shape)
        The columns that every block carries, e.g. ``{"y": ("float64", ())}``.
    size : int or None
        Total of `Block.position`: bytes of a file, rows of a matrix in memory.
    unit : str
        "bytes" or "rows", the unit of `size`.
    sorted_rows : bool
        True: `blocks` yields `Block`s in row order. False: it yields `Triples` in any order; the caller sorts them.

    Notes
    -----
    What only some have, for those who look for it:

    - ``feature_names``: names of the features, once all blocks were read, or None;
    - ``numbered``: whether the column "row_id" has the numbers that rows had where they came from;
    - ``shuffled``: how the rows were shuffled, as a manifest has it, or None;
    - ``adopt(names)``: features that have their numbers already, of a source that numbers texts; it has those that come
      behind them in ``feature_names``;
    - ``width``: of triples whose features are texts: how many there are so far, those adopted included;
    - ``hold(max_bytes)``: called before `blocks`, limits what a source keeps until its end, such as dictionaries;
    - ``in_order(order, max_bytes)``: `blocks`, but row i is row ``order[i]``, of rows that cost the same in any order;
      None where they do not;
    - ``beside(rows)``: of triples with columns: their values of some rows, (k,) int64, once all triples were read.
    - ``parts(n)``: at most n sources that together give the same rows, in order, each a consecutive part of them, for
      as many processes: pickled, of classes that can be imported. One where the input can not be cut. Their messages
      name the same places; `size`, `position` and `n_rows` are of the part;
    - ``whole``: of triples: whether values are whole numbers, so that a sum that would be rounded is an error;
    - ``following()``: the same of triples whose columns stand in a file, in its order: a context manager, whose
      function of n gives those of the next n rows.
    """

    name: str
    n_rows: int | None
    n_features: int | None
    dtype: np.dtype[Any] | None
    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    size: int | None
    unit: str
    sorted_rows: bool

    def blocks(self, max_bytes: int) -> Iterator[Any]:
        """Yield the input in order, in blocks of at most `max_bytes` each (a single row may exceed it)."""
        ...

    def provenance(self) -> dict[str, Any]:
        """JSON facts of where the data came from and how it was read: path, size, mtime, options."""
        ...
