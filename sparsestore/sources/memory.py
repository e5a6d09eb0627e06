"""Matrices in memory: any scipy.sparse layout, and dense numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from sparsestore import csr
from sparsestore.csr import Rows
from sparsestore.errors import SourceError
from sparsestore.sources import layouts, options
from sparsestore.sources.base import Block

__all__ = ["MemorySource"]


class MemorySource:
    """Rows of a matrix in memory: unsorted ones sorted, duplicates summed as scipy does, in the dtype of the values.

    Beside the matrix itself `blocks` holds at most `max_bytes` and

    - csr, bsr, dense, coo with ascending rows: nothing more;
    - coo, csc with fewer entries than rows: 28 bytes an entry;
    - coo, csc, dia, dok, lil otherwise: what scipy's conversion to CSR takes, at most 24 bytes an entry and 8 a row.

    Parameters
    ----------
    data : 2-D scipy.sparse matrix or array, 2-D numpy array, or Rows
        Must not change while it is read. The zeros of a dense matrix, and those inside the blocks of a bsr one, are no
        entries; explicit zeros of the others are.
    n_features : int, optional
        A larger width than the matrix has.
    dtype : optional
        Another dtype of the values.

    Attributes
    ----------
    data : matrix or array
        What was given.
    """

    unit = "rows"
    sorted_rows = True

    def __init__(self, data: Any, *, n_features: int | None = None, dtype: DTypeLike | None = None) -> None:
        from scipy.sparse import issparse

        if isinstance(data, Rows):
            data = data.to_scipy()
        is_sparse = bool(issparse(data))
        if isinstance(data, np.ma.MaskedArray):
            raise ValueError("numpy masked array: its mask can not be stored: fill it first")
        if not is_sparse and not isinstance(data, np.ndarray):
            raise ValueError(
                f"found a {type(data).__name__}, expected a path, a scipy.sparse matrix, a 2-D numpy array, a store, "
                "or an iterable of blocks (x, y)"
            )
        self.name = f"{'scipy' if is_sparse else 'numpy'} {type(data).__name__} in memory"
        if data.ndim != 2:
            raise ValueError(f"{self.name}: has {data.ndim} dimensions, expected 2: reshape it to (rows, features)")
        self.data: Any = data
        self._width = options.width(self.name, int(data.shape[1]), n_features)
        self._dtype = options.value_dtype(self.name, data.dtype, dtype)
        self.n_rows: int | None = int(data.shape[0])
        self.n_features: int | None = self._width
        self.dtype: np.dtype[Any] | None = self._dtype
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.size: int | None = self.n_rows

    @staticmethod
    def takes(data: Any) -> bool:
        """Whether it is a matrix."""
        from scipy.sparse import issparse

        return isinstance(data, (np.ndarray, Rows)) or bool(issparse(data))

    def provenance(self) -> dict[str, Any]:
        """What it was; nothing more is known."""
        return {"source": self.name}

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        x: Any = self.data
        shape = (int(self.data.shape[0]), int(self.data.shape[1]))
        made: dict[str, Any] = {"width": self._width, "dtype": self._dtype, "max_bytes": max_bytes}
        if isinstance(x, np.ndarray):
            return layouts.dense_blocks(self.name, lambda start, stop: np.asarray(x[start:stop]), shape, **made)
        if x.format in ("dok", "dia"):
            x = x.tocoo()
        if x.format in ("coo", "csc"):
            self._check(x)
        if x.format == "coo" and (x.nnz < shape[0] or bool((x.row[1:] >= x.row[:-1]).all())):
            return layouts.sorted_blocks(self.name, x.row, x.col, x.data, shape=shape, **made)
        if x.format == "csc" and x.nnz < shape[0]:
            x = x.tocoo(copy=False)
            return layouts.sorted_blocks(self.name, x.row, x.col, x.data, shape=shape, **made)
        if x.format not in ("csr", "bsr"):
            x = x.tocsr()
        arrays = [layouts.reader(self.name, array) for array in (x.indptr, x.indices, x.data)]
        n = min(len(x.indices), len(x.data))
        made["in_memory"] = True
        if x.format == "bsr":
            return layouts.bsr_blocks(self.name, *arrays, shape=shape, block=x.blocksize, n_entries=n, **made)
        return layouts.csr_blocks(self.name, *arrays, shape=shape, n_entries=n, **made)

    def _check(self, x: Any) -> None:
        """Raise SourceError where scipy's conversions, which trust the arrays, would leave them (scipy#8778)."""
        if x.format == "coo":
            layouts.check_range(self.name, "row", x.row, int(x.shape[0]))
            layouts.check_range(self.name, "column", x.col, int(x.shape[1]))
            lengths = {len(x.row), len(x.col), len(x.data)}
            if len(lengths) > 1:
                raise SourceError(f"{self.name}: row, col and data have lengths {sorted(lengths)}, expected equal ones")
            return
        if len(x.indptr) != x.shape[1] + 1:
            raise SourceError(f"{self.name}: indptr has {len(x.indptr)} elements, expected {x.shape[1] + 1}")
        try:
            csr.check(Rows(np.asarray(x.indptr), np.asarray(x.indices), x.data, int(x.shape[0])))
        except ValueError as error:
            raise SourceError(f"{self.name}: in its transpose: {error}") from error
