"""Finds sparse tensors that go into a layer of Keras which takes them while a model is built, and fails in ``fit``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise ImportError('sparsestore.keras needs TensorFlow: pip install "sparsestore[tensorflow]"') from error

from sparsestore.keras.table import is_sparse

__all__ = ["check"]

MANY_FEATURES = 1 << 14  # 64 KiB in a dense row of float32

DROPOUT = "use sparsestore.keras.SparseDropout there, or SparseDense first"
SCALING = "use sparsestore.keras.SparseScaling there, or SparseDense first and this layer behind it"
DENSE_FIRST = "use sparsestore.keras.SparseDense (or Dense) first and this layer behind it"
EMBEDDING = (
    'use sparsestore.keras.SparseEmbeddingBag, or make the input with dtype="int32" where the values are ids indeed'
)

# Whose `call` computes with a dense tensor, or needs one at the first step; each has a test that it still fails.
FAILS = {
    "ActivityRegularization": DENSE_FIRST,
    "AlphaDropout": DROPOUT,
    "BatchNormalization": SCALING,
    "Dropout": DROPOUT,
    "ELU": DENSE_FIRST,
    "EinsumDense": "use sparsestore.keras.SparseDense (or Dense)",
    "GaussianNoise": DROPOUT,
    "GroupNormalization": SCALING,
    "IntegerLookup": EMBEDDING,
    "LayerNormalization": SCALING,
    "LeakyReLU": DENSE_FIRST,
    "Masking": "leave it out: cells that are not stored are zeros, and cost nothing",
    "Normalization": SCALING,
    "PReLU": DENSE_FIRST,
    "RMSNormalization": SCALING,
    "ReLU": DENSE_FIRST,
    "RepeatVector": DENSE_FIRST,
    "Rescaling": SCALING,
    "Softmax": DENSE_FIRST,
    "UnitNormalization": SCALING,
}
# What these announce is dense, and what they give may be sparse: they are tried, and the next layer gets it.
TRIED = {"Activation", "Discretization", "GaussianDropout", "Hashing", "Lambda"}
# Of a sparse and a dense tensor these make a dense one.
MERGES = {"Add", "Average", "Concatenate", "Maximum", "Minimum", "Subtract"}


def check(model: Any) -> None:
    """Raise where a layer of a model can not work on the sparse tensor that it is given, before anything is trained.

    Parameters
    ----------
    model : keras.Model
        Functional or Sequential, with models inside; it may be compiled or not. Of a model that is a class of its own
        only such parts are looked at.

    Raises
    ------
    ValueError
        It names each layer, what goes wrong there, and what to use instead.

    Notes
    -----
    Keras builds Dropout, BatchNormalization and others on a sparse input without a word, and fails at the first step,
    far from the place; Embedding trains, but takes the values for ids. Layers of your own are passed over, also where
    they are subclasses of those: only whose `call` is the one of Keras is known. Activations and Lambda are tried on a
    sparse row without values, and functions of your own passed over where they fail on it.

    Examples
    --------
    >>> import keras
    >>> from sparsestore.keras import check
    >>> model = keras.Sequential([keras.Input((1000,), sparse=True), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    >>> check(model)
    Traceback (most recent call last):
      ...
    ValueError: dropout (Dropout) gets sparse rows of 1000 features and fails in fit: use ...
    """
    problems = list(dict.fromkeys(_problems(model, None)))
    if problems:
        raise ValueError("\n".join(problems))


def _problems(model: Any, given: list[bool] | None) -> Iterator[str]:
    """What is wrong in a model, whose inputs are sparse as given, or else as they say."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    depths = getattr(graph, "_nodes_by_depth", None)  # Keras has no public way to the calls of a shared layer
    if depths is None:  # not built yet, or a class of its own
        for layer in model.layers:
            if isinstance(layer, keras.Model):
                yield from _problems(layer, None)
        return
    inputs = [bool(each.sparse) for each in graph.inputs] if given is None else given
    sparse = {id(each) for each, known in zip(graph.inputs, inputs, strict=False) if known}
    for depth in sorted(depths, reverse=True):
        for node in depths[depth]:
            operation, tensors = node.operation, node.arguments.keras_tensors
            known = [id(each) in sparse for each in tensors]
            if not any(known):
                continue
            kind = _kind(operation)
            made = _tried(operation, tensors[0]) if kind in TRIED and len(tensors) == 1 else None
            if isinstance(operation, keras.Model):
                yield from _problems(operation, known)
            elif kind is not None:
                width = max(each.shape[-1] or 0 for each, it_is in zip(tensors, known, strict=True) if it_is)
                said = _said(operation, kind, width, all(known), tensors, made)
                if said:
                    yield f"{operation.name} ({kind}) {said}"
            sparse |= {id(each) for each in node.output_tensors if each.sparse or is_sparse(made)}


def _kind(operation: Any) -> str | None:
    """The class of Keras that a layer is, or only has another name for; None where its `call` is another's."""
    classes = type(operation).__mro__
    owner = next((each for each in classes if "call" in vars(each)), object)
    return next((each.__name__ for each in classes if _of_keras(each)), None) if _of_keras(owner) else None


def _of_keras(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] == "keras"


def _tried(layer: Any, given: Any) -> Any:
    """What a layer makes of a sparse row of the shape that it is given; None where it fails."""
    shape = [1, *(size or 1 for size in given.shape[1:])]
    try:
        return layer.call(tf.SparseTensor([[0] * len(shape)], tf.zeros(1, given.dtype), shape))
    except Exception:  # whatever it is, the model has it, too
        return None


def _said(layer: Any, kind: str, width: int, all_sparse: bool, tensors: Any, made: Any) -> str | None:
    """What is wrong with a layer of Keras on sparse rows; None where nothing is."""
    rows = f"sparse rows of {width} features"
    if kind in FAILS and not _idle(layer):
        return f"gets {rows} and fails in fit: {FAILS[kind]}"
    if kind == "Activation" and made is None and _of_keras(layer.activation):
        name = getattr(layer.activation, "__name__", type(layer.activation).__name__)  # it may be a layer
        return f"gets {rows}, and {name} fails in fit: {DENSE_FIRST}"
    if kind == "Embedding" and "int" not in tensors[0].dtype:
        return f"gets {rows} and takes their values for ids, not their columns: {EMBEDDING}"
    if kind in MERGES and not all_sparse and width > MANY_FEATURES:
        return (
            f"gets {rows} and dense ones, and makes all of them dense, {4 * width:,} bytes a row: use SparseDense or "
            "SparseEmbeddingBag on the sparse ones first"
        )
    return None


def _idle(layer: Any) -> bool:
    """Whether a layer gives what it gets: noise and dropout that are switched off."""
    return not getattr(layer, "rate", 1) or not getattr(layer, "stddev", 1)
