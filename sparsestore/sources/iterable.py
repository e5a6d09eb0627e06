"""Blocks of rows that Python gives one after the other: (x, y) of a generator, a vectorizer's output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.columns import array_of
from sparsestore.csr import number_dtype
from sparsestore.errors import SourceError
from sparsestore.sources import options
from sparsestore.sources.base import Block
from sparsestore.sources.memory import MemorySource

__all__ = ["IterableSource"]

_NAMES = ("y", "sample_weight")
"""What stands behind x in a block, as in Keras."""


class IterableSource:
    """Rows of blocks ``x``, ``(x, y)``, ``(x, y, sample_weight)`` or ``(x, {"name": values, ...})``.

    The first block is asked for at once: it says how many features there are and which columns. A block may have any
    number of rows, and is in memory anyway; beside it `blocks` holds what `MemorySource` does.

    Parameters
    ----------
    data : iterable
        Each x a 2-D scipy.sparse matrix or array or numpy array, the others (n,) or (n, k) arrays. A list can be read
        again, a generator once, so that a conversion of one that was interrupted starts again.
    n_features : int, optional
        A larger width than the blocks have.
    dtype : optional
        Of the values; otherwise numpy's common dtype of all blocks.

    Raises
    ------
    ValueError
        Where there is no block, or the first is none.
    """

    unit = "rows"
    sorted_rows = True
    n_rows: int | None = None
    size: int | None = None

    def __init__(self, data: Iterable[Any], *, n_features: int | None = None, dtype: DTypeLike | None = None) -> None:
        self.name = f"{type(data).__name__} of blocks in memory"
        self.dtype: np.dtype[Any] | None = None if dtype is None else number_dtype(dtype)
        self.n_features: int | None = None
        self._once = iter(data) is data
        self._data = data
        self._begun = False
        start = iter(data)
        try:
            first = next(start)
        except StopIteration:
            raise ValueError(f"{self.name}: gives no block, expected at least one: (x, y)") from None
        self._ahead = chain([first], start) if self._once else None
        x, columns = self._parts(first, 0)
        self._found = int(x.data.shape[1])
        self.n_features = options.width(self.name, self._found, n_features)
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {
            name: ("string" if values.dtype.kind in "OUT" else values.dtype.name, values.shape[1:])
            for name, values in columns.items()
        }

    @staticmethod
    def takes(data: Any) -> bool:
        """Whether it can be iterated over, and is no table, text or mapping, which give other things than blocks."""
        others = (str, bytes, bytearray, memoryview, Mapping, set, frozenset)
        return isinstance(data, Iterable) and not isinstance(data, others) and not hasattr(data, "dtypes")

    def provenance(self) -> dict[str, Any]:
        """What it was; nothing more is known."""
        return {"source": self.name}

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        if self._ahead is not None and self._begun:
            raise ValueError(f"{self.name}: was read already and gives its blocks once: make it anew")
        self._begun = True
        row = 0
        for number, item in enumerate(self._ahead if self._ahead is not None else self._data):
            x, columns = self._parts(item, number)
            if set(columns) != set(self.columns):
                raise SourceError(
                    f"{self.name}: block {number} has columns {sorted(columns)}, expected those of the first, "
                    f"{sorted(self.columns)}"
                )
            if x.data.shape[1] != self._found:
                raise SourceError(
                    f"{self.name}: block {number} has {x.data.shape[1]} features, expected {self._found} as the first"
                )
            start = 0
            for part in self._told(x.blocks(max_bytes), number):
                stop = start + len(part.x)
                yield Block(part.x, {name: columns[name][start:stop] for name in self.columns}, row + stop)
                start = stop
            row += start

    def _told(self, parts: Iterator[Block], number: int) -> Iterator[Block]:
        """Parts of a block; what is wrong with one is said of the block."""
        try:
            yield from parts
        except ValueError as error:
            raise SourceError(f"{self.name}: block {number}: {error}") from error

    def _parts(self, item: Any, number: int) -> tuple[MemorySource, dict[str, NDArray[Any]]]:
        """The matrix of a block, and its columns by name."""
        where = f"{self.name}: block {number}"
        x, *others = item if isinstance(item, tuple) else (item,)
        if len(others) == 1 and isinstance(others[0], Mapping):
            named = dict(others[0])
        elif len(others) <= len(_NAMES):
            named = dict(zip(_NAMES, others, strict=False))
        else:
            raise SourceError(f"{where} has {len(others) + 1} parts, expected x, (x, y), (x, y, sample_weight)")
        try:
            matrix = MemorySource(x, n_features=self.n_features, dtype=self.dtype)
        except ValueError as error:
            raise SourceError(f"{where}: {error}") from error
        columns = {str(name): array_of(str(name), values) for name, values in named.items() if values is not None}
        for name, values in columns.items():
            if values.ndim not in (1, 2) or len(values) != matrix.n_rows:
                raise SourceError(
                    f"{where}: {name!r} has shape {values.shape}, expected a value, or k, for each of its "
                    f"{matrix.n_rows} rows"
                )
        return matrix, columns
