"""Batches as a `tf.data.Dataset` of known length: one Python call a strip of batches, cut apart in the graph."""

from __future__ import annotations

import ctypes
import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakMethod, WeakValueDictionary, finalize

import numpy as np
from numpy.typing import NDArray

try:
    import tensorflow as tf
except ImportError as error:
    raise ImportError('to_tf needs TensorFlow: pip install "sparsestore[tensorflow]"') from error

from sparsestore.batch import check_whole
from sparsestore.buffers import Buffers
from sparsestore.csr import empty_aligned
from sparsestore.inputs import Inputs
from sparsestore.loader import Loader
from sparsestore.window import Window

__all__ = ["dataset"]

# One thread cuts batches while the other is inside the call that reads the next window: with a single one the model
# waits for that call. More only cost, a cut is shorter than handing it to another core.
THREADS = 2

STRIP_ROWS = 8192
MOST_BATCHES = 32
"""In a strip whose batches are tensors of their own: each is an output of the call of Python, filled or not."""

SLICED_ROWS = 128
"""In a batch from which on TensorFlow's lists of tensors are cheaper than copies of a batch's part of one tensor."""

Array = NDArray[Any]
Ints = NDArray[np.int64]

# numbers of windows: no two are the same, in this process and in those that may restore an iterator of this one
_numbers = itertools.count(time.time_ns())

plain = tf.autograph.experimental.do_not_convert  # nothing here is Python that would have to become graph


def dataset(loader: Loader, *, inputs: Inputs | None = None, prefetch: int = 2) -> tf.data.Dataset:
    """Batches of a loader as ``x``, ``(x, y)`` or ``(x, y, sample_weight)``, as Keras takes them.

    Parameters
    ----------
    loader : Loader
        Its layout, dtype, columns and partition decide what the elements are. The dataset holds it.
    inputs : Inputs, optional
        What x has beside the matrix: x is then a dict.
    prefetch : int
        Batches made ahead of the model; 0 makes each when it is asked for.

    Returns
    -------
    tf.data.Dataset
        `x` is a `tf.SparseTensor` (int64 indices in row-major order, no duplicates) or, with ``layout="dense"``, a
        tensor; (batch_size, n_features), the first one None where the last batch may be short. `y` is a tensor, or a
        dict by column name where several columns were chosen. Cardinality is ``len(loader)``. The loader is its
        attribute `loader`.

    Raises
    ------
    ValueError
        There are sample weights and nothing to weigh; a negative `prefetch`.

    Notes
    -----
    Each iteration claims the next epoch of the loader when its first batch is asked for, so ``fit(ds, epochs=3)`` reads
    epochs 0, 1 and 2, and iterators that are alive at the same time do not disturb each other. After
    ``loader.load_state_dict`` at (epoch, batch) the next iteration starts at that batch. An iteration always has
    ``len(loader)`` batches, since Keras counts its steps by the cardinality: one that starts inside an epoch goes on
    into the next one, and the iteration after it starts where it stopped, so that no batch is lost or seen twice.

    An iterator finds a window ahead, and stops when it is forgotten: at most three windows are held. Batches are copied
    out a few MiB at a time, into memory that is used again when TensorFlow has let go of the last tensor over it: a
    batch that is kept may keep its neighbours' memory. What the reader raises reaches the model as a
    `tf.errors.OpError` with the same words.
    """
    # Keras warns of its own default, shuffle=True, at every tf.data.Dataset, though these are shuffled as the loader
    # was told (keras/src/trainers/data_adapters/__init__.py)
    warnings.filterwarnings("ignore", "`shuffle=True` was passed, but will be ignored", UserWarning)
    if prefetch < 0:
        raise ValueError(f"prefetch is {prefetch}, expected 0 or more batches")
    inputs = inputs or Inputs()
    inputs.check(loader)
    leader, *others = inputs.loaders(loader)
    source = _Source(leader, pair if others else inputs.element)
    beside = [_Source(other, matrix, leader=loader) for other in others]
    claim = tf.data.Dataset.from_tensors(0).map(source.claim())

    def together(runs: Any) -> tf.data.Dataset:
        parts = [each.batches(tf.data.Dataset.from_tensor_slices(runs)) for each in (source, *beside)]
        return tf.data.Dataset.zip(tuple(parts)).map(
            plain(lambda first, *rest: inputs.element(first[0], first[1], rest))
        )

    if others:
        ds = claim.flat_map(plain(together))  # one claim for all
    else:
        ds = source.batches(claim.flat_map(tf.data.Dataset.from_tensor_slices))
    ds = ds.apply(tf.data.experimental.assert_cardinality(len(loader)))
    options = tf.data.Options()
    options.threading.private_threadpool_size = THREADS
    options.autotune.enabled = False
    options.deterministic = True
    # the position is the loader's to save; this lets tf.train.Checkpoint take an iterator all the same
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    ds = (ds.prefetch(prefetch) if prefetch else ds).with_options(options)
    # TensorFlow keeps what numpy_function was given until the process ends. So that is a weak reference, and the strong
    # one is here: iterators, and datasets made from this one, hold it and with it the loader and its files.
    ds._source = (source, *beside)
    ds.loader = loader
    return ds


