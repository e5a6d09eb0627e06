"""Executes a plan over a reader: batches in their order, and the position in it as JSON."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from copy import copy
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.batch import SAMPLE_WEIGHT, Batch, Strip
from sparsestore.buffers import Buffers
from sparsestore.forking import Lock, check_process
from sparsestore.format import ColumnSchema
from sparsestore.plan import sampling
from sparsestore.plan.partition import Piece, deal, pieces
from sparsestore.prefetch import prefetch
from sparsestore.read_ahead import ReadAhead
from sparsestore.window import Window

if TYPE_CHECKING:
    from sparsestore.plan.selection import Selection
    from sparsestore.plan.window import Plan
    from sparsestore.reader import Reader
    from sparsestore.weights import Weights

__all__ = ["LAYOUTS", "Loader", "Run"]

LAYOUTS = ("sparse", "dense")

T = TypeVar("T")


class Run(NamedTuple):
    """Batches `start` to `stop` of one piece of one epoch."""

    epoch: int
    piece: int
    start: int
    stop: int


class Loader:
    """Batches of a view, in an order that the plan gives; each iteration is the next epoch.

    Parameters
    ----------
    reader : Reader
        The store, pinned to a version.
    selection : Selection
        Which rows of it.
    plan : Plan
        In which order, in batches of which size.
    columns : tuple of str
        What comes beside x.
    features : (k,) int64 array, optional
        Only these features, in this order, renumbered from 0.
    dtype : dtype
        Of the values of x.
    layout : {"sparse", "dense"}
        Of `Batch.x`.
    partition, n_partitions : int
        Which worker's share; all shares have the same number of batches.
    weights : Weights, optional
        The rows of each window are drawn by these, out of a plan that shuffles; the column "sample_weight" is then
        always there.

    Raises
    ------
    ValueError
        Unknown layout or column, or not one batch.

    Notes
    -----
    Background threads follow each other: one finds the rows of a window, one checks or reads the window before where
    there is memory for that, one copies batches out of the window before that, some MiB at a time. Of a window only the
    places of its rows are held, and its columns; its entries too where the store is compressed, or larger than memory:
    then of one or two windows, as memory has room for them. No thread and no file belongs to the loader itself; an
    iterator's threads end with the iterator, exhausted, closed or forgotten. Several iterators may be alive at once:
    each has an epoch of its own.
    """

    def __init__(
        self,
        reader: Reader,
        selection: Selection,
        *,
        plan: Plan,
        columns: tuple[str, ...] = (),
        features: NDArray[np.int64] | None = None,
        dtype: DTypeLike = "float32",
        layout: str = "sparse",
        partition: int = 0,
        n_partitions: int = 1,
        weights: Weights | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}")
        unknown = [name for name in columns if name not in reader.columns]
        if unknown:
            known = ", ".join(map(repr, reader.columns)) or "none"
            raise ValueError(f"no column {', '.join(map(repr, unknown))}: the store has {known}")
        if weights is not None and SAMPLE_WEIGHT in columns and reader.columns[SAMPLE_WEIGHT].dtype == "string":
            raise ValueError(f"column {SAMPLE_WEIGHT!r} holds text, and drawn rows have a number there: leave it out")
        reader.check_holds(np.dtype(dtype))
        self._reader = reader
        self._selection = selection
        self._features = features
        self._lock = Lock()
        self._found_fingerprint: str | None = None
        self.weights = weights
        self._stored = tuple(columns)
        self.columns = tuple(self.schema)
        self.dtype = np.dtype(dtype)
        self.layout = layout
        self.partition = partition
        self.n_partitions = n_partitions
        self._worker = (0, 1)
        self.plan = plan
        self.pieces, self._firsts = self._share(plan)
        self._position = self._next = (0, 0)

    def _share(self, plan: Plan) -> tuple[tuple[Piece, ...], NDArray[np.int64]]:
        """The pieces of the partition, and the number of the first batch of each; its last entry counts all batches."""
        parts = deal(pieces(plan, self.partition, self.n_partitions), *self._worker)
        firsts = np.cumsum([0, *(part.last_batch - part.first_batch for part in parts)])
        if firsts[-1] == 0 and self._worker[1] == 1:
            raise ValueError(
                f"not one batch: {plan.n_rows} rows in batches of {plan.batch_size}, drop_remainder="
                f"{plan.drop_remainder}: take a smaller batch_size or more rows"
            )
        return parts, firsts

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    def __len__(self) -> int:
        """Batches in an epoch of this partition."""
        return int(self._firsts[-1])

    def __repr__(self) -> str:
        part = "" if self.n_partitions == 1 else f", partition {self.partition} of {self.n_partitions}"
        return (
            f"<Loader: {len(self)} batches of {self.plan.batch_size} rows x {self.n_features} features, "
            f"{self.layout} {self.dtype}{part}, epoch {self.epoch}>"
        )

    @property
    def n_features(self) -> int:
        """Width of x."""
        return int(self._reader.shape[1]) if self._features is None else len(self._features)

    @property
    def epoch(self) -> int:
        """Epoch of the position: the one being read, or the one that comes next where the last batch was handed out."""
        return self._position[0]

    @property
    def following(self) -> tuple[int, int]:
        """The (epoch, batch) that the next iteration begins at."""
        return self._next

    @property
    def schema(self) -> dict[str, Any]:
        """Dtype and trailing shape of each column of a batch: as the store keeps them, but for weights of drawn rows.

        These are floats, of 32 bits where that holds the stored ones.
        """
        found = {name: self._reader.columns[name] for name in self._stored}
        if self.weights is not None:
            stored = found.get(SAMPLE_WEIGHT, ColumnSchema("float32"))
            found[SAMPLE_WEIGHT] = ColumnSchema(np.result_type(stored.dtype, np.float32).name, stored.shape)
        return found

    @property
    def texts(self) -> tuple[str, ...]:
        """The chosen columns that hold texts."""
        return tuple(name for name, column in self.schema.items() if column.dtype == "string")

    def __iter__(self) -> Iterator[Batch]:
        """Begin the next epoch; the first one after `load_state_dict` begins at the batch of the state.

        Raises
        ------
        ValueError
            If x would be a sparse array of float16, which scipy does not have.
        """
        if self.layout == "sparse" and self.dtype == np.float16:
            raise ValueError('scipy has no sparse arrays of float16: take layout="dense" or dtype="float32"')
        return self.elements(Strip.batches)

    def elements(
        self, make: Callable[[Strip], Iterable[T]], start: tuple[int, int] | None = None
    ) -> Generator[T, None, None]:
        """Begin the next epoch: what `make` gives for its strips, one element for each batch.

        `make` is called in a background thread where there is memory to be early. With `start`, an (epoch, batch), no
        epoch is claimed: what is left of that one is given.
        """
        epoch, batch = self.begin() if start is None else start
        # it goes on by the plan that it began with, though a state that is loaded meanwhile brings another one
        return self._elements(epoch, batch, make, copy(self))

    def _elements(
        self, epoch: int, batch: int, make: Callable[[Strip], Iterable[T]], begun: Loader
    ) -> Generator[T, None, None]:
        process = os.getpid()
        ahead = begun.read_ahead()
        made = begun._strips(epoch, batch, ahead, make)
        with closing(prefetch(made) if ahead.has_room_for(3 * self._batch_bytes()) else made) as strips:
            for elements in strips:
                while elements:
                    check_process(process)
                    batch += 1
                    # a batch counts as soon as it is handed out, and the position after the last one is the next epoch
                    self._position = (epoch, batch) if batch < len(self) else (epoch + 1, 0)
                    yield elements.popleft()  # no name here: its memory would wait while the next strip is copied

    def read_ahead(self, *, in_turn: bool = True) -> ReadAhead:
        """What decides along one iteration how windows come from disk: see there."""
        window_rows = min(self.plan.window_rows, self.plan.n_rows)
        return ReadAhead(self._reader.stored_bytes, self._batch_bytes(), window_rows, in_turn=in_turn)

    def _batch_bytes(self) -> int:
        """Bytes of a batch's x, about."""
        a_row = self.n_features * self.dtype.itemsize
        if self.layout == "sparse":
            a_row = self._reader.nnz // max(self._reader.shape[0], 1) * (4 + self.dtype.itemsize)
        return self.plan.batch_size * a_row

    def _strips(
        self, epoch: int, batch: int, ahead: ReadAhead, make: Callable[[Strip], Iterable[T]]
    ) -> Generator[deque[T], None, None]:
        """What is left of an epoch, copied out strip by strip while another thread locates the next window."""
        buffers = Buffers()
        runs = self.runs(epoch, batch, len(self) - batch)
        with closing(prefetch(self._windows(runs, ahead))) as windows:
            for run, window in windows:
                ahead.begin(window)
                for first, last in window.cuts(run.start, run.stop, self.layout, ahead.strip_bytes):
                    yield deque(make(window.strip(first, last, self.layout, buffers)))
                ahead.done(window)

    def _windows(self, runs: Iterator[Run], ahead: ReadAhead) -> Iterator[tuple[Run, Window]]:
        """The windows of some runs; where there is memory, all but the first are checked or copied already."""
        found = ((run, ahead.found(self.window(run.epoch, run.piece))) for run in runs)
        # the first is needed at once: whoever copies it checks it, while the next ones are looked for here
        yield from islice(found, 1)
        if not ahead.loads_ahead:
            yield from found
            return
        # what is needed next is looked for, and on its way from the disk, while the one before is checked or read
        with closing(prefetch(found)) as coming:
            for run, window in coming:
                ahead.load(window)
                yield run, window

    def follow(self, leader: Loader) -> None:
        """Take the plan of a loader of as many rows, so that batch i has the same rows here and there."""
        self.plan, self.pieces, self._firsts = leader.plan, leader.pieces, leader._firsts

    def share(self, worker: int, n_workers: int) -> Loader:
        """Worker's share of this loader's batches: together all of them, so shares may differ in length or be empty."""
        found = copy(self)
        found._worker = (worker, n_workers)
        found.pieces, found._firsts = found._share(found.plan)
        return found

    def begin(self, *, across: bool = False) -> tuple[int, int]:
        """Claim an iteration: the (epoch, batch) it starts at. Safe to call from any thread.

        The iteration after it starts at the next epoch's first batch, or, with `across`, at the same batch of the next
        epoch: for a consumer that always takes ``len(loader)`` batches, across the border where need be.
        """
        with self._lock():
            epoch, batch = self._position = self._next
            self._next = (epoch + 1, batch if across else 0)
        return epoch, batch

    def runs(self, epoch: int, batch: int, n_batches: int) -> Iterator[Run]:
        """Where the `n_batches` batches from (epoch, batch) on are found, in order, going on into later epochs."""
        while n_batches > 0:
            i = int(np.searchsorted(self._firsts, batch, side="right")) - 1
            start = batch - int(self._firsts[i])
            stop = min(start + n_batches, int(self._firsts[i + 1] - self._firsts[i]))
            yield Run(epoch, i, start, stop)
            n_batches -= stop - start
            batch += stop - start
            if batch == len(self):
                epoch, batch = epoch + 1, 0

    def window(self, epoch: int, i: int, first: int = 0, last: int | None = None) -> Window:
        """Find the rows of piece i of this partition's epoch, a pure function of (epoch, i), from any thread.

        Or only its batches `first` to `last`, which the window then numbers from 0.
        """
        part = self.pieces[i]
        size = self.plan.batch_size
        planned = self.plan.window(epoch, part.window)
        positions, order = planned.positions, planned.order
        stop = part.last_batch if last is None else part.first_batch + last
        start, stop = (part.first_batch + first) * size, min(stop * size, len(positions))
        factor = None
        if order is None:
            positions = positions[start:stop]
        else:
            if self.weights is not None:
                order, factor = self._draw(self.weights, epoch, part.window, positions, order)
            if factor is not None or stop - start < len(positions):
                # find only the rows that come, each once, still in the order of the file
                order = order[start:stop]
                needed = np.zeros(len(positions), bool)
                needed[order] = True
                positions, order = positions[needed], (np.cumsum(needed) - 1)[order]
        rows = self._selection.rows(positions)
        found = self._reader.find(rows)
        columns = {name: self._reader.column(name, rows) for name in self._stored}
        if factor is not None:
            dtype, given = self.schema[SAMPLE_WEIGHT].dtype, columns.get(SAMPLE_WEIGHT, np.ones(len(rows), np.float32))
            columns[SAMPLE_WEIGHT] = (given * factor).astype(dtype)
        return Window(
            found,
            order,
            columns,
            rows,
            batch_size=size,
            n_features=self.n_features,
            features=self._features,
            dtype=self.dtype,
        )

    def _draw(
        self, weights: Weights, epoch: int, window: int, positions: NDArray[np.int64], order: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], float]:
        """The rows that come out of a whole window, as numbers into `positions`, and what each of them counts."""
        found, classes = weights.of(positions)
        drawn = sampling.draw(found, order, seed=self.plan.seed, epoch=epoch, window=window, strata=classes)
        return drawn.rows, sampling.correction(drawn.total, len(positions), weights.total, self.plan.n_rows)

    def row_lengths(self, most: int) -> tuple[NDArray[np.int64], float] | None:
        """Entries of `most` rows spread evenly over the view, or of all, and how many rows each stands for.

        None where the view has not all features: only the entries tell how many are of those.
        """
        if self._features is not None:
            return None
        n_rows = self.plan.n_rows
        n = min(n_rows, most)
        positions = np.arange(n) * n_rows // n
        return self._reader.lengths(self._selection.rows(positions)), n_rows / n

    def state_dict(self) -> dict[str, Any]:
        """Position after the batches that the consumer has received, as JSON values; costs nothing.

        What was read ahead does not count. Of several iterators the one that moved last tells the position.
        `batch` counts the batches of this partition in this epoch. As all partitions have the same number of batches,
        one state serves all partitions that have done the same number of steps; where they may differ, save the state
        of each. A framework reads ahead by itself, so with a bridge this is the start of the last iteration begun: add
        to `batch` the steps that the model has done since.
        """
        epoch, batch = self._position
        plan = self.plan
        return {
            **self._terms(),
            "seed": plan.seed,
            "block_rows": plan.block_rows,
            "window_rows": plan.window_rows,
            "epoch": epoch,
            "batch": batch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken: the next iteration starts at its epoch and batch.

        The state's `seed`, `block_rows` and `window_rows` are used, whatever this loader was made with.

        Raises
        ------
        ValueError
            The state is of another version, view, `batch_size`, `shuffle`, `drop_remainder`, `n_partitions` or
            `weights` (each that differs is named), or is no state. The loader is then as it was.
        """
        missing = [name for name in self.state_dict() if name not in state and name != "weights"]
        if missing:
            raise ValueError(f"not the state of a loader: it lacks {', '.join(missing)}")
        terms = {"weights": None, **self._terms()}  # a state has none where rows came without
        differ = [
            f"{name} is {state.get(name)!r}, here {here!r}" for name, here in terms.items() if state.get(name) != here
        ]
        if differ:
            raise ValueError(f"the state belongs to another loader: {'; '.join(differ)}{self._hint(state['version'])}")
        numbers = {name: state[name] for name in ("seed", "block_rows", "window_rows", "epoch", "batch")}
        for name, value in numbers.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} of the state is {value!r}, expected a whole number from 0")
        epoch, batch = numbers.pop("epoch"), numbers.pop("batch")
        if epoch >= 2**64:
            raise ValueError(f"epoch of the state is {epoch}, expected below 2**64")
        plan = replace(self.plan, **numbers)
        share, firsts = self._share(plan)
        if batch >= firsts[-1]:
            raise ValueError(f"batch of the state is {batch}, expected below {firsts[-1]}, the batches of an epoch")
        with self._lock():
            self.plan, self.pieces, self._firsts = plan, share, firsts
            self._position = self._next = (epoch, batch)

    def _hint(self, version: Any) -> str:
        """How to go on from a state of this version."""
        if version == self._reader.version:
            return ""
        if version in self._reader.versions:
            return f". Open the store with version={version} to go on from it"
        return f". Version {version} is not there any more: gc keeps as many as keep_versions says"

    def _fingerprint(self) -> str:
        """Of the view: its rows and its features; found once."""
        if self._found_fingerprint is None:
            found = self._selection.fingerprint()
            if self._features is not None:
                features = np.ascontiguousarray(self._features, "<i8").tobytes()
                found = f"{found}/{blake2b(features, digest_size=8).hexdigest()}"
            self._found_fingerprint = found
        return self._found_fingerprint

    def _terms(self) -> dict[str, Any]:
        """What a state and the loader that takes it must agree in."""
        return {
            "version": self._reader.version,
            "fingerprint": self._fingerprint(),
            "batch_size": self.plan.batch_size,
            "shuffle": self.plan.shuffle,
            "drop_remainder": self.plan.drop_remainder,
            "n_partitions": self.n_partitions,
            **({} if self.weights is None else {"weights": self.weights.name}),
        }
