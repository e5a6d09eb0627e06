"""Training on several devices, by several workers: what `tf.distribute` deals out, and the sparse rows made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise ImportError('sparsestore.keras needs TensorFlow: pip install "sparsestore[tensorflow]"') from error

__all__ = ["FlatToSparse", "distributable", "distributed", "flat_input", "n_workers"]

_registered = keras.saving.register_keras_serializable(package="sparsestore")

# In the order of their names, in which Keras takes the first for the one whose length is the number of rows
FLAT = ("counts", "indices", "values")

plain = tf.autograph.experimental.do_not_convert  # nothing here is Python that would have to become graph


def distributed(
    data: Any, batch_size: int, strategy: tf.distribute.Strategy | None = None, *, prefetch: int = 2, **options: Any
) -> Any:
    """Batches of a store for all replicas of a strategy of `tf.distribute`, ready for ``model.fit``.

    Parameters
    ----------
    data : Store or View
        On each worker the same rows of the same store.
    batch_size : int
        Rows of a step, over all replicas of all workers: the global batch. Each replica gets an equal part.
    strategy : tf.distribute.Strategy, optional
        `MirroredStrategy`, `MultiWorkerMirroredStrategy`, or the one whose scope this is called in.
    prefetch : int
        Parts of batches made ahead of the model.
    **options
        Those of `to_tf`, with the same meaning, without ``partition``, which the strategy decides. With
        ``layout="sparse"`` a matrix is a dict of flat tensors, which `flat_input` takes; with "dense" a dense tensor.
        With ``inputs`` x is a dict by name, and each matrix in it such a dict or tensor.

    Returns
    -------
    tf.distribute.DistributedDataset
        Its `cardinality` is the number of steps, the same on all workers; its `loader` is this worker's. Without a
        strategy, a `tf.data.Dataset` of the same elements.

    Raises
    ------
    ValueError
        The global batch can not be divided evenly; workers that shuffle without a common ``seed``; what `to_tf` raises.

    Notes
    -----
    Worker w of W reads partition w of W, in batches of ``batch_size / W``: disjoint rows, equal numbers of steps, and
    nothing is read to be thrown away. The replicas of a worker get consecutive parts of its batch. So with one worker
    the steps are over the rows that ``to_tf(batch_size)`` gives one device, in the same order; with several, step i is
    over batch i of each partition.

    Keras takes the mean of the replicas' means. Where a last batch is short, and its parts differ in length, the rows
    of the shorter ones count a little more in that step; ``drop_remainder=True`` leaves it out. Batches that can not be
    dealt equally to the workers, fewer than there are workers, are left out as in every partition.

    Take `SGD` or an optimizer of this package: the gradient of a feature that several replicas have comes in parts,
    which Adam of Keras and others square one by one (1 and 2 give 5), where these sum them first (9), as on one device.

    Keras looks at one batch before the first step of `fit` and `evaluate`, which is an iteration of its own and claims
    an epoch: a first `fit` over 3 epochs trains on epochs 1, 2 and 3 of the loader, and one after ``load_state_dict``
    begins an epoch later than the state. A model that went through `distributable` does without that look, and trains
    on epochs 0, 1 and 2; with several workers `fit` needs it.

    Examples
    --------
    >>> import keras, numpy as np, tempfile, tensorflow as tf, sparsestore as ss
    >>> from sparsestore.keras import SparseDense, distributed, flat_input
    >>> store = ss.convert(np.eye(64), tempfile.mkdtemp() + "/eye.zarr", columns={"y": np.arange(64) % 2})
    >>> strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    >>> with strategy.scope():
    ...     inputs, x = flat_input(64)
    ...     model = keras.Model(inputs, SparseDense(1, "sigmoid")(x))
    ...     model.compile("sgd", "binary_crossentropy")
    >>> ds = distributed(store, 16, strategy, shuffle=True, seed=0)
    >>> int(ds.cardinality)
    4
    >>> history = model.fit(ds, epochs=2, verbose=0)
    """
    if strategy is None:
        strategy = tf.distribute.get_strategy()
    taken = [name for name in ("partition", "n_partitions") if name in options]
    if taken:
        raise ValueError(f"{' and '.join(taken)} can not be given: the strategy says which partition a worker reads")
    n_replicas = strategy.num_replicas_in_sync
    if batch_size < 1 or batch_size % n_replicas:
        raise ValueError(
            f"batch_size is {batch_size}, the rows of a step over all {n_replicas} replicas: expected a multiple of "
            f"{n_replicas}"
        )
    made: list[tf.data.Dataset] = []

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        n_workers = context.num_input_pipelines
        if n_workers > 1 and options.get("shuffle") and options.get("seed") is None:
            raise ValueError(f"seed is None for {n_workers} workers that shuffle: give all of them the same number")
        whole = data.to_tf(
            batch_size // n_workers,
            prefetch=0,
            partition=context.input_pipeline_id,
            n_partitions=n_workers,
            **options,
        )
        n_parts = n_replicas // n_workers
        parts = _parts(whole, n_parts).apply(tf.data.experimental.assert_cardinality(n_parts * len(whole.loader)))
        made.extend((whole, parts))
        return parts.prefetch(prefetch) if prefetch else parts

    found = strategy.distribute_datasets_from_function(of_worker)
    whole, parts = made
    loader = whole.loader
    if not isinstance(found, tf.data.Dataset):
        # Keras takes its number of steps from `cardinality`, where TensorFlow has the number of elements: those of one
        # step are dealt to the replicas one by one
        known = {"cardinality": len(loader), "__doc__": type(found).__doc__}
        found.__class__ = type(type(found).__name__, (type(found),), known)
    found._source = whole  # iterators call it
    found.replica_spec = parts.element_spec
    found.loader = loader
    return found


def flat_input(n_features: int, dtype: str = "float32", *, name: str | None = None) -> tuple[dict[str, Any], Any]:
    """Inputs of a model that take what `distributed` gives, and the sparse rows made of them.

    Parameters
    ----------
    n_features : int
    dtype : str
        Of the values.
    name : str, optional
        What the names of the inputs begin with, for a second matrix of a model: each has a name of its own there.

    Returns
    -------
    inputs : dict of str to keras.KerasTensor
        For ``keras.Model(inputs, ...)``, or ``keras.Model({"x": inputs, "age": age}, ...)``.
    x : (n, n_features) keras.KerasTensor
        Sparse: what ``keras.Input((n_features,), sparse=True)`` would be.

    Examples
    --------
    >>> import keras
    >>> from sparsestore.keras import SparseDense, flat_input
    >>> model = keras.Sequential([keras.Input((1000,), sparse=True), SparseDense(1)])
    >>> inputs, x = flat_input(1000)
    >>> on_many = keras.Model(inputs, model(x))  # of the same weights
    """
    dtypes = {"counts": "int64", "indices": "int64", "values": dtype}
    begin = "" if name is None else f"{name}_"
    inputs = {each: keras.Input((), name=begin + each, dtype=dtypes[each]) for each in FLAT}
    return inputs, FlatToSparse(n_features)(inputs)


def distributable(model: keras.Model) -> keras.Model:
    """Let `fit` and `evaluate` of a model go by several workers, and by several replicas from the first epoch on.

    Parameters
    ----------
    model : keras.Model
        Made in the scope of a strategy of `tf.distribute`.

    Returns
    -------
    keras.Model
        The same one.

    Raises
    ------
    ValueError
        In `fit` and `evaluate`, for data that is not from `distributed`.

    Notes
    -----
    Keras 3.15 trains with `MirroredStrategy`; with `MultiWorkerMirroredStrategy` and several workers its `fit` fails on
    any data (keras-team/keras#20329). It takes means of a first batch over the workers, to learn shapes and dtypes, and
    can not take them of a structure; and means of logs, over a dimension that these do not have. Here shapes and dtypes
    are those that the data declares, and steps give their logs that dimension. What a ``train_step`` of your own does
    stays as it is. A model of a single replica needs nothing, and is left alone.

    Examples
    --------
    >>> import keras, tensorflow as tf
    >>> from sparsestore.keras import SparseDense, distributable, flat_input
    >>> with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
    ...     inputs, x = flat_input(64)
    ...     model = distributable(keras.Model(inputs, SparseDense(1)(x)))
    """
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
        return model
    if n_workers(strategy) > 1:
        model.train_step, model.test_step = _with_axis(model.train_step), _with_axis(model.test_step)

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None:
            data = iterator.data_adapter.get_tf_dataset()
            if not hasattr(data, "replica_spec"):
                raise ValueError(
                    f"{model.name} was made distributable, and got {data!r}: take the data from distributed"
                )
            data_batch = data.replica_spec
        with strategy.scope():
            model._symbolic_build(data_batch=data_batch)

    model._maybe_symbolic_build = build
    return model


def n_workers(strategy: tf.distribute.Strategy) -> int:
    """Workers that train together."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        return 1
    cluster = resolver.cluster_spec()
    return sum(cluster.num_tasks(job) for job in cluster.jobs if job in ("chief", "worker"))


def _with_axis(step: Any) -> Any:
    """A step whose logs are arrays of one number, for Keras to take means over their first dimension."""

    def run(data: Any) -> Any:
        return tf.nest.map_structure(lambda log: tf.reshape(log, [-1]), step(data))

    return run


@_registered
class FlatToSparse(keras.layers.Layer):
    """Sparse rows of flat tensors: how many entries each row has, then their feature numbers and values, end to end.

    Parameters
    ----------
    n_features : int
        Width of the rows.
    **options
        Those of `keras.layers.Layer`.

    Raises
    ------
    ValueError
        For a width below 1, and for inputs that are not such a dict.

    Notes
    -----
    Takes a dict of `counts`, (n,) int64, and `indices` and `values`, each as long as their sum or longer: what is left
    over is padding, and no entry of the rows. So no gradient reaches a feature by it, and a lazy optimizer does not
    see it.
    """

    def __init__(self, n_features: int, **options: Any) -> None:
        if not isinstance(n_features, int) or n_features < 1:
            raise ValueError(f"n_features is {n_features!r}, expected a whole number of at least 1")
        # the layer after this one casts, as it does with sparse inputs
        super().__init__(**{"autocast": False, **options})
        self.n_features = n_features
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Dict of flat tensors -> (n, n_features) sparse."""
        counts, indices, values = self._flat(inputs)
        n = tf.size(counts, out_type=tf.int64)
        total = tf.reduce_sum(counts)
        places = tf.stack([tf.repeat(tf.range(n), counts), indices[:total]], axis=1)
        return tf.SparseTensor(places, values[:total], tf.stack([n, self.n_features]))

    def compute_output_spec(self, inputs: Any) -> Any:
        """Shape and dtype of what `call` gives."""
        counts, _, values = self._flat(inputs)
        return keras.KerasTensor((counts.shape[0], self.n_features), dtype=values.dtype, sparse=True)

    def _flat(self, inputs: Any) -> tuple[Any, ...]:
        if not isinstance(inputs, Mapping) or set(inputs) != set(FLAT):
            found = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                f"{self.name} got {found}, expected a dict of {', '.join(FLAT)}: take the data from distributed, and "
                "the inputs from flat_input"
            )
        return tuple(inputs[name] for name in FLAT)

    def get_config(self) -> dict[str, Any]:
        """What the layer can be made again from."""
        return {**super().get_config(), "n_features": self.n_features}


# ---- a worker's batch, cut for its replicas


def _parts(ds: tf.data.Dataset, n_parts: int) -> tf.data.Dataset:
    """Each element cut into so many, in order; the numbers of their rows differ by at most one."""

    def parts(*element: Any) -> tf.data.Dataset:
        n = tf.shape(tf.nest.flatten(element)[0], out_type=tf.int64)[0]  # as all the others have
        cuts = tf.range(n_parts + 1, dtype=tf.int64) * n // n_parts
        cutters = tf.nest.map_structure(lambda each: _cutter(each, n, cuts), element)

        def part(i: Any) -> Any:
            found = tf.nest.map_structure(lambda cut: cut(cuts[i], cuts[i + 1]), cutters)
            return found if len(found) > 1 else found[0]

        return tf.data.Dataset.range(n_parts).map(plain(part))

    return ds.flat_map(plain(parts))


def _cutter(x: Any, n: Any, cuts: Any) -> Callable[[Any, Any], Any]:
    """What gives some rows of a tensor of n, from one of the cuts to the next."""
    if isinstance(x, tf.SparseTensor):
        flat = _flat(x, n, cuts)
        return lambda start, stop: _part(start, stop, *flat)
    # truth values as 0 and 1: Keras takes means of a first batch, and TensorFlow has none of truth values
    whole = tf.cast(x, tf.uint8) if x.dtype == tf.bool else x
    return lambda start, stop: whole[start:stop]


def _flat(x: tf.SparseTensor, n: Any, cuts: Any) -> tuple[Any, ...]:
    """What `_part` takes apart: where rows begin, columns and values and, of them, the most that one part has."""
    starts = tf.searchsorted(x.indices[:, 0], tf.range(n + 1), out_type=tf.int64)
    at = tf.gather(starts, cuts)
    longest = tf.reduce_max(at[1:] - at[:-1])
    return starts, x.indices[:, 1], x.values, longest


def _part(start: Any, stop: Any, starts: Any, columns: Any, values: Any, longest: Any) -> dict[str, Any]:
    """Flat tensors of some rows, as long as those of the other replicas: Keras takes their mean to learn shapes."""
    bounds = starts[start : stop + 1]
    first, last = bounds[0], bounds[-1]
    padding = [[0, longest - (last - first)]]
    return {
        "counts": bounds[1:] - bounds[:-1],
        "indices": tf.pad(columns[first:last], padding),
        "values": tf.pad(values[first:last], padding),
    }