def pair(x: Any, columns: Any) -> Any:
    return x, columns


def matrix(x: Any, _columns: Any) -> Any:
    return x


class _Key(ctypes.c_int64 * 3):  # type: ignore[misc]
    """Epoch, piece and number of a window; the window lives as long as this memory does."""

    window: Window


class _Source:
    """What the pipeline calls: every method gives a function over tensors.

    No call changes what another one gives, so that several iterators can be alive, and one be restored. Windows belong
    to the iterators: TensorFlow keeps the memory of a key alive as long as a tensor has it, and the key its window.
    """

    def __init__(self, loader: Loader, give: Callable[[Any, Any], Any], *, leader: Loader | None = None) -> None:
        self._loader = loader
        self._give = give
        self._leader = leader
        self._buffers = Buffers()
        self._ahead = loader.read_ahead(in_turn=False)
        self._keys: WeakValueDictionary[int, _Key] = WeakValueDictionary()
        self._restored: tuple[bytes, Window] | None = None
        self._size = loader.plan.batch_size
        self._n_features = loader.n_features
        self._whole = loader.plan.drop_remainder
        self._schema = loader.schema
        self._sparse = loader.layout == "sparse"
        self._n_outputs = min(max(STRIP_ROWS // self._size, 1), MOST_BATCHES)
        self._sliced = self._sparse and self._size < SLICED_ROWS
        strings = [name for name, column in self._schema.items() if column.dtype == "string"]
        self._types = [
            tf.string if name in strings else tf.as_dtype(column.dtype) for name, column in self._schema.items()
        ]

    def _call(self, method: Callable[..., Any], inputs: list[Any], types: Any) -> Any:
        """A method of this class as an operation that does not hold it."""
        held = WeakMethod(method)

        def call(*arrays: Any) -> Any:
            alive = held()
            if alive is None:
                raise ReferenceError(
                    "the dataset was forgotten while its graph is in use: keep a name for what to_tf returned"
                )
            return alive(*arrays)

        return tf.numpy_function(call, inputs, types)

    def batches(self, runs: tf.data.Dataset) -> tf.data.Dataset:
        """Runs -> elements of the dataset."""
        windows = runs.map(self.find()).prefetch(1)
        strip, cut = self.strip(), self.cut()

        def strips(key: Any, cuts: Any) -> tf.data.Dataset:
            return tf.data.Dataset.from_tensor_slices(cuts).map(plain(lambda part: strip(key, part)))

        def batches(n: Any, *arrays: Any) -> tf.data.Dataset:
            return tf.data.Dataset.range(n).map(plain(lambda b: cut(b, *arrays)))

        return windows.flat_map(plain(strips)).prefetch(1).flat_map(plain(batches))

    # ---- runs: where the batches of an iteration are found

    def claim(self) -> Any:
        """Anything -> (k, 4) int64, the runs of the iteration that begins now."""

        def claim(_: Any) -> Any:
            runs = self._call(self._begin, [], tf.int64)
            runs.set_shape([None, 4])
            return runs

        return plain(claim)

    def _begin(self) -> Ints:
        loader = self._loader
        epoch, batch = loader.begin(across=True)
        return np.array(list(loader.runs(epoch, batch, len(loader))), np.int64)

    # ---- windows

    def find(self) -> Any:
        """Run -> (key of its window, (n, 2) int64 first and last batch of the strips)."""

        def find(run: Any) -> Any:
            key, cuts = self._call(self._find, [run], [tf.int64, tf.int64])
            key.set_shape([3])
            cuts.set_shape([None, 2])
            return key, cuts

        return plain(find)

    def _find(self, run: Ints) -> list[Ints]:
        epoch, piece, start, stop = map(int, run)
        window = self._ahead.found(self._window(epoch, piece))
        self._ahead.begin(window)
        layout, per_entry = ("sparse", 4) if self._sparse else ("dense", 0)
        itemsize = self._loader.dtype.itemsize
        # `cuts` counts 4 bytes a place
        budget = self._ahead.strip_bytes * (per_entry + itemsize) // (4 * per_entry + itemsize)
        most = self._n_outputs if self._sparse and not self._sliced else stop - start
        cuts = [
            (at, min(at + most, last))
            for first, last in window.cuts(start, stop, layout, budget)
            for at in range(first, last, most)
        ]
        key = _Key.from_buffer(empty_aligned(3, np.int64))
        key[:] = epoch, piece, next(_numbers)
        key.window = window
        self._keys[key[2]] = key
        finalize(key, self._ahead.done, window).atexit = False
        return [np.frombuffer(key, np.int64), np.array(cuts, np.int64)]

    def _window(self, epoch: int, piece: int) -> Window:
        if self._leader is not None:  # which a state that it loaded may have given another plan
            self._loader.follow(self._leader)
        window = self._loader.window(epoch, piece)
        check_whole(window.columns)
        return window

    # ---- strips

    def strip(self) -> Any:
        """(Key, first and last batch) -> (number of batches, their arrays, number of rows, columns)."""
        dtype = tf.as_dtype(self._loader.dtype)
        arrays = [dtype] if not self._sparse else [tf.int64, dtype] * self._n_outputs
        if self._sliced:
            arrays = [tf.int64, tf.int64, dtype]

        def strip(key: Any, part: Any) -> Any:
            rows, *found = self._call(self._strip, [key, part], [tf.int64, *arrays, *self._types])
            rows.set_shape([])
            columns = found[len(arrays) :]
            for array, column in zip(columns, self._schema.values(), strict=True):
                array.set_shape([None, *column.shape])
            x = tuple(found[: len(arrays)])
            if self._sliced:
                for array, shape in zip(x, ([None, 2], [None, 2], [None]), strict=True):
                    array.set_shape(shape)
            elif self._sparse:
                x = listed(x[::2]), listed(x[1::2])
            return part[1] - part[0], rows, x, dict(zip(self._schema, columns, strict=True))

        def listed(tensors: tuple[Any, ...]) -> Any:
            if len(tensors) == 1:
                return tensors[0]
            # lists hold the tensors themselves, while a slice would be a copy
            found = tf.raw_ops.EmptyTensorList(element_shape=-1, max_num_elements=-1, element_dtype=tensors[0].dtype)
            for tensor in tensors:
                found = tf.raw_ops.TensorListPushBack(input_handle=found, tensor=tensor)
            return found

        return plain(strip)

    def _strip(self, key: Ints, part: Ints) -> list[Any]:
        # TensorFlow shares the memory of what this returns, until the last tensor over it is gone
        first, last = map(int, part)
        window = self._held(key)
        # its own copy: TensorFlow may calculate in this memory, where an operation is the last to need a slice of it
        columns = {name: values.copy() for name, values in window.beside(first, last).items()}
        rows = np.int64(min(last * self._size, window.n_rows) - first * self._size)
        if not self._sparse:
            return [rows, window.dense(first, last, self._buffers).ravel(), *columns.values()]
        x = window.coordinates(first, last, self._buffers)
        if self._sliced:
            return [rows, np.stack([x.starts, x.stops], axis=1), x.places, x.values, *columns.values()]
        arrays: list[Array] = []
        for start, stop in zip(x.starts.tolist(), x.stops.tolist(), strict=True):
            arrays += x.places[start:stop], x.values[start:stop]
        arrays += [x.places[:0], x.values[:0]] * (self._n_outputs - len(x.starts))
        return [rows, *arrays, *columns.values()]

    def _held(self, key: Ints) -> Window:
        """The window of a key; found again where an iterator was restored from a checkpoint."""
        held = self._keys.get(int(key[2]))
        if held is not None:
            return held.window
        if self._restored is None or self._restored[0] != key.tobytes():
            self._restored = key.tobytes(), self._window(int(key[0]), int(key[1]))
        return self._restored[1]

    # ---- batches

    def cut(self) -> Any:
        """(Number of a batch in its strip, number of rows of the strip, its arrays) -> element of the dataset."""
        size, n_features, whole, dtype = self._size, self._n_features, self._whole, self._loader.dtype
        give = self._give

        def cut(b: Any, rows: Any, x: Any, columns: Any) -> Any:
            start = b * size
            stop = start + size if whole else tf.minimum(start + size, rows)
            if self._sparse:
                shape = tf.constant([size, n_features], tf.int64) if whole else tf.stack([stop - start, n_features])
                if self._sliced:
                    first, last = tf.unstack(x[0][b])
                    places, values = x[1][first:last], x[2][first:last]
                else:
                    places, values = item(x[0], b, tf.int64, [None, 2]), item(x[1], b, dtype, [None])
                x = tf.SparseTensor(places, values, shape)
            else:
                # of a flat array TensorFlow gives out a part without a copy, where it begins and ends at 64 bytes
                x = tf.reshape(x[0][start * n_features : stop * n_features], [size if whole else -1, n_features])
            beside = {name: values[start:stop] for name, values in columns.items()}
            if whole:
                for values in beside.values():
                    values.set_shape([size, *values.shape[1:]])
            return give(x, beside)

        def item(found: Any, b: Any, dtype: Any, shape: list[int | None]) -> Any:
            if self._n_outputs > 1:
                found = tf.raw_ops.TensorListGetItem(
                    input_handle=found, index=tf.cast(b, tf.int32), element_shape=-1, element_dtype=dtype
                )
            found.set_shape(shape)
            return found

        return plain(cut)
