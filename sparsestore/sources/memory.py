"""Matrices in memory: any scipy.sparse layout, and dense numpy."""

from __future__ import annotations

from array import array as array_of_python
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore import csr
from sparsestore.csr import Rows
from sparsestore.errors import SourceError
from sparsestore.sources import layouts, options
from sparsestore.sources.base import Block

__all__ = ["MemorySource"]

Array = NDArray[Any]


class MemorySource:
    """Rows of a matrix in memory: unsorted ones sorted, duplicates summed, an error where the dtype can not hold a sum.

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
        made: dict[str, Any] = {"shape": self.data.shape, **self._made(max_bytes)}
        if isinstance(self.data, np.ndarray):
            x: Any = self.data
            return layouts.dense_blocks(self.name, lambda start, stop: np.asarray(x[start:stop]), **made)
        x = self._laid_out()
        if x.format == "coo":
            return layouts.sorted_blocks(self.name, x.row, x.col, x.data, **made)
        arrays = [layouts.reader(self.name, array) for array in (x.indptr, x.indices, x.data)]
        n = min(len(x.indices), len(x.data))
        made["in_memory"] = True
        if x.format == "bsr":
            return layouts.bsr_blocks(self.name, *arrays, block=x.blocksize, n_entries=n, **made)
        return layouts.csr_blocks(self.name, *arrays, n_entries=n, **made)

    def in_order(self, order: NDArray[np.int64], max_bytes: int) -> Iterator[Block] | None:
        """Yield the rows in another order; None where they have none that is as good, or lie in a file that is mapped.

        Beside `max_bytes` it holds what `blocks` does, and 8 bytes a row.
        """
        made: dict[str, Any] = {"shape": self.data.shape, **self._made(max_bytes)}
        x: Any = self.data
        if isinstance(x, np.ndarray):
            if _is_mapped(x):
                return None
            blocks = layouts.dense_blocks(self.name, lambda start, stop: np.asarray(x[order[start:stop]]), **made)
            return self._told(blocks, max_bytes)
        x = self._laid_out()
        if x.format != "csr":
            return None
        arrays = (x.indptr, x.indices, x.data)
        if x.indices.dtype not in (np.int32, np.int64) or any(
            _is_mapped(array) or not array.flags.c_contiguous or not array.dtype.isnative for array in arrays
        ):
            return None
        return self._told(layouts.csr_blocks_in_order(self.name, *arrays, order, **made), max_bytes)

    def _told(self, blocks: Iterator[Block], max_bytes: int) -> Iterator[Block]:
        """The blocks; an error of one names the rows that are wrong where they stand."""
        try:
            yield from blocks
        except SourceError:
            for _ in self.blocks(max_bytes):
                pass
            raise

    def _made(self, max_bytes: int) -> dict[str, Any]:
        return {"width": self._width, "dtype": self._dtype, "max_bytes": max_bytes}

    def _laid_out(self) -> Any:
        """The sparse matrix in the layout that it is read from."""
        x: Any = self.data
        n_rows = x.shape[0]
        if x.format in ("dok", "dia"):
            x = x.tocoo()
        if x.format in ("coo", "csc"):
            self._check(x)
        if x.format == "coo" and (x.nnz < n_rows or bool((x.row[1:] >= x.row[:-1]).all())):
            return x
        if x.format == "csc" and x.nnz < n_rows:
            return x.tocoo(copy=False)
        return x if x.format in ("csr", "bsr") else csr.as_csr(x)

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


def _is_mapped(array: Array) -> bool:
    """Whether an array is, or may be, a file that is mapped into memory."""
    base: Any = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    # unpickled arrays are of bytes, those of scikit-learn's vectorizers of Python's arrays; others may be anything
    return not isinstance(base, (type(None), bytes, bytearray, array_of_python))
