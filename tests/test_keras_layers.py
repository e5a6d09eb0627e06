from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import sparsestore as ss  # noqa: E402
from sparsestore.keras import SparseDense, SparseDropout, SparseEmbeddingBag, SparseScaling, ToDense  # noqa: E402
from sparsestore.keras import layers as layers_module  # noqa: E402

# Keras 3.15 asks TensorFlow 2.21 for arrays in the way of numpy 1
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning")

N, WIDTH = 40, 30
POLICIES = {"float32": 1e-6, "float64": 1e-12, "mixed_float16": 4e-3, "mixed_bfloat16": 4e-2, "float16": 4e-3}


def matrix(n: int = N, width: int = WIDTH, density: float = 0.1, seed: int = 0) -> Any:
    found = sp.random(n, width, density, format="csr", random_state=seed, dtype=np.float32)
    found.data = found.data * 4 - 2
    return found


def sparse(x: Any) -> Any:
    found = sp.coo_array(x)
    return tf.SparseTensor(np.stack(found.coords, axis=1).astype(np.int64), found.data, found.shape)


def dense(x: Any) -> np.ndarray[Any, Any]:
    return tf.sparse.to_dense(x).numpy()


def twins(units: int = 5, **options: Any) -> tuple[Any, Any]:
    """A SparseDense and a Dense with the same weights."""
    found, twin = SparseDense(units, **options), keras.layers.Dense(units, **options)
    keras.utils.set_random_seed(1)
    for layer in (found, twin):
        layer.build((None, WIDTH))
    found.bias is None or found.bias.assign(np.linspace(-1, 1, units))
    twin.set_weights(found.get_weights())
    return found, twin


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "options", [{}, {"activation": "relu"}, {"use_bias": False}], ids=["linear", "relu", "no bias"]
)
def test_sparse_dense_gives_what_dense_gives(policy: str, options: dict[str, Any]) -> None:
    layer, twin = twins(dtype=policy, **options)
    x = sparse(matrix())
    found, expected = layer(x), twin(tf.sparse.to_dense(x))
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(
        tf.cast(found, "float64"), tf.cast(expected, "float64"), atol=POLICIES[policy], rtol=POLICIES[policy]
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_sparse_dense_takes_dense_rows_too(policy: str) -> None:
    layer, twin = twins(dtype=policy)
    x = matrix().toarray()
    found, expected = layer(x), twin(x)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=POLICIES[policy])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "float16", "float64"])
def test_sparse_dense_takes_values_of_every_dtype(dtype: str) -> None:
    layer, twin = twins()
    values = sp.coo_array(abs(matrix()).rint())
    rows = tf.SparseTensor(np.stack(values.coords, axis=1).astype(np.int64), values.data.astype(dtype), values.shape)
    np.testing.assert_allclose(layer(rows), twin(values.toarray()), atol=1e-5)


@pytest.mark.parametrize(
    "x", [np.zeros((3, WIDTH)), np.zeros((0, WIDTH)), np.eye(4, WIDTH)], ids=["zeros", "none", "few"]
)
def test_sparse_dense_of_rows_without_entries_is_the_bias(x: Any) -> None:
    layer, twin = twins()
    np.testing.assert_allclose(layer(sparse(x.astype(np.float32))), twin(x.astype(np.float32)), atol=1e-6)


