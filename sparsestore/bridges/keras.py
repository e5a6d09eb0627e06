"""Batches as a `keras.utils.PyDataset`, in what the back end of Keras takes: TensorFlow, JAX or PyTorch."""

from __future__ import annotations

import logging
import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import keras
except ImportError as error:
    raise ImportError('to_keras needs Keras: pip install "sparsestore[tensorflow]"') from error

from sparsestore.batch import Strip, check_whole
from sparsestore.csr import Rows
from sparsestore.forking import Lock
from sparsestore.inputs import Cut, Inputs, together
from sparsestore.loader import Loader

__all__ = ["Batches", "dataset"]

Array = NDArray[Any]
Give = Callable[[Any, Any], tuple[Any, Any]]

AHEAD = 8
"""Batches that may be passed over, and kept, to reach one that is asked for early: threads come in any order."""

_NOWHERE = -AHEAD - 1
"""A number of no batch, and far from all."""

log = logging.getLogger("sparsestore")


def dataset(loader: Loader, *, inputs: Inputs | None = None) -> Batches:
    """Batches of a loader as ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``: see `Batches`."""
    return Batches(loader, inputs=inputs)


class Batches(keras.utils.PyDataset):
    """Batches of a loader for ``model.fit``, on any back end: ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``.

    Parameters
    ----------
    loader : Loader
        Its layout, dtype, columns and partition decide what the elements are.
    inputs : Inputs, optional
        What x has beside the matrix: x is then a dict.

    Raises
    ------
    ValueError
        The back end has no sparse inputs, a column holds texts, or there are sample weights and nothing to weigh.

    Notes
    -----
    Sparse x is a `tf.SparseTensor` on TensorFlow and a padded `jax.experimental.sparse.BCOO` on JAX, where a model is
    compiled once for all whole batches; dense x, and all else, are numpy arrays, on JAX its own. Under a distribution
    of `keras.distribution`, which deals out dense arrays alone, a sparse batch is refused when it is asked for.

    ``ds[i]`` is batch i of the present epoch, from any thread. An epoch is over when each of its batches was asked for
    and Keras says that it ended. Batches that follow each other are read ahead; another one is found and read by
    itself. So call ``fit(ds, shuffle=False)``: `fit` would shuffle the order of the batches by itself, which adds
    nothing to ``to_keras(shuffle=True)``.
    """

    def __init__(self, loader: Loader, *, inputs: Inputs | None = None) -> None:
        super().__init__()
        self._inputs = inputs or Inputs()
        self._inputs.check(loader, "Keras")
        self._loader = loader
        self._makers = [_maker(each) for each in self._inputs.loaders(loader)]
        self._lock = Lock()
        self._asked: set[int] = set()
        self._advised = False
        self._start(*loader.following)

    def _start(self, epoch: int, batch: int) -> None:
        # batches are numbered through all epochs: this is the first of the present one
        self._first = epoch * len(self) + batch
        self._asked.clear()
        self._stop()

    def _stop(self) -> None:
        self._elements: Iterator[list[Any]] | None = None
        self._next = self._last = _NOWHERE
        self._kept: deque[tuple[int, Any]] = deque(maxlen=AHEAD)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def __repr__(self) -> str:
        return f"<Batches of {self._loader!r}>"

    @property
    def use_multiprocessing(self) -> bool:
        """Never: threads of the loader read ahead, and the epochs are counted here."""
        return False

    @use_multiprocessing.setter
    def use_multiprocessing(self, value: bool) -> None:
        if value:
            raise ValueError("use_multiprocessing is True, expected False: threads read ahead, without copies")

    def __getitem__(self, index: Any) -> Any:
        """Batch `index` of the present epoch."""
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} is out of range: an epoch has {len(self)}")
        with self._lock():
            found = self._element(self._first + i, restart=i == 0)
            self._asked.add(i)
        element = self._inputs.joined([give(*part) for (_, give), part in zip(self._makers, found, strict=True)])
        return element if isinstance(element, tuple) else (element,)

    def __iter__(self) -> Iterator[Any]:
        """The batches of the present epoch, then go on to the next: for a loop of one's own."""
        for i in range(len(self)):
            yield self[i]
        self.on_epoch_end()

    def _element(self, at: int, *, restart: bool) -> Any:
        for k, (number, element) in enumerate(self._kept):
            if number == at:
                del self._kept[k]
                return element
        near = 0 <= at - self._next < AHEAD
        if not near and (restart or at == self._last + 1):
            self._stop()
            self._next, near = at, True
        self._last = at
        if not near:
            return self._alone(at)
        try:
            while self._next < at:
                self._kept.append((self._next, self._following()))
            return self._following()
        except BaseException:
            self._stop()  # what failed has ended
            raise

    def _following(self) -> Any:
        if self._elements is None:
            loaders, cuts = self._inputs.loaders(self._loader), [cut for cut, _ in self._makers]
            self._elements = together(loaders, cuts, divmod(self._next, len(self)), list)
        element = next(self._elements)
        self._next += 1
        if self._next % len(self) == 0:
            self._elements = None  # and with it its threads
        return element

    def _alone(self, at: int) -> Any:
        if not self._advised:
            self._advised = True
            log.warning(
                "batches are asked for out of order, and each is then found and read by itself: pass shuffle=False to "
                "fit, whose own shuffle adds nothing to that of to_keras"
            )
        epoch, batch = divmod(at, len(self))
        (run,) = self._loader.runs(epoch, batch, 1)
        found: list[Any] = []
        for loader, (cut, _) in zip(self._inputs.loaders(self._loader), self._makers, strict=True):
            window = loader.window(epoch, run.piece, run.start, run.stop)
            found += cut(window.strip(0, 1, loader.layout))
        return found

    def on_epoch_end(self) -> None:
        """Go on to the next epoch if this one was read; Keras also says so after it looked at a batch or two."""
        with self._lock():
            read = len(self._asked) == len(self)
            self._start(*divmod(self._first + len(self) * read, len(self)))

    def state_dict(self, steps: int = 0) -> dict[str, Any]:
        """Position at the start of the present epoch, and `steps` batches after it, as JSON values."""
        epoch, batch = divmod(self._first + steps, len(self))
        return {**self._loader.state_dict(), "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next epoch start where `state` was taken; its last batches are then those of the epoch after it."""
        with self._lock():
            self._loader.load_state_dict(state)
            self._start(*self._loader.following)


def _maker(loader: Loader) -> tuple[Cut, Give]:
    """What cuts strips into batches, in any thread, and what makes of such a one what the back end takes."""
    backend = keras.config.backend()
    if backend == "jax":
        from sparsestore.bridges.jax import Arrays, Padding, check_dtype

        check_dtype(loader.dtype)

        def give(x: Any, columns: Any) -> Any:
            if loader.layout == "sparse" and keras.distribution.distribution() is not None:
                raise ValueError(
                    f"layout is 'sparse', and {type(keras.distribution.distribution()).__name__} of Keras deals out no "
                    f"sparse arrays of JAX: take layout='dense', or Keras on TensorFlow with "
                    f"sparsestore.keras.distributed"
                )
            return Arrays(x, columns).give()

        return Padding(loader).cut, give
    if loader.layout == "dense":
        return _numpy, lambda x, columns: (x, columns)
    if backend != "tensorflow":
        raise ValueError(
            f"layout is 'sparse', and Keras has no sparse inputs on {backend}: take layout='dense', or to_torch and a "
            f"loop of your own, or Keras on TensorFlow or JAX"
        )
    import tensorflow as tf

    return _numpy, lambda x, columns: (tf.SparseTensor(*x), columns)


def _numpy(strip: Strip) -> Iterator[tuple[Any, dict[str, Array]]]:
    """X and the columns of the batches; sparse x as places, values and shape."""
    check_whole(strip.columns)
    for start, stop in pairwise(strip.bounds):
        x: Any = strip.x
        x = _coordinates(x.slice(start, stop)) if isinstance(x, Rows) else x[start:stop]
        yield x, {name: np.asarray(values[start:stop]) for name, values in strip.columns.items()}


def _coordinates(rows: Rows) -> tuple[Array, Array, tuple[int, int]]:
    places = np.empty((rows.nnz, 2), np.int64)
    places[:, 0] = np.repeat(np.arange(len(rows)), np.diff(rows.indptr))
    places[:, 1] = rows.indices
    return places, rows.data, rows.shape
