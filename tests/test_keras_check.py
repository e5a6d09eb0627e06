"""What `check` refuses does fail with Keras alone, and what it lets pass works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import sparsestore as ss  # noqa: E402
from sparsestore.keras import Resume, SparseDense, SparseDropout, SparseEmbeddingBag, check  # noqa: E402
from sparsestore.keras import check as check_function  # noqa: E402
from sparsestore.keras.check import FAILS, MANY_FEATURES, MERGES  # noqa: E402

# Keras 3.15 asks TensorFlow 2.21 for arrays in the way of numpy 1
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning"),
    # what is refused here is told by Keras in a warning, and then fails
    pytest.mark.filterwarnings("ignore:.*structure of `inputs` doesn't match:UserWarning"),
]

layers, ops = keras.layers, keras.ops
N, WIDTH = 8, 12
DENSE = (np.random.default_rng(0).random((N, WIDTH)) < 0.4).astype("float32")
SPARSE = tf.sparse.from_dense(DENSE)
Y = np.zeros((N, 1), "float32")

MADE = {
    "ActivityRegularization": lambda: layers.ActivityRegularization(0.1),
    "AlphaDropout": lambda: layers.AlphaDropout(0.1),
    "Dropout": lambda: layers.Dropout(0.1),
    "EinsumDense": lambda: layers.EinsumDense("ab,bc->ac", output_shape=3),
    "GaussianNoise": lambda: layers.GaussianNoise(0.1),
    "GroupNormalization": lambda: layers.GroupNormalization(2),
    "IntegerLookup": lambda: layers.IntegerLookup(vocabulary=[1, 2]),
    "Normalization": lambda: layers.Normalization(mean=0.0, variance=1.0),
    "RepeatVector": lambda: layers.RepeatVector(2),
    "Rescaling": lambda: layers.Rescaling(0.5),
}


def rows(n_features: int = WIDTH, **options: Any) -> Any:
    return keras.Input((n_features,), sparse=True, **options)


def model(inputs: Any, hidden: Any) -> Any:
    if hidden.shape[1:] != (hidden.shape[-1],):
        hidden = layers.Flatten()(hidden)
    return keras.Model(inputs, layers.Dense(1)(hidden))


def trained_once(found: Any) -> None:
    """A step without the loop of `fit`, which traces the same graph."""
    found.compile("sgd", "mse", run_eagerly=False)
    found.train_on_batch(SPARSE, Y)


@pytest.mark.parametrize("kind", FAILS)
def test_a_layer_that_is_refused_fails_in_keras(kind: str) -> None:
    inputs = rows()
    layer = MADE.get(kind, getattr(layers, kind))()
    found = model(inputs, layer(inputs))
    with pytest.raises(ValueError, match=rf"^{layer.name} \({kind}\) gets sparse rows of {WIDTH} features .*: "):
        check(found)
    with pytest.raises((TypeError, ValueError, NotImplementedError, tf.errors.InvalidArgumentError)):
        trained_once(found)


@pytest.mark.parametrize("function", ["relu", "sigmoid", "softmax", "elu", "gelu", "silu", "softplus", "leaky_relu"])
def test_an_activation_that_is_refused_fails_in_keras(function: str) -> None:
    inputs = rows()
    found = model(inputs, layers.Activation(function)(inputs))
    with pytest.raises(ValueError, match=rf"\(Activation\) gets .*, and {function} fails in fit: use .*SparseDense"):
        check(found)
    with pytest.raises((TypeError, ValueError)):
        trained_once(found)


def only_many(x: Any) -> Any:
    """A function of your own that fails where it is tried."""
    if x.shape[0] == 1:
        raise TypeError(x)
    return tf.sparse.to_dense(x)


PASS = {
    "Dense": lambda x: layers.Dense(3, "relu")(x),
    "SparseDense": lambda x: SparseDense(3, "relu")(x),
    "SparseDropout": lambda x: SparseDropout(0.2)(x),
    "SparseEmbeddingBag": lambda x: SparseEmbeddingBag(2)(x),
    "Identity": lambda x: layers.Identity()(x),
    "Flatten": lambda x: layers.Flatten()(x),
    "Activation tanh": lambda x: layers.Activation("tanh")(x),
    "Activation linear": lambda x: layers.Activation("linear")(x),
    "Activation exponential": lambda x: layers.Activation("exponential")(x),
    **{
        f"Activation {function.__name__}": lambda x, function=function: layers.Activation(function)(x)
        for function in (ops.log1p, ops.abs, ops.sqrt, ops.sign, ops.square, ops.expm1, ops.negative)
    },
    "Activation that makes dense rows": lambda x: layers.ReLU()(layers.Activation("exponential")(x)),
    "Activation of your own": lambda x: layers.ReLU()(layers.Activation(tf.sparse.to_dense)(x)),
    "Lambda that makes dense rows": lambda x: layers.ReLU()(layers.Lambda(tf.sparse.to_dense, (WIDTH,))(x)),
    "Activation that wants more": lambda x: layers.Activation(only_many)(x),
    "GaussianDropout": lambda x: layers.GaussianDropout(0.1)(x),
    "Dropout that is off": lambda x: layers.Dropout(0.0)(x),
    "Concatenate": lambda x: layers.Concatenate()([x, x]),
    "Concatenate of few features": lambda x: layers.Concatenate()([x, layers.Dense(2)(x)]),
    "dense layers behind": lambda x: layers.Dropout(0.1)(layers.BatchNormalization()(SparseDense(3)(x))),
}


@pytest.mark.parametrize("kind", PASS)
def test_what_passes_works(kind: str) -> None:
    inputs = rows()
    found = model(inputs, PASS[kind](inputs))
    check(found)
    trained_once(found)


def test_a_layer_may_be_an_activation() -> None:
    inputs = rows()
    with pytest.raises(ValueError, match=r"\(Activation\) gets .*, and LeakyReLU fails in fit"):
        check(model(inputs, layers.Activation(layers.LeakyReLU())(inputs)))


def test_dense_inputs_are_not_looked_at() -> None:
    check(keras.Sequential([keras.Input((WIDTH,)), layers.Dropout(0.1), layers.BatchNormalization(), layers.Dense(1)]))


def test_embedding_takes_values_for_ids_unless_the_input_says_that_they_are() -> None:
    inputs = rows()
    embedded = layers.Embedding(3, 2)
    found = model(inputs, embedded(inputs))
    with pytest.raises(ValueError, match=r"\(Embedding\) .*values for ids, not their columns: .*SparseEmbeddingBag"):
        check(found)
    np.testing.assert_array_equal(embedded(SPARSE), tf.gather(embedded.embeddings.value, DENSE.astype(int)))
    ids = rows(dtype="int32")
    check(model(ids, layers.Embedding(3, 2)(ids)))


@pytest.mark.parametrize("kind", sorted(MERGES))
def test_a_sparse_and_a_dense_tensor_of_many_features_are_not_put_together(kind: str) -> None:
    inputs, dense = rows(MANY_FEATURES + 1), keras.Input((MANY_FEATURES + 1,))
    merged = getattr(layers, kind)()([inputs, dense])
    assert not merged.sparse
    message = rf"\({kind}\) gets sparse rows of {MANY_FEATURES + 1} features and dense ones, .* 65,540 bytes a row"
    with pytest.raises(ValueError, match=message):
        check(keras.Model([inputs, dense], SparseDense(1)(merged)))
    few, dense = rows(), keras.Input((WIDTH,))
    check(keras.Model([few, dense], layers.Dense(1)(getattr(layers, kind)()([few, dense]))))


@pytest.mark.parametrize("kind", ["Activation", "GaussianDropout", "Hashing", "Discretization", "Lambda"])
def test_a_tensor_that_is_said_to_be_dense_and_is_not_is_followed(kind: str) -> None:
    made = {
        "Activation": lambda: layers.Activation("tanh"),
        "Discretization": lambda: layers.Discretization([0.5]),
        "GaussianDropout": lambda: layers.GaussianDropout(0.1),
        "Hashing": lambda: layers.Hashing(3),
        "Lambda": lambda: layers.Lambda(lambda x: x),
    }
    inputs = rows()
    between = made[kind]()(inputs)
    assert not between.sparse
    found = model(inputs, layers.ReLU(name="second")(between))
    with pytest.raises(ValueError, match=r"^second \(ReLU\)"):
        check(found)
    with pytest.raises((TypeError, ValueError)):
        trained_once(found)


def test_every_layer_is_named_once_in_sequential_and_nested_models_and_where_it_is_shared() -> None:
    inner = keras.Sequential([keras.Input((WIDTH,), sparse=True), layers.Dropout(0.1, name="inner"), layers.Dense(2)])
    outer, other = rows(), rows()
    shared = layers.LayerNormalization(name="shared")
    both = layers.Concatenate()([inner(outer), inner(other), shared(outer), shared(other)])
    with pytest.raises(ValueError, match="fails in fit") as raised:
        check(keras.Model([outer, other], both))
    assert sorted(line.split(" ")[0] for line in str(raised.value).splitlines()) == ["inner", "shared"]


def test_a_model_that_says_dense_is_judged_by_what_it_is_called_on() -> None:
    inner = keras.Sequential([keras.Input((WIDTH,)), layers.Dropout(0.1, name="inner"), layers.Dense(2)])
    check(inner)
    inputs = rows()
    with pytest.raises(ValueError, match=r"^inner "):
        check(keras.Model(inputs, inner(inputs)))


def test_layers_and_models_of_your_own_are_passed_over() -> None:
    class Mine(layers.Dropout):  # type: ignore[misc]
        def call(self, inputs: Any, training: bool = False) -> Any:
            return SparseDropout(0.1)(inputs, training=training)

    class Renamed(layers.Dropout):  # type: ignore[misc]
        pass

    class Whole(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(1)

    inputs = rows()
    check(model(inputs, Mine(0.1)(inputs)))
    check(Whole())
    check(keras.Sequential([layers.Dropout(0.1), layers.Dense(1)]))  # without an Input it is not built
    with pytest.raises(ValueError, match=r"^named \(Dropout\)"):
        check(model(inputs, Renamed(0.1, name="named")(inputs)))


def test_resume_checks_before_the_first_step(tmp_path: Path) -> None:
    store = ss.convert(DENSE, tmp_path / "a.zarr", columns={"y": Y[:, 0]}, progress=False)
    ds = store.to_tf(4)
    found = keras.Sequential([rows(), layers.BatchNormalization(name="norm"), layers.Dense(1)])
    found.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"^norm \(BatchNormalization\) .*SparseScaling"):
        found.fit(ds, verbose=0, callbacks=[Resume(ds, tmp_path / "run")])
    assert check_function is check
