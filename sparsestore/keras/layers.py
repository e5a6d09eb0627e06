"""Layers that take sparse rows and keep them sparse, forwards and in the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise ImportError('sparsestore.keras needs TensorFlow: pip install "sparsestore[tensorflow]"') from error

from sparsestore.keras.table import is_sparse, product, sums, wide

__all__ = ["SparseDense", "SparseDropout", "SparseEmbeddingBag", "SparseScaling", "ToDense"]

_registered = keras.saving.register_keras_serializable(package="sparsestore")

COMBINERS = ("sum", "mean", "sqrtn")
SCALINGS = ("max_abs", "standard", "tf-idf")
ADAPT_ROWS = 1 << 16


@_registered
class SparseDense(keras.layers.Dense):
    """`keras.layers.Dense` for sparse rows: a step costs what the batch's features cost, not what the kernel does.

    Parameters
    ----------
    units : int
    **options
        Those of `keras.layers.Dense`, with the same meaning.

    Notes
    -----
    Same weights and mathematics: ``set_weights`` of the one takes ``get_weights`` of the other. The gradient of the
    kernel is a `tf.IndexedSlices` over the features of the batch, each once; with `SGD` or one of the lazy optimizers
    of `sparsestore.keras` the rest of the kernel is neither read nor written. Dense inputs, and kernels with LoRA, go
    the way of `Dense`. With float16 and bfloat16 products are summed in float32, and rounded once. Layers of Keras can
    be quantized, this one can not.

    Examples
    --------
    >>> import keras
    >>> from sparsestore.keras import SparseDense
    >>> model = keras.Sequential([keras.Input((1_000_000,), sparse=True), SparseDense(1, "sigmoid")])
    >>> model.count_params()
    1000001
    """

    def add_weight(self, *args: Any, **options: Any) -> Any:
        """Add a weight; rows of the kernel are gathered first, and only these cast."""
        if options.get("name") == "kernel":
            options["autocast"] = False
        return super().add_weight(*args, **options)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """(n, n_features) sparse or dense -> (n, units)."""
        if not isinstance(inputs, tf.SparseTensor) or inputs.shape.rank != 2 or self.lora_enabled:
            # the kernel is not cast by Keras, and so neither is what it is multiplied by
            found = super().call(inputs, training=training)
            return found if found.dtype == self.compute_dtype else tf.cast(found, self.compute_dtype)
        found = tf.cast(product(inputs, self.kernel), self.compute_dtype)
        if self.bias is not None:
            found = tf.nn.bias_add(found, tf.cast(self.bias.value, self.compute_dtype))
        return found if self.activation is None else self.activation(found)


@_registered
class SparseEmbeddingBag(keras.layers.Layer):
    """Sum or mean of the embeddings of a row's features: the column is the token, the value its weight.

    Parameters
    ----------
    output_dim : int
        Numbers in an embedding.
    combiner : {"sum", "mean", "sqrtn"}
        What the weighted sum is divided by: 1, the sum of the weights, or the root of the sum of their squares. A row
        without entries, or whose divisor is 0, gives zeros.
    embeddings_initializer, embeddings_regularizer, embeddings_constraint : str or object
        As in `keras.layers.Embedding`.
    **options
        Those of `keras.layers.Layer`.

    Raises
    ------
    ValueError
        For an unknown combiner, and, when the model is built, inputs that are not sparse rows.

    Notes
    -----
    What `tf.nn.safe_embedding_lookup_sparse` gives for ids and weights above 0; of others it leaves out those up to 0
    for "mean" and "sqrtn", and here they count. `keras.layers.Embedding` on a sparse input takes the *values* for
    tokens.

    Examples
    --------
    >>> import keras
    >>> from sparsestore.keras import SparseEmbeddingBag
    >>> model = keras.Sequential([keras.Input((50_000,), sparse=True), SparseEmbeddingBag(16, "mean")])
    >>> model.output_shape
    (None, 16)
    """

    def __init__(
        self,
        output_dim: int,
        combiner: str = "sum",
        *,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(output_dim, int) or output_dim < 1:
            raise ValueError(f"output_dim is {output_dim!r}, expected a whole number of at least 1")
        if combiner not in COMBINERS:
            raise ValueError(f"combiner is {combiner!r}, expected one of {', '.join(map(repr, COMBINERS))}")
        super().__init__(**options)
        self.output_dim = output_dim
        self.combiner = combiner
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = keras.constraints.get(embeddings_constraint)

    def build(self, input_shape: Any) -> None:
        """Make the table."""
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(_n_features(self, input_shape), self.output_dim),
            initializer=self.embeddings_initializer,
            regularizer=self.embeddings_regularizer,
            constraint=self.embeddings_constraint,
            autocast=False,
        )

    def call(self, inputs: Any) -> Any:
        """(n, n_features) sparse -> (n, output_dim)."""
        _check_sparse(self, inputs, "keras.layers.Dense(use_bias=False)")
        found = product(inputs, self.embeddings)
        if self.combiner != "sum":
            weights = tf.cast(inputs.values, found.dtype)
            mean = self.combiner == "mean"
            total = sums(inputs, weights) if mean else tf.sqrt(sums(inputs, tf.square(weights)))
            found = tf.math.divide_no_nan(found, total[:, tf.newaxis])
        return tf.cast(found, self.compute_dtype)

    def compute_output_spec(self, inputs: Any) -> Any:
        """Shape and dtype of what `call` gives."""
        _check_sparse(self, inputs, "keras.layers.Dense(use_bias=False)")
        return keras.KerasTensor((inputs.shape[0], self.output_dim), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """What the layer can be made again from."""
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "combiner": self.combiner,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "embeddings_regularizer": keras.regularizers.serialize(self.embeddings_regularizer),
            "embeddings_constraint": keras.constraints.serialize(self.embeddings_constraint),
        }


@_registered
class SparseDropout(keras.layers.Layer):
    """Dropout of stored entries in training: what is dropped is as if it had not been stored.

    Parameters
    ----------
    rate : float
        Share of the entries to drop, from 0 to below 1; the others are divided by ``1 - rate``.
    seed : int, optional
    **options
        Those of `keras.layers.Layer`.

    Raises
    ------
    ValueError
        For a rate out of range, and, when the model is built, inputs that are not sparse rows.

    Notes
    -----
    As `keras.layers.Dropout` on the dense matrix, where a zero that is dropped stays zero (Srivastava et al., JMLR 15,
    2014); that layer builds on a sparse input and fails in ``fit``. Whole numbers become floats of the layer's dtype.

    Examples
    --------
    >>> import keras
    >>> from sparsestore.keras import SparseDense, SparseDropout
    >>> inputs = keras.Input((1000,), sparse=True)
    >>> model = keras.Model(inputs, SparseDense(1)(SparseDropout(0.2, seed=0)(inputs)))
    """

    def __init__(self, rate: float, seed: int | None = None, **options: Any) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate is {rate!r}, expected from 0 to below 1")
        super().__init__(**options)
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """(n, n_features) sparse -> the same, with fewer entries in training."""
        _check_sparse(self, inputs, "keras.layers.Dropout")
        if not inputs.values.dtype.is_floating:
            inputs = inputs.with_values(tf.cast(inputs.values, self.compute_dtype))
        if not training or not self.rate:
            return inputs
        kept = keras.random.uniform(tf.shape(inputs.values), seed=self.seed_generator, dtype="float32") >= self.rate
        scale = tf.cast(1 / (1 - self.rate), inputs.values.dtype)
        return tf.SparseTensor(
            tf.boolean_mask(inputs.indices, kept), tf.boolean_mask(inputs.values, kept) * scale, inputs.dense_shape
        )

    def compute_output_spec(self, inputs: Any, **_: Any) -> Any:
        """Shape and dtype of what `call` gives."""
        _check_sparse(self, inputs, "keras.layers.Dropout")
        dtype = inputs.dtype if keras.backend.is_float_dtype(inputs.dtype) else self.compute_dtype
        return keras.KerasTensor(inputs.shape, dtype=dtype, sparse=True)

    def get_config(self) -> dict[str, Any]:
        """What the layer can be made again from."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@_registered
