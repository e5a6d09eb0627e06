"""Keras on TensorFlow for sparse inputs: layers that stay sparse to the gradient, and optimizers that touch used rows.

Nothing here is needed to train from a store: ``model.fit(store.to_tf(...))`` works with the layers of Keras. These are
faster where there are many features, and go where those of Keras fail.
"""

from sparsestore.keras.check import check
from sparsestore.keras.distribution import FlatToSparse, distributable, distributed, flat_input
from sparsestore.keras.layers import SparseDense, SparseDropout, SparseEmbeddingBag, SparseScaling, ToDense
from sparsestore.keras.optimizers import LazyAdagrad, LazyAdam, LazyFTRL, LazyMomentum
from sparsestore.keras.resume import Resume

__all__ = [
    "FlatToSparse",
    "LazyAdagrad",
    "LazyAdam",
    "LazyFTRL",
    "LazyMomentum",
    "Resume",
    "SparseDense",
    "SparseDropout",
    "SparseEmbeddingBag",
    "SparseScaling",
    "ToDense",
    "check",
    "distributable",
    "distributed",
    "flat_input",
]
