"""Batches as a `tf.data.Dataset` of known length: one Python call a window, batches cut from it in the graph."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
from numpy.typing import NDArray

try:
    import tensorflow as tf
except ImportError as error:
    raise ImportError('to_tf needs TensorFlow: pip install "sparsestore[tensorflow]"') from error

from sparsestore.batch import SAMPLE_WEIGHT, targets
from sparsestore.csr import index_dtype
from sparsestore.loader import Loader

__all__ = ["dataset"]

# One thread cuts batches while the other is inside the call that reads the next window: with a single one the model
# waits for that call. More only cost, a cut is shorter than handing it to another core.
THREADS = 2

plain = tf.autograph.experimental.do_not_convert  # nothing here is Python that would have to become graph


def dataset(loader: Loader, *, prefetch: int = 2) -> tf.data.Dataset:
    """Batches of a loader as ``x``, ``(x, y)`` or ``(x, y, sample_weight)``, as Keras takes them.

    Parameters
    ----------
    loader : Loader
        Its layout, dtype, columns and partition decide what the elements are. The dataset holds it.
    prefetch : int
        Batches made ahead of the model; 0 makes each when it is asked for.

    Returns
    -------
    tf.data.Dataset
        `x` is a `tf.SparseTensor` (int64 indices in row-major order, no duplicates) or, with ``layout="dense"``, a
        tensor; (batch_size, n_features), the first one None where the last batch may be short. `y` is a tensor, or a
        dict by column name where several columns were chosen. Cardinality is ``len(loader)``.

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

    An iterator reads a window ahead, and stops when it is forgotten: at most three windows are in memory. What the
    reader raises reaches the model as a `tf.errors.OpError` with the same words.
    """
    # Keras warns of its own default, shuffle=True, at every tf.data.Dataset, though these are shuffled as the loader
    # was told (keras/src/trainers/data_adapters/__init__.py)
    warnings.filterwarnings("ignore", "`shuffle=True` was passed, but will be ignored", UserWarning)
    if prefetch < 0:
        raise ValueError(f"prefetch is {prefetch}, expected 0 or more batches")
    if SAMPLE_WEIGHT in loader.columns and len(loader.columns) == 1:
        raise ValueError(f"columns has {SAMPLE_WEIGHT!r} and nothing to weigh: add 'y', or leave it out")
    claim = tf.data.Dataset.from_tensors(0).map(_claim(loader))
    pieces = claim.flat_map(tf.data.Dataset.from_tensor_slices).map(_read(loader)).prefetch(1)
    cut = _cut(loader)

    def batches(run: Any, arrays: Any) -> tf.data.Dataset:
        return tf.data.Dataset.range(run[2], run[3]).map(lambda b: cut(b, arrays))

    ds = pieces.flat_map(plain(batches)).apply(tf.data.experimental.assert_cardinality(len(loader)))
    options = tf.data.Options()
    options.threading.private_threadpool_size = THREADS
    options.autotune.enabled = False
    options.deterministic = True
    # the position is the loader's to save; this lets tf.train.Checkpoint take an iterator all the same
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    ds = (ds.prefetch(prefetch) if prefetch else ds).with_options(options)
    # TensorFlow keeps what numpy_function was given until the process ends. So that is a weak reference, and the strong
    # one is here: iterators, and datasets made from this one, hold it and with it the loader and its files.
    ds._loader = loader
    return ds


def _alive(loader: ReferenceType[Loader]) -> Loader:
    held = loader()
    if held is None:
        raise ReferenceError("the dataset was forgotten while its graph is in use: keep a name for what to_tf returned")
    return held


def _claim(loader: Loader) -> Any:
    """Map function: anything -> (k, 4) int64, the runs of the iteration that begins now."""
    held = ref(loader)

    def begin() -> NDArray[np.int64]:
        loader = _alive(held)
        epoch, batch = loader.begin(across=True)
        return np.array(list(loader.runs(epoch, batch, len(loader))), np.int64)

    def claim(_: Any) -> Any:
        runs = tf.numpy_function(begin, [], tf.int64)
        runs.set_shape([None, 4])
        return runs

    return plain(claim)


def _read(loader: Loader) -> Any:
    """Map function: run -> (run, arrays of its piece)."""
    schema = loader.schema
    strings = [name for name, column in schema.items() if column.dtype == "string"]
    types = [tf.int64, tf.as_dtype(index_dtype(loader.n_features)), tf.as_dtype(loader.dtype)]
    types += [tf.string if name in strings else tf.as_dtype(column.dtype) for name, column in schema.items()]
    held = ref(loader)

    def read(epoch: np.int64, i: np.int64) -> list[NDArray[Any]]:
        # TensorFlow shares the memory of what this returns: a piece is made of fresh arrays, and nobody else holds them
        piece = _alive(held).piece(int(epoch), int(i))
        for name, values in piece.columns.items():
            if np.ma.is_masked(values):
                missing = int(np.ma.getmaskarray(values).sum())
                raise ValueError(
                    f"column {name!r} lacks {missing} of {values.size} values, and a tensor can not say so"
                )
        return [piece.x.indptr, piece.x.indices, piece.x.data, *piece.columns.values()]

    def read_run(run: Any) -> Any:
        indptr, indices, data, *columns = tf.numpy_function(read, [run[0], run[1]], types)
        for array in (indptr, indices, data):
            array.set_shape([None])
        for array, column in zip(columns, schema.values(), strict=True):
            array.set_shape([None, *column.shape])
        return run, (indptr, indices, data, dict(zip(schema, columns, strict=True)))

    return plain(read_run)


def _cut(loader: Loader) -> Any:
    """Map function: (number of a batch in its piece, arrays of the piece) -> element of the dataset."""
    size, n_features = loader.plan.batch_size, loader.n_features
    whole = loader.plan.drop_remainder

    def cut(b: Any, arrays: Any) -> Any:
        indptr, indices, data, columns = arrays
        start = b * size
        stop = start + size if whole else tf.minimum(start + size, tf.size(indptr, tf.int64) - 1)
        bounds = indptr[start : stop + 1]
        first, last = bounds[0], bounds[-1]
        values = data[first:last]
        row = tf.raw_ops.RaggedTensorToSparse(rt_nested_splits=[bounds - first], rt_dense_values=values)
        at = tf.stack([row.sparse_indices[:, 0], tf.cast(indices[first:last], tf.int64)], axis=1)
        shape = tf.constant([size, n_features], tf.int64) if whole else tf.stack([stop - start, n_features])
        if loader.layout == "sparse":
            x = tf.SparseTensor(at, values, shape)
        else:
            # rows are canonical, so nothing is left to validate; up to twice as fast as scatter_nd, and in `fit` faster
            # than a compiled loop called through numpy_function, which has to wait for Python's lock every batch
            zero = tf.zeros([], loader.dtype)
            x = tf.raw_ops.SparseToDense(
                sparse_indices=at, output_shape=shape, sparse_values=values, default_value=zero, validate_indices=False
            )
            x.set_shape([size if whole else None, n_features])
        beside = {name: values[start:stop] for name, values in columns.items()}
        if whole:
            for values in beside.values():
                values.set_shape([size, *values.shape[1:]])
        y, sample_weight = targets(beside)
        if y is None:
            return x
        return (x, y) if sample_weight is None else (x, y, sample_weight)

    return plain(cut)