def test_the_gradient_has_each_feature_of_the_batch_once_and_is_that_of_dense() -> None:
    layer, twin = twins()
    x = sparse(matrix(density=0.3))
    gradients = []
    for of, rows in ((layer, x), (twin, tf.sparse.to_dense(x))):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(of(rows)))
        gradients.append(tape.gradient(loss, [of.kernel.value, of.bias.value]))
    kernel, expected = gradients[0][0], gradients[1][0]
    assert isinstance(kernel, tf.IndexedSlices)
    assert sorted(kernel.indices.numpy()) == sorted(set(x.indices.numpy()[:, 1]))
    np.testing.assert_allclose(tf.convert_to_tensor(kernel), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[0][1], gradients[1][1], rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rmsprop", "adam", "ftrl"])
def test_any_optimizer_of_keras_makes_of_it_what_it_makes_of_dense(optimizer: str) -> None:
    """Those that square a gradient need each feature of the batch once."""
    x, y = sparse(matrix(density=0.3)), np.arange(N)[:, None] % 3
    found = []
    for layer, rows in zip(twins(2), (x, tf.sparse.to_dense(x)), strict=True):
        inputs = keras.Input((WIDTH,), sparse=isinstance(rows, tf.SparseTensor))
        model = keras.Model(inputs, layer(inputs))
        model.compile(keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": 0.1}}), "mse")
        model.fit(tf.data.Dataset.from_tensors((rows, y)).repeat(4), verbose=0, shuffle=False)
        found.append(layer.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4)


def test_a_regulariser_and_a_constraint_are_those_of_dense() -> None:
    options = {"kernel_regularizer": keras.regularizers.L2(0.1), "kernel_constraint": keras.constraints.MaxNorm(0.5)}
    x, y = sparse(matrix(density=0.3)), np.arange(N)[:, None] % 3
    found = []
    for layer, rows in zip(twins(2, **options), (x, tf.sparse.to_dense(x)), strict=True):
        model = keras.Sequential([keras.Input((WIDTH,), sparse=isinstance(rows, tf.SparseTensor)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(tf.data.Dataset.from_tensors((rows, y)).repeat(4), verbose=0, shuffle=False)
        found.append(layer.get_weights()[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_lora_works_as_with_dense() -> None:
    layer, twin = twins()
    x = sparse(matrix())
    for of in (layer, twin):
        of.enable_lora(2)
        of.lora_kernel_b.assign(np.ones(of.lora_kernel_b.shape))
        of.lora_kernel_a.assign(np.ones(of.lora_kernel_a.shape))
    np.testing.assert_allclose(layer(x), twin(tf.sparse.to_dense(x)), atol=1e-4)


def test_a_feature_beyond_the_kernel_is_an_error_on_a_processor() -> None:
    layer, _ = twins()
    beyond = tf.SparseTensor([[0, WIDTH]], [1.0], (1, WIDTH + 1))
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=r"is not in|expected axis -1"):
        layer(beyond)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["sum", "mean", "sqrtn"]))
@settings(max_examples=20, deadline=None)
def test_embedding_bags_are_those_of_tensorflow(seed: int, combiner: str) -> None:
    x = matrix(density=0.1, seed=seed)
    x.data = np.abs(x.data) + 0.1  # TensorFlow leaves out entries without a positive weight
    layer = SparseEmbeddingBag(4, combiner)
    found = layer(sparse(x))
    entries = sparse(x)
    ids = entries.with_values(entries.indices[:, 1])
    expected = tf.nn.safe_embedding_lookup_sparse(layer.embeddings.value, ids, entries, combiner=combiner)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_embedding_bags_count_weights_of_any_sign(combiner: str) -> None:
    weights = np.array([[2.0, -0.5, 0, 3], [0, -1, 4, 0]], np.float32)
    layer, x = SparseEmbeddingBag(3, combiner), sparse(weights)
    found = layer(x)
    divisor = {"sum": 1, "mean": weights.sum(axis=1), "sqrtn": np.sqrt(np.square(weights).sum(axis=1))}[combiner]
    np.testing.assert_allclose(found, (weights @ layer.embeddings.numpy()) / np.reshape(divisor, (-1, 1)), rtol=1e-5)
    ids = x.with_values(x.indices[:, 1])
    theirs = tf.nn.safe_embedding_lookup_sparse(layer.embeddings.value, ids, x, combiner=combiner)
    assert np.allclose(found, theirs) is (combiner == "sum")  # TensorFlow leaves out -0.5 and -1 for the others


def test_dropout_drops_its_share_keeps_the_mean_and_stores_no_zeros() -> None:
    x = sparse(np.ones((200, 100), np.float32))
    found = SparseDropout(0.25, seed=3)(x, training=True)
    assert isinstance(found, tf.SparseTensor)
    assert found.shape == x.shape
    kept = len(found.values) / len(x.values)
    assert abs(kept - 0.75) < 5 * np.sqrt(0.25 * 0.75 / 20_000)
    np.testing.assert_allclose(found.values, 1 / 0.75)
    assert SparseDropout(0.25)(x) is x
    assert SparseDropout(0.0)(x, training=True) is x


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool"])
@pytest.mark.parametrize("training", [False, True])
def test_dropout_makes_floats_of_whole_numbers(dtype: str, training: bool) -> None:
    x = sparse(np.ones((20, 10)))
    x = x.with_values(tf.cast(x.values, dtype))
    layer = SparseDropout(0.2, seed=3)
    found = layer(x, training=training)
    assert found.dtype == layer(keras.Input((10,), sparse=True, dtype=dtype)).dtype == "float32"
    np.testing.assert_allclose(found.values, 1.25 if training else 1)


def test_dropout_is_another_each_time_and_the_same_with_a_seed() -> None:
    x = sparse(np.ones((20, 10), np.float32))
    one, other = SparseDropout(0.5, seed=3), SparseDropout(0.5, seed=3)
    first, second = dense(one(x, training=True)), dense(one(x, training=True))
    assert (first != second).any()
    np.testing.assert_array_equal(first, dense(other(x, training=True)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64", "bool"])
def test_to_dense_has_the_cells_of_the_rows(dtype: str) -> None:
    x = sparse(abs(matrix(density=0.3)).rint())
    found = ToDense(dtype="float32" if dtype != "float16" else "float16")(x.with_values(tf.cast(x.values, dtype)))
    np.testing.assert_array_equal(tf.cast(found, "float32"), dense(x).astype(dtype).astype(np.float32))


def test_layers_that_take_no_sparse_rows_train_behind_to_dense() -> None:
    x, y = sparse(matrix()), np.arange(N)[:, None] % 2
    inputs = keras.Input((WIDTH,), sparse=True)
    normal = keras.layers.BatchNormalization()(keras.layers.Dropout(0.1)(ToDense()(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(1)(normal))
    model.compile("sgd", "mse")
    assert len(model.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0, shuffle=False).history["loss"]) == 1


@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="no GPU that TensorFlow can use")
def test_to_dense_is_made_on_the_gpu() -> None:
    with tf.device("GPU:0"):
        assert "GPU" in ToDense()(sparse(matrix())).device


ORACLES = {
    "max_abs": MaxAbsScaler(),
    "standard": StandardScaler(with_mean=False),
    "tf-idf": TfidfTransformer(),
}


@pytest.mark.parametrize("scaling", ORACLES)
def test_scaling_is_that_of_scikit_learn_whatever_the_pieces(
    scaling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers_module, "ADAPT_ROWS", 7)
    cells = matrix(density=0.3).toarray().astype(np.float64)
    cells[:, 3], cells[:, 4] = 0, 1  # nothing to divide by, and no variance
    x = sp.csr_matrix(cells)
    store = ss.convert(x, tmp_path / "a.zarr", progress=False)
    layer = SparseScaling(scaling, dtype="float64")
    layer.adapt(store)
    expected = ORACLES[scaling].fit_transform(x)
    np.testing.assert_allclose(dense(layer(sparse(x))), expected.toarray(), rtol=1e-6)


@given(
    st.integers(1, 300),
    st.lists(
        st.tuples(
            st.floats(-1e6, 1e6).filter(lambda value: not 0 < abs(value) < 1e-6),
            st.sampled_from([0, 1e-3, 1.0, 1e6]),  # spread, as a share of the value
            st.sampled_from([0.3, 1.0]),  # rows that have the feature
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**32 - 1),
)
@example(1000, [(0.1, 0, 1), (0, 0, 1), (0.5, 0.5, 1), (1e5 + 0.1, 0, 1)], 0)
@settings(max_examples=40, deadline=None)
def test_features_without_variance_are_those_of_scikit_learn(
    tmp_path_factory: pytest.TempPathFactory, n: int, features: list[tuple[float, float, float]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    value, spread, share = np.array(features).T
    cells = value * (1 + spread * rng.normal(size=(n, len(features)))) * (rng.random((n, len(features))) < share)
    x = sp.csr_array(cells)
    store = ss.convert(x, tmp_path_factory.mktemp("store") / "a.zarr", progress=False)
    expected = 1 / StandardScaler(with_mean=False).fit(x).scale_
    for data in (x, store):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers_module, "ADAPT_ROWS", 64)
            layer = SparseScaling("standard")
            layer.adapt(data)
        np.testing.assert_allclose(layer.scale, expected, rtol=1e-5)


@pytest.mark.parametrize("scaling", ORACLES)
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia", "dense"])
def test_a_matrix_of_any_format_is_adapted_to(scaling: str, kind: str) -> None:
    x = matrix(density=0.3)
    twice = sp.csr_matrix((np.repeat(x.data / 2, 2), np.repeat(x.indices, 2), 2 * x.indptr), x.shape)
    data = x.toarray() if kind == "dense" else (twice if kind == "csr" else x).asformat(kind)
    layer, expected = SparseScaling(scaling), SparseScaling(scaling)
    layer.adapt(data)
    expected.adapt(x)
    np.testing.assert_allclose(layer.scale, expected.scale, rtol=1e-6)
    assert twice.nnz == 2 * x.nnz  # left as it was


def test_a_part_of_a_store_is_adapted_to_alone(tmp_path: Path) -> None:
    store = ss.convert(np.diag([1.0, 2.0, 4.0]), tmp_path / "a.zarr", progress=False)
    layer = SparseScaling("max_abs")
    layer.adapt(store.select(rows=slice(0, 2)))
    assert layer.scale.numpy().tolist() == [1, 0.5, 1]


def test_a_model_of_all_layers_is_saved_and_trains_on(tmp_path: Path) -> None:
    x, y = sparse(matrix()), np.arange(N)[:, None] % 2
    scaling = SparseScaling("standard")
    scaling.adapt(matrix())
    inputs = keras.Input((WIDTH,), sparse=True)
    scaled = SparseDropout(0.2, seed=1)(scaling(inputs))
    both = keras.layers.Concatenate()([SparseDense(3, "relu")(scaled), SparseEmbeddingBag(2, "mean")(scaled)])
    model = keras.Model(inputs, keras.layers.Dense(1)(both))
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensors((x, y)).repeat(3)
    model.fit(data, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), model.predict(data, verbose=0))
    loaded.fit(data, verbose=0, shuffle=False)
    assert [each.get_config() for each in loaded.layers] == [each.get_config() for each in model.layers]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseEmbeddingBag(0), r"output_dim is 0, expected a whole number of at least 1"),
        (lambda: SparseEmbeddingBag(3, "max"), r"combiner is 'max', expected one of 'sum', 'mean', 'sqrtn'"),
        (lambda: SparseDropout(1), r"rate is 1, expected from 0 to below 1"),
        (lambda: SparseScaling("robust"), r"scaling is 'robust', expected one of 'max_abs', 'standard', 'tf-idf'"),
        (lambda: SparseScaling()(keras.Input((3,), sparse=True)), r"has no scale yet: call its adapt\(store\) first"),
        (
            lambda: SparseScaling()(keras.Input((3,))),
            r"got dense inputs of shape \(None, 3\).*keras\.layers\.Rescaling",
        ),
        (lambda: SparseDropout(0.1)(keras.Input((3,))), r"use keras\.layers\.Dropout for dense ones"),
        (lambda: SparseEmbeddingBag(2)(keras.Input((3,))), r"expected sparse rows"),
        (lambda: SparseScaling().adapt(sp.csr_array((0, 3))), r"it has no rows"),
        (lambda: SparseScaling().adapt([[1, 2]]), r"data is a list of shape None, expected a store, a view, a scipy"),
        (lambda: SparseScaling().adapt(np.zeros(3)), r"data is a ndarray of shape \(3,\), expected .* 2-D numpy array"),
    ],
)
def test_a_mistake_is_told_when_the_model_is_built(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