class ToDense(keras.layers.Layer):
    """Sparse rows as a dense tensor, made where the model computes: on a GPU only the entries travel there.

    Parameters
    ----------
    **options
        Those of `keras.layers.Layer`.

    Raises
    ------
    ValueError
        When the model is built, for inputs that are not sparse rows.

    Notes
    -----
    For layers of Keras that take no sparse rows, such as `BatchNormalization`, in front of few features: n x n_features
    numbers are made for each batch. ``to_tf(layout="dense")`` gives the same, made by the processor beside the model.

    Examples
    --------
    >>> import keras
    >>> from sparsestore.keras import ToDense
    >>> inputs = keras.Input((100,), sparse=True)
    >>> model = keras.Model(inputs, keras.layers.BatchNormalization()(ToDense()(inputs)))
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """(n, n_features) sparse -> the same, dense."""
        _check_sparse(self, inputs, "no layer")
        # rows of a store are in order and without repeats, so that nobody has to look
        return tf.sparse.to_dense(inputs, validate_indices=False)

    def compute_output_spec(self, inputs: Any) -> Any:
        """Shape and dtype of what `call` gives."""
        _check_sparse(self, inputs, "no layer")
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)


@_registered
class SparseScaling(keras.layers.Layer):
    """Multiplies each feature by a number learned from a store in one pass, so that zeros stay zeros.

    Parameters
    ----------
    scaling : {"max_abs", "standard", "tf-idf"}
        1 over the largest absolute value; 1 over the standard deviation, zeros counted, nothing subtracted; or the
        smoothed inverse document frequency ``ln((1 + n) / (1 + df)) + 1`` of ``df`` rows with the feature among n,
        after which each row is divided by its length.
    **options
        Those of `keras.layers.Layer`.

    Raises
    ------
    ValueError
        For an unknown scaling; when the model is built, before `adapt`, or for inputs that are not sparse rows.

    Notes
    -----
    What scikit-learn's `MaxAbsScaler`, ``StandardScaler(with_mean=False)`` and `TfidfTransformer` do; features without
    values, or without variance beyond rounding, keep theirs. The scale is a weight that is not trained, and is saved
    with the model.

    Examples
    --------
    >>> import keras, numpy as np, tempfile, sparsestore as ss
    >>> from sparsestore.keras import SparseDense, SparseScaling
    >>> store = ss.convert(np.diag([2.0, 4.0]), tempfile.mkdtemp() + "/a.zarr")
    >>> scaling = SparseScaling("max_abs")
    >>> scaling.adapt(store)
    >>> scaling.scale.numpy()
    array([0.5 , 0.25], dtype=float32)
    >>> inputs = keras.Input((2,), sparse=True)
    >>> model = keras.Model(inputs, SparseDense(1)(scaling(inputs)))
    """

    built: bool

    def __init__(self, scaling: str = "max_abs", **options: Any) -> None:
        if scaling not in SCALINGS:
            raise ValueError(f"scaling is {scaling!r}, expected one of {', '.join(map(repr, SCALINGS))}")
        super().__init__(**options)
        self.scaling = scaling
        self.adapted = False

    def build(self, input_shape: Any) -> None:
        """Make the scale."""
        self.scale = self.add_weight(
            name="scale", shape=(_n_features(self, input_shape),), initializer="ones", trainable=False, autocast=False
        )

    def adapt(self, data: Any) -> None:
        """Learn the scale from all rows of a store or view, in one pass.

        Parameters
        ----------
        data : Store, View, scipy.sparse matrix, or 2-D numpy array
            Besides a piece of 65,536 rows, 4 arrays of n_features float64 are held; and a copy of a matrix that is not
            CSR, or has features of a row not in order or twice, whose values are added up.

        Raises
        ------
        ValueError
            For anything else, without rows, or where the layer was built for another number of features.
        """
        rows = _rows(data)
        n_rows, n_features = rows.shape
        if not n_rows:
            raise ValueError(f"{self.name} can not adapt to {data!r}: it has no rows")
        if self.built and self.scale.shape[0] != n_features:
            raise ValueError(f"{self.name} is built for {self.scale.shape[0]} features, and {data!r} has {n_features}")
        pieces = (rows[start : start + ADAPT_ROWS] for start in range(0, n_rows, ADAPT_ROWS))
        learn = {"max_abs": _max_abs, "standard": _standard, "tf-idf": _inverse_document_frequency}[self.scaling]
        found = learn(pieces, n_features)
        if not self.built:
            self.build((None, n_features))
            self.built = True
        self.scale.assign(found)
        self.adapted = True

    def call(self, inputs: Any) -> Any:
        """(n, n_features) sparse -> the same, scaled."""
        self._check(inputs)
        dtype = wide(self.compute_dtype)
        values = tf.cast(inputs.values, dtype) * tf.cast(tf.gather(self.scale.value, inputs.indices[:, 1]), dtype)
        if self.scaling == "tf-idf":
            lengths = tf.sqrt(sums(inputs, tf.square(values)))
            values = tf.math.divide_no_nan(values, tf.gather(lengths, inputs.indices[:, 0]))
        return tf.SparseTensor(inputs.indices, tf.cast(values, self.compute_dtype), inputs.dense_shape)

    def compute_output_spec(self, inputs: Any) -> Any:
        """Shape and dtype of what `call` gives."""
        self._check(inputs)
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype, sparse=True)

    def _check(self, inputs: Any) -> None:
        _check_sparse(self, inputs, "keras.layers.Rescaling or Normalization")
        if not self.adapted:
            raise ValueError(f"{self.name} has no scale yet: call its adapt(store) first")

    def get_config(self) -> dict[str, Any]:
        """What the layer can be made again from; weights are saved beside it."""
        return {**super().get_config(), "scaling": self.scaling, "adapted": self.adapted}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SparseScaling:
        """Make the layer again."""
        config = dict(config)
        adapted = config.pop("adapted", False)
        layer = cls(**config)
        layer.adapted = adapted
        return layer


def _n_features(layer: keras.layers.Layer, shape: Any) -> int:
    if len(shape) != 2 or shape[-1] is None:
        raise ValueError(f"{layer.name} got inputs of shape {tuple(shape)}, expected (rows, features) of known width")
    return int(shape[-1])


def _check_sparse(layer: keras.layers.Layer, inputs: Any, instead: str) -> None:
    if not is_sparse(inputs):
        raise ValueError(
            f"{layer.name} got dense inputs of shape {tuple(inputs.shape)}, expected sparse rows: make the input with "
            f"keras.Input(..., sparse=True), or use {instead} for dense ones"
        )


# ---- what is learned of a feature


def _rows(data: Any) -> Any:
    """What gives rows by slices as CSR, canonical: a store or a view, or what a matrix in memory is made."""
    if hasattr(data, "to_tf"):
        return data
    if not (scipy.sparse.issparse(data) or isinstance(data, np.ndarray)) or data.ndim != 2:
        found = f"{type(data).__name__} of shape {getattr(data, 'shape', None)}"
        raise ValueError(f"data is a {found}, expected a store, a view, a scipy.sparse matrix or a 2-D numpy array")
    rows = scipy.sparse.csr_array(data)
    if not rows.has_canonical_format:
        rows = rows.copy()  # it may share the memory of `data`
        rows.sum_duplicates()
    return rows


def _max_abs(pieces: Iterable[Any], n_features: int) -> np.ndarray[Any, Any]:
    most = np.zeros(n_features)
    for piece in pieces:
        np.maximum.at(most, piece.indices, np.abs(piece.data.astype(np.float64)))
    return _inverse(most)


def _standard(pieces: Iterable[Any], n_features: int) -> np.ndarray[Any, Any]:
    """Of means and squared deviations of pieces, put together (Chan, Golub and LeVeque, COMPSTAT 1982).

    Where the variance is within the error bound of its calculation, as the same authors give it ("Algorithms for
    computing the sample variance", The American Statistician 37, 1983) and scikit-learn takes it, the feature counts
    as constant.
    """
    n, mean, squares = 0, np.zeros(n_features), np.zeros(n_features)
    for piece in pieces:
        values, more = piece.data.astype(np.float64), piece.shape[0]
        present = np.bincount(piece.indices, minlength=n_features)
        own = np.bincount(piece.indices, values, n_features) / more
        spread = np.bincount(piece.indices, np.square(values - own[piece.indices]), n_features)
        # `spread`, which numpy makes of whole numbers where a piece has no entries, is not added to in place
        squares += spread + (more - present) * np.square(own) + np.square(own - mean) * (n * more / (n + more))
        mean += (own - mean) * (more / (n + more))
        n += more
    variance = squares / n
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + np.square(n * eps * mean)
    return _inverse(np.sqrt(np.where(constant, 0, variance)))


def _inverse_document_frequency(pieces: Iterable[Any], n_features: int) -> np.ndarray[Any, Any]:
    n, rows = 0, np.zeros(n_features)
    for piece in pieces:
        n += piece.shape[0]
        rows += np.bincount(piece.indices[piece.data != 0], minlength=n_features)
    return np.asarray(np.log((1 + n) / (1 + rows)) + 1)


def _inverse(divisors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(1 / np.where(divisors == 0, 1, divisors))
