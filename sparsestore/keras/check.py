"""Finds sparse tensors that go into a layer of Keras which takes them while a model is built, and fails in ``fit``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

try:
    import keras
except ImportError as error:
    raise ImportError('sparsestore.keras needs TensorFlow: pip install "sparsestore[tensorflow]"') from error

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
# What these announce is dense, and what they give is sparse: the next layer gets it.
SPARSE_IN_FACT = {"Activation", "Discretization", "GaussianDropout", "Hashing", "Lambda"}
ACTIVATIONS = {"exponential", "linear", "tanh"}  # the ones that take sparse tensors
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
    they are subclasses of those: only whose `call` is the one of Keras is known.

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
            if isinstance(operation, keras.Model):
                yield from _problems(operation, known)
            elif kind is not None:
                widths = [each.shape[-1] for each, is_sparse in zip(tensors, known, strict=True) if is_sparse]
                said = _said(operation, kind, max((width or 0 for width in widths), default=0), all(known), tensors)
                if said:
                    yield f"{operation.name} ({kind}) {said}"
            sparse |= {id(each) for each in node.output_tensors if each.sparse or kind in SPARSE_IN_FACT}


def _kind(operation: Any) -> str | None:
    """The class of Keras that a layer is, or only has another name for; None where its `call` is another's."""
    classes = type(operation).__mro__
    owner = next((each for each in classes if "call" in vars(each)), object)
    return next((each.__name__ for each in classes if _of_keras(each)), None) if _of_keras(owner) else None


def _of_keras(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] == "keras"


def _said(layer: Any, kind: str, width: int, all_sparse: bool, tensors: Any) -> str | None:
    """What is wrong with a layer of Keras on sparse rows; None where nothing is."""
    rows = f"sparse rows of {width} features"
    if kind in FAILS and not _idle(layer):
        return f"gets {rows} and fails in fit: {FAILS[kind]}"
    if kind == "Activation" and not _takes_sparse(layer.activation):
        return f"gets {rows}, and {layer.activation.__name__} fails in fit: {DENSE_FIRST}"
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


def _takes_sparse(activation: Callable[..., Any]) -> bool:
    """Whether an activation works on sparse tensors, or is not Keras's, so that nobody knows."""
    return not _of_keras(activation) or getattr(activation, "__name__", "") in ACTIVATIONS
