"""Stands in for the reader: a scipy matrix in memory that records what is asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import Rows, empty_aligned, index_dtype
from sparsestore.format import ColumnSchema
from sparsestore.loader import Loader
from sparsestore.plan.window import Plan
from sparsestore.reader import Coordinates, Located
from sparsestore.weights import weights_of

Array = NDArray[Any]


def random_matrix(n_rows: int, n_features: int, density: float, seed: int = 0) -> scipy.sparse.csr_array:
    """Random rows, some of them empty."""
    rng = np.random.default_rng(seed)
    return scipy.sparse.random_array((n_rows, n_features), density=density, rng=rng, format="csr", dtype=np.float32)


@dataclass(frozen=True)
class AllRows:
    """A selection of every row."""

    n_rows: int
    name: str = "all"

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(positions, np.int64)

    def fingerprint(self) -> str:
        return self.name


@dataclass(frozen=True)
class ChosenRows:
    """A selection of the given rows."""

    chosen: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        return len(self.chosen)

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.chosen[positions]

    def fingerprint(self) -> str:
        return f"chosen {len(self.chosen)}"


@dataclass(frozen=True)
class FakeLocated:
    matrix: scipy.sparse.csr_array
    rows: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.matrix.indptr)[self.rows].astype(np.int64)

    @property
    def nnz(self) -> int:
        return int(self.lengths.sum())

    def reordered(self, order: NDArray[np.int64]) -> FakeLocated:
        return FakeLocated(self.matrix, self.rows[order])

    def copy(self, start: int, stop: int, dtype: DTypeLike = np.float32, _buffers: Any = None) -> Rows:
        chosen = self.matrix[self.rows[start:stop]]
        width = self.matrix.shape[1]
        parts = [(chosen.indptr, np.int64), (chosen.indices, index_dtype(width)), (chosen.data, dtype)]
        out = [empty_aligned(len(values), wanted) for values, wanted in parts]
        for target, (values, _) in zip(out, parts, strict=True):
            target[:] = values
        return Rows(out[0], out[1], out[2], width)

    def coordinates(self, start: int, stop: int, batch_size: int, dtype: DTypeLike, buffers: Any = None) -> Coordinates:
        return Located.of(self.copy(start, stop)).coordinates(0, stop - start, batch_size, dtype, buffers)

    def scatter(self, start: int, stop: int, out: Array) -> None:
        out[:] = self.matrix[self.rows[start:stop]].toarray()


@dataclass(frozen=True)
class FakeFound:
    located: FakeLocated

    def advise(self, advice: object) -> None:
        """Nothing is read ahead of a matrix in memory, nor dropped."""

    @property
    def stored_bytes(self) -> int:
        return 0

    mapped = True

    def load(self, _buffers: Any = None, **_: Any) -> FakeLocated:
        return self.located


def at_once(_: int) -> None:
    """For `before_find`: nothing; a function with a name, as it goes to processes that are spawned."""


class FakeReader:
    """The reader's face over a matrix in memory.

    `found` records the rows of each call of `find`. `before_find` is called first, with the number of calls
    before this one: it may fail or wait.
    """

    def __init__(
        self,
        x: scipy.sparse.csr_array,
        columns: dict[str, Array] | None = None,
        *,
        version: int = 1,
        before_find: Callable[[int], None] = at_once,
    ) -> None:
        self.matrix = x
        self.values = columns or {}
        self.version = version
        self.versions = [version]
        self.before_find = before_find
        self.found: list[NDArray[np.int64]] = []
        self.columns = {
            name: ColumnSchema("string" if values.dtype == object else values.dtype.name, values.shape[1:])
            for name, values in self.values.items()
        }

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    stored_bytes = 0

    @property
    def nnz(self) -> int:
        return int(self.matrix.nnz)

    def check_holds(self, dtype: np.dtype[Any]) -> None:
        """It keeps values in one array, of whatever dtype."""

    def find(self, rows: NDArray[np.int64]) -> FakeFound:
        self.before_find(len(self.found))
        self.found.append(rows)
        return FakeFound(FakeLocated(self.matrix, rows))

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.diff(self.matrix.indptr)[rows].astype(np.int64)

    def column(self, name: str, rows: NDArray[np.int64] | slice) -> Array:
        return np.array(self.values[name][rows])


def make_loader(
    reader: FakeReader,
    *,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int = 0,
    window_rows: int | None = None,
    block_rows: int = 4,
    drop_remainder: bool = False,
    segments: Sequence[int] | None = None,
    selection: Any = None,
    weights: Any = None,
    **options: Any,
) -> Loader:
    """A loader over a fake reader; windows of 4 batches unless told; weights as those of a view."""
    selection = selection or AllRows(reader.shape[0])
    if weights is not None:
        options["weights"] = weights_of(weights, reader, selection)  # type: ignore[arg-type]
    plan = Plan(
        np.array(segments if segments is not None else [selection.n_rows]),
        batch_size=batch_size,
        block_rows=block_rows,
        window_rows=window_rows or 4 * batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
    )
    return Loader(reader, selection, plan=plan, **options)  # type: ignore[arg-type]


def slow(seconds: float) -> Callable[[int], None]:
    """For `before_find`: every read takes this long."""
    return lambda _: time.sleep(seconds)
