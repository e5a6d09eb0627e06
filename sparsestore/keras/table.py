"""The product of sparse rows and a table of weights that reads, and has a gradient for, the rows in use alone."""

from __future__ import annotations

from typing import Any

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise ImportError('sparsestore.keras needs TensorFlow: pip install "sparsestore[tensorflow]"') from error

__all__ = ["is_sparse", "product", "sums", "wide"]


def product(x: tf.SparseTensor, table: keras.Variable) -> Any:
    """``x @ table`` as (n, units) tensor, in float32 at least.

    Parameters
    ----------
    x : (n, n_features) tf.SparseTensor
        Of any numeric dtype.
    table : (n_features, units) keras.Variable
        Added with ``autocast=False``.

    Notes
    -----
    The features of the batch are numbered anew, their rows gathered *from the variable*, and multiplied by sparse rows
    over these alone. Whoever reads the variable first (as `keras.layers.Dense` does) has its memory copied by the next
    scattered update, 256 MB a step for a million rows of 64. Numbered anew each row has one gradient, which optimizers
    rely on that square it, and no array of entries x units is made: against a gather for each entry and a sum over
    segments the step takes 0.6 of the time in batches of 256, and 0.3 in batches of 4096 (64 units).
    """
    dtype = wide(table.dtype)
    used, columns = tf.unique(x.indices[:, 1], out_idx=tf.int64)
    rows = tf.cast(tf.gather(table.value, used), dtype)
    shape = tf.stack([x.dense_shape[0], tf.size(used, out_type=tf.int64)])
    compact = tf.SparseTensor(tf.stack([x.indices[:, 0], columns], axis=1), tf.cast(x.values, dtype), shape)
    found = tf.sparse.sparse_dense_matmul(compact, rows)
    found.set_shape([x.shape[0], table.shape[1]])
    return found


def sums(x: tf.SparseTensor, values: Any) -> Any:
    """Sums over the entries of each row, as (n,) tensor, of values that belong to the entries of `x`."""
    return tf.math.unsorted_segment_sum(values, x.indices[:, 0], x.dense_shape[0])


def wide(dtype: str) -> str:
    """The dtype to calculate in: sums of many products lose most of a half float's digits."""
    return "float32" if keras.backend.standardize_dtype(dtype) in ("float16", "bfloat16") else dtype


def is_sparse(x: Any) -> bool:
    """Whether x is a sparse matrix, of tensors or symbolic."""
    return isinstance(x, tf.SparseTensor) or (isinstance(x, keras.KerasTensor) and bool(getattr(x, "sparse", False)))
