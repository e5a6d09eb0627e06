"""Batches as a `torch.utils.data.IterableDataset`, whose workers share each epoch between them."""

from __future__ import annotations

import multiprocessing
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import torch
except ImportError as error:
    raise ImportError('to_torch needs PyTorch: pip install "sparsestore[torch]"') from error

from torch.utils.data import IterableDataset, get_worker_info

from sparsestore.batch import Strip, check_whole
from sparsestore.csr import Rows
from sparsestore.inputs import Inputs, together
from sparsestore.loader import Loader

__all__ = ["FORMATS", "Batches", "dataset", "share_of_process"]

Array = NDArray[Any]

FORMATS = ("csr", "coo")


def share_of_process(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of a loader, with the share of this process where `torch.distributed` runs and they name none.

    Raises
    ------
    ValueError
        Where each process would draw an order of its own.
    """
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or {"partition", "n_partitions"} & {*options}:
        return dict(options)
    size = distributed.get_world_size()
    if size > 1 and options.get("shuffle") and options.get("seed") is None:
        raise ValueError(
            f"shuffle=True without a seed in a group of {size} processes: each would draw an order of its own, and "
            f"rows be read twice or never: pass seed="
        )
    return {**options, "partition": distributed.get_rank(), "n_partitions": size}


def dataset(loader: Loader, *, inputs: Inputs | None = None, format: str = "csr") -> Batches:
    """Batches of a loader as ``x``, ``(x, y)`` or ``(x, y, sample_weight)``: see `Batches`."""
    return Batches(loader, inputs=inputs, format=format)


class Batches(IterableDataset):
    """Batches of a loader as tensors: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

    For ``DataLoader(ds, batch_size=None, num_workers=k)``, or a loop of its own. `y` is a dict by column name where
    several columns were chosen.

    Parameters
    ----------
    loader : Loader
        Its layout, dtype, columns and partition decide what the elements are.
    inputs : Inputs, optional
        What x has beside the matrix: x is then a dict.
    format : {"csr", "coo"}
        Of x with ``layout="sparse"``.

    Raises
    ------
    ValueError
        Unknown format, a column of texts, or sample weights and nothing to weigh.

    Notes
    -----
    Each iteration is the next epoch, in all processes alike, also where a `DataLoader` starts its workers anew for each
    one: they agree on it in shared memory. `set_epoch` names the next one.

    Workers, forked or spawned, share the batches of this process's partition: whole windows where there are enough,
    and each batch once over all of them. `DataLoader` takes a batch of each worker in turn, so with several the
    batches come in another order than without, though always the same one for the same seed and number of workers.

    The tensors share memory with nobody but each other's batches in a strip; they may be changed in place.
    """

    def __init__(self, loader: Loader, *, inputs: Inputs | None = None, format: str = "csr") -> None:
        if format not in FORMATS:
            raise ValueError(f"format is {format!r}, expected one of {', '.join(map(repr, FORMATS))}")
        self._inputs = inputs or Inputs()
        self._inputs.check(loader, "PyTorch")
        self._loader = loader
        self._format = format
        self._epochs = _Epochs()
        self._turns: Counter[tuple[int, int]] = Counter()
        self._epochs.set(*loader.following)
        _quiet()

    def __len__(self) -> int:
        """Batches in an epoch of this process's partition, over all its workers."""
        return len(self._loader)

    def __repr__(self) -> str:
        return f"<Batches of {self._loader!r}>"

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch; in a worker, its share of it."""
        worker = get_worker_info()
        if worker is None:
            return self._elements(self._inputs.loaders(self._loader), self._epochs.claim())
        # the seed that all workers of an iteration of a DataLoader were given, and how often it was this one's turn:
        # workers that live on keep their seed
        seed = worker.seed - worker.id
        self._turns[worker.id, seed] += 1
        epoch, batch = self._epochs.claim((seed, self._turns[worker.id, seed]), worker.num_workers)
        return self._share(worker.id, worker.num_workers, epoch, batch)

    def _share(self, worker: int, n_workers: int, epoch: int, batch: int) -> Iterator[Any]:
        lengths = [len(self._loader.share(i, n_workers)) for i in range(n_workers)]
        done = _dealt(lengths, batch)
        # a DataLoader begins with its first worker, so that has to be the one whose turn it was
        turn = min(((n, i) for i, n in enumerate(done) if n < lengths[i]), default=(0, 0))[1]
        i = (worker + turn) % n_workers
        shares = [loader.share(i, n_workers) for loader in self._inputs.loaders(self._loader)]
        return self._elements(shares, (epoch, done[i]))

    def _elements(self, loaders: list[Loader], start: tuple[int, int]) -> Iterator[Any]:
        return together(loaders, [self._tensors] * len(loaders), start, self._inputs.joined)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch: the one after it is the next, as always."""
        number = int(epoch) if isinstance(epoch, np.integer) else epoch  # as a state, which is JSON, has it
        self.load_state_dict({**self._loader.state_dict(), "epoch": number, "batch": 0})

    def state_dict(self, steps: int = 0) -> dict[str, Any]:
        """Position, as JSON values, for `load_state_dict` in this process or another of the same rank.

        Parameters
        ----------
        steps : int
            With workers: batches taken since the last iteration began, as these read ahead. Without, the position is
            known.
        """
        state, start = self._loader.state_dict(), self._epochs.begun_by_workers()
        if start is None:
            if steps:
                raise ValueError(f"steps is {steps}, expected none without workers: the position is known")
            return state
        epoch, batch = divmod(start[0] * len(self) + start[1] + steps, len(self))
        return {**state, "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken: the next iteration gives what was left of its epoch.

        To be called before workers are started, and with as many workers as before where the state is not of the start
        of an epoch.
        """
        self._loader.load_state_dict(state)
        self._epochs.set(*self._loader.following)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_turns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._turns = Counter()
        _quiet()

    def _tensors(self, strip: Strip) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        check_whole(strip.columns)
        for start, stop in pairwise(strip.bounds):
            x = strip.x
            tensor = _sparse(x, start, stop, self._format) if isinstance(x, Rows) else _shared(x[start:stop])
            yield tensor, {name: _shared(values[start:stop]) for name, values in strip.columns.items()}


def _quiet() -> None:
    """Silence what PyTorch says once a process of any sparse tensor, whoever makes it."""
    # that CSR is in beta: all that is asked of it here is to hold three tensors
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
    # that its checks are off where it puts a worker's tensor together again; its rows were checked when they were read
    module = r"torch\.multiprocessing\.reductions"
    warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning, module)


def _shared(values: Array) -> torch.Tensor:
    """A tensor over an array's memory, which lives as long as the tensor; of a copy where nobody may write to it."""
    return torch.from_numpy(np.asarray(values) if values.flags.writeable else np.array(values))


def _sparse(rows: Rows, start: int, stop: int, format: str) -> torch.Tensor:
    part = rows.slice(start, stop)
    indices, values, shape = part.indices, _shared(part.data), part.shape
    if format == "coo":
        places = np.empty((2, part.nnz), np.int64)
        places[0] = np.repeat(np.arange(len(part)), np.diff(part.indptr))
        places[1] = indices
        return torch.sparse_coo_tensor(
            torch.from_numpy(places), values, shape, is_coalesced=True, check_invariants=False
        )
    if part.nnz > np.iinfo(indices.dtype).max:  # PyTorch wants both of one kind
        indices = indices.astype(np.int64)
    return torch.sparse_csr_tensor(
        torch.from_numpy(part.indptr.astype(indices.dtype)),
        _shared(indices),
        values,
        shape,
        check_invariants=False,  # they were checked when they were read
    )


def _dealt(lengths: list[int], n: int) -> list[int]:
    """How many of the first `n` batches each worker gave, where one of each is taken in turn while it has any."""
    done = [0] * len(lengths)
    rounds = 0
    while n and rounds < max(lengths):
        left = [length - rounds for length in lengths if length > rounds]
        whole = min(min(left), n // len(left))  # rounds in which all of these take part
        if not whole:
            for worker in [i for i, length in enumerate(lengths) if length > rounds][:n]:
                done[worker] += 1
            return done
        done = [min(length, rounds + whole) for length in lengths]
        rounds, n = rounds + whole, n - whole * len(left)
    return done


_PATIENCE_S = 60.0
_SLOTS, _WIDTH = 16, 5


class _Epochs:
    """Where iterations start, told apart and counted in memory that all workers share.

    A `DataLoader` tells its dataset nothing when an iteration begins: its workers do, one after the other. So the first
    of them claims the next epoch, and the others of the same iteration find what it claimed.
    """

    def __init__(self, epoch: int = 0, batch: int = 0) -> None:
        # next epoch and batch; those that the last iteration began with, and whether workers began it; then one slot
        # for each of the last iterations: its two numbers, how many workers are to come, epoch and batch.
        # The lock of a context that spawns may be inherited by a fork too, but not the other way round.
        self._numbers = multiprocessing.get_context("spawn").Array("q", 5 + _SLOTS * _WIDTH)
        self.set(epoch, batch)

    def set(self, epoch: int, batch: int) -> None:
        """Let the next iteration start here."""
        with _Held(self._numbers) as numbers:
            numbers[:5] = [epoch, batch, epoch, batch, 0]

    def begun_by_workers(self) -> tuple[int, int] | None:
        """Epoch and batch that the last iteration started at, or None where no worker began it."""
        with _Held(self._numbers) as numbers:
            return (numbers[2], numbers[3]) if numbers[4] else None

    def claim(self, iteration: tuple[int, int] | None = None, n_workers: int = 1) -> tuple[int, int]:
        """Epoch and batch that an iteration starts at: the same for `n_workers` calls that name it alike."""
        with _Held(self._numbers) as numbers:
            slots = range(5, 5 + _SLOTS * _WIDTH, _WIDTH)
            for at in slots:
                seed, turn, to_come, epoch, batch = numbers[at : at + _WIDTH]
                if to_come and (seed, turn) == iteration:
                    numbers[at + 2] = to_come - 1
                    return epoch, batch
            epoch, batch = numbers[:2]
            numbers[:5] = [epoch + 1, 0, epoch, batch, iteration is not None]
            if iteration is not None and n_workers > 1:
                # in the slot of the oldest, which are only those whose workers all came, or never will
                numbers[5 + _WIDTH : 5 + _SLOTS * _WIDTH] = numbers[5 : 5 + (_SLOTS - 1) * _WIDTH]
                numbers[5 : 5 + _WIDTH] = [*iteration, n_workers - 1, epoch, batch]
            return epoch, batch

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:  # a process that is being started inherits the memory
            return {"numbers": self._numbers}
        with _Held(self._numbers) as numbers:
            return {"next": tuple(numbers[:2])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "numbers" in state:
            self._numbers = state["numbers"]
        else:
            self.__init__(*state["next"])  # type: ignore[misc]


class _Held:
    """Shared numbers, while no other process has them."""

    def __init__(self, numbers: Any) -> None:
        self._numbers = numbers

    def __enter__(self) -> Any:
        # a worker that is killed right here would leave it locked
        if not self._numbers.get_lock().acquire(timeout=_PATIENCE_S):
            raise RuntimeError(
                f"another process has held the count of epochs for {_PATIENCE_S:.0f} s: a worker was killed while it "
                f"began an epoch. Make the dataset anew, with to_torch"
            )
        return self._numbers.get_obj()

    def __exit__(self, *_: object) -> None:
        self._numbers.get_lock().release()
