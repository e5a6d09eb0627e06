"""One window of an epoch, found on disk and checked: its batches are copied out strip by strip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.batch import Strip
from sparsestore.buffers import Buffers
from sparsestore.csr import Rows
from sparsestore.reader import Coordinates, Found, Located
from sparsestore.storage import Advice

__all__ = ["STRIP_BYTES", "Window"]

Array = NDArray[Any]

STRIP_BYTES = 7 << 20
"""What is copied out at a time: enough that a call costs little beside it, and little enough to stay in the cache. With
the eighth that `Buffers` adds it is four large pages."""


class Window:
    """Rows of whole batches, found on disk, and in their final order once they are loaded.

    Holds places, not entries: some 60 bytes a row, and the columns. One thread at a time. Of `n_rows` rows `n_found`
    are different ones.

    Parameters
    ----------
    found : Found
        The rows in the order of the file.
    order : int64 array or None
        Their final order; None: as they are. A row may come several times: it is found and checked once, and copied
        each time.
    columns : dict of str to (n,) or (n, k) array
        In the order of the file.
    row_ids : (n,) int64 array
        Row numbers in the store, in the order of the file.
    batch_size : int
        Rows in a batch; the last one may be short.
    n_features : int
        Width of a batch.
    features : (n_features,) int64 array or None
        Only these features, renumbered in the order given.
    dtype : dtype
        Of the values of a batch.
    """

    def __init__(
        self,
        found: Found,
        order: NDArray[np.int64] | None,
        columns: dict[str, Array],
        row_ids: NDArray[np.int64],
        *,
        batch_size: int,
        n_features: int,
        features: NDArray[np.int64] | None,
        dtype: np.dtype[Any],
    ) -> None:
        self._found = found
        self._order = order
        self._batch_size = batch_size
        self._n_features = n_features
        self._features = features
        self._dtype = dtype
        self._loaded: Located | None = None
        self.row_ids = row_ids if order is None else row_ids[order]
        self.n_rows = len(self.row_ids)
        self.n_found = len(row_ids)
        self.columns = columns if order is None else {name: values[order] for name, values in columns.items()}

    @property
    def mapped(self) -> bool:
        """Whether all of the window's entries lie in maps, uncompressed."""
        return self._found.mapped

    def load(self, buffers: Buffers | None = None, *, direct: bool = False) -> Located:
        """Check the window's entries, or decode them, once; else that is done when the first of them is asked for.

        With `buffers` they are copied into memory of these, with `direct` around the page cache.

        Raises
        ------
        CorruptStoreError
            They are damaged.
        """
        if self._loaded is None:
            located = self._found.load(buffers, direct=direct)
            self._loaded = located if self._order is None else located.reordered(self._order)
        return self._loaded

    def forget(self) -> None:
        """Let go of entries that were copied."""
        self._loaded = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of the window's entries as they are stored."""
        return self._found.stored_bytes

    def advise(self, advice: Advice) -> None:
        """Tell the system what will be done with the window's entries."""
        self._found.advise(advice)

    def cuts(self, first: int, last: int, layout: str, strip_bytes: int = STRIP_BYTES) -> Iterator[tuple[int, int]]:
        """Batches `first` to `last`, cut into runs whose arrays take `strip_bytes` or a quarter of all, or one batch.

        Raises
        ------
        CorruptStoreError
            Where the window's entries are damaged: they are checked, or decoded, when they are first asked for.
        """
        starts = np.minimum(np.arange(first, last + 1) * self._batch_size, self.n_rows)
        located = self.load()
        if layout == "dense":
            ends = starts * (self._n_features * self._dtype.itemsize)
        else:
            entries = np.concatenate([np.zeros(1, np.int64), np.cumsum(located.lengths[starts[0] : starts[-1]])])
            ends = entries[starts - starts[0]] * (4 + self._dtype.itemsize)
        # some strips are alive at once, and together they should not outweigh a small window
        strip_bytes = min(strip_bytes, int(ends[-1] - ends[0]) // 4)
        at = 0
        while at < last - first:
            stop = int(np.searchsorted(ends, ends[at] + strip_bytes, side="right")) - 1
            stop = min(max(stop, at + 1), last - first)
            yield first + at, first + stop
            at = stop

    def strip(self, first: int, last: int, layout: str, buffers: Buffers | None = None) -> Strip:
        """Copy batches `first` to `last` out, into a block of `buffers` or fresh arrays."""
        size = self._batch_size
        start, stop = self._range(first, last)
        bounds = [*range(0, stop - start, size), stop - start]
        columns = self.beside(first, last)
        x = self._rows(start, stop, buffers) if layout == "sparse" else self._dense(start, stop, buffers)
        return Strip(x, columns, self.row_ids[start:stop], bounds)

    def coordinates(self, first: int, last: int, buffers: Buffers | None = None) -> Coordinates:
        """Copy batches `first` to `last` out, as `strip` does, in the form of sparse tensors."""
        start, stop = self._range(first, last)
        if self._features is None:
            return self.load().coordinates(start, stop, self._batch_size, self._dtype, buffers)
        rows = Located.of(self._chosen(start, stop, self._features))
        return rows.coordinates(0, stop - start, self._batch_size, self._dtype, buffers)

    def dense(self, first: int, last: int, buffers: Buffers | None = None) -> Array:
        """Copy batches `first` to `last` out, as `strip` does: the (n, n_features) array alone."""
        return self._dense(*self._range(first, last), buffers)

    def beside(self, first: int, last: int) -> dict[str, Array]:
        """The columns of batches `first` to `last`."""
        rows = slice(*self._range(first, last))
        return {name: values[rows] for name, values in self.columns.items()}

    def _range(self, first: int, last: int) -> tuple[int, int]:
        """Rows of batches `first` to `last`."""
        return first * self._batch_size, min(last * self._batch_size, self.n_rows)

    def _rows(self, start: int, stop: int, buffers: Buffers | None) -> Rows:
        if self._features is None:
            return self.load().copy(start, stop, self._dtype, buffers)
        return self._chosen(start, stop, self._features).astype(self._dtype)

    def _chosen(self, start: int, stop: int, features: NDArray[np.int64]) -> Rows:
        """Some features of some rows; values are as wide as scipy, which picks them, and compiled loops need them."""
        wide = np.dtype(np.float32) if self._dtype == np.float16 else self._dtype
        return self.load().copy(start, stop, wide).take_features(features)

    def _dense(self, start: int, stop: int, buffers: Buffers | None) -> Array:
        shape = (stop - start, self._n_features)
        out = (buffers or Buffers()).empty(shape[0] * shape[1], self._dtype).reshape(shape)
        if self._features is not None or self._dtype == np.float16:  # which compiled loops do not know
            out[:] = 0
            self._rows(start, stop, None).to_dense(out)
        else:
            self.load().scatter(start, stop, out)
        return out
