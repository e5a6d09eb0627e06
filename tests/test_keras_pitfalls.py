"""What goes wrong with sparse rows and Keras alone goes right from a store: the table of docs/keras.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import sparsestore as ss  # noqa: E402
from sparsestore.keras import LazyAdam, SparseDense  # noqa: E402

# Keras 3.15 asks TensorFlow 2.21 for arrays in the way of numpy 1
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning")

N, WIDTH, BATCH = 64, 50, 16
X = sp.csr_array((np.random.default_rng(0).random((N, WIDTH)) < 0.1).astype("float32"))
Y = (np.arange(N) % 2).astype("float32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("pitfalls") / "a.zarr"
    return ss.convert(X, path, columns={"y": Y, "is": Y > 0}, progress=False)


def model(layer: Any = keras.layers.Dense, *, sparse: bool = True, optimizer: Any = "sgd", **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    found = keras.Sequential([keras.Input((WIDTH,), sparse=sparse), layer(1, "sigmoid")])
    found.compile(optimizer, "binary_crossentropy", **options)
    return found


class ScipyBatches(keras.utils.PyDataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return N // BATCH

    def __getitem__(self, i: int) -> Any:
        return X[i * BATCH : (i + 1) * BATCH], Y[i * BATCH : (i + 1) * BATCH]


def test_a_pydataset_of_scipy_fails_and_that_of_a_store_trains(store: Any) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="did not match the expected structure"):
        model().fit(ScipyBatches(), verbose=0)
    trained, same = model(), model()
    trained.fit(store.to_keras(BATCH), shuffle=False, verbose=0)
    same.fit(store.to_tf(BATCH), verbose=0)
    np.testing.assert_allclose(trained.get_weights()[0], same.get_weights()[0], rtol=1e-6)


def test_a_batch_of_scipy_is_refused_and_that_of_a_store_is_trained_on(store: Any) -> None:
    found = model()
    for call in (lambda: found.train_on_batch(X[:8], Y[:8]), lambda: found.predict_on_batch(X[:8])):
        with pytest.raises(TypeError, match="TraceType"):
            call()
    x, y = next(iter(store.to_tf(BATCH)))
    assert np.isfinite(found.train_on_batch(x, y))
    np.testing.assert_allclose(found.predict_on_batch(x), found.predict(X[:BATCH], verbose=0), rtol=1e-5)


def test_class_weights_fail_with_truth_values_of_a_dataset_and_work_with_numbers(store: Any) -> None:
    weights = {0: 1.0, 1: 3.0}
    ds = store.to_tf(BATCH, columns="is")
    with pytest.raises(TypeError, match="DataType bool not in list of allowed values"):
        model().fit(ds, class_weight=weights, verbose=0)
    mapped, other, expected = model(), model(), model()
    mapped.fit(ds.map(lambda x, y: (x, tf.cast(y, "uint8"))), class_weight=weights, verbose=0)
    other.fit(store.to_keras(BATCH, columns="is"), class_weight=weights, shuffle=False, verbose=0)
    expected.fit(store.to_tf(BATCH).map(lambda x, y: (x, y, 1 + 2 * y)), verbose=0)
    for found in (mapped, other):
        np.testing.assert_allclose(found.get_weights()[0], expected.get_weights()[0], rtol=1e-5)


def test_validation_split_is_refused_and_a_view_validates(store: Any) -> None:
    with pytest.raises(ValueError, match="validation_split"):
        model().fit(store.to_tf(BATCH), validation_split=0.2, verbose=0)
    train, val = store.split(0.75, seed=0)
    history = model().fit(train.to_tf(BATCH, shuffle=True, seed=0), validation_data=val.to_tf(BATCH), verbose=0)
    assert np.isfinite(history.history["val_loss"][0])
    assert len(train) + len(val) == N


def test_columns_in_any_order_fail_in_a_dense_input_and_a_store_sorts_them(tmp_path: Path) -> None:
    x = sp.csr_array((np.ones(3, "float32"), np.array([3, 1, 3]), np.array([0, 3])), shape=(1, WIDTH))
    raw = tf.SparseTensor([[0, 3], [0, 1], [0, 3]], x.data, x.shape)
    found = model(sparse=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"SparseToDense|out of order|repeated"):
        found.predict(tf.data.Dataset.from_tensors(raw), verbose=0)
    store = ss.convert(x, tmp_path / "a.zarr", progress=False)
    expected = found.predict(x.toarray(), verbose=0)
    for layout in ("sparse", "dense"):
        np.testing.assert_allclose(found.predict(store.to_tf(1, layout=layout), verbose=0), expected, rtol=1e-6)


def test_compiled_by_xla_sparse_rows_fail_and_dense_ones_train(store: Any) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"SparseFillEmptyRows|SparseTensorDenseMatMul"):
        model(SparseDense, jit_compile=True).fit(store.to_tf(BATCH), verbose=0)
    assert not model(SparseDense).jit_compile  # "auto" is not on a processor
    model(sparse=False, jit_compile=True).fit(store.to_tf(BATCH, layout="dense"), verbose=0)


@pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:.shuffle=True. was passed")
def test_a_generator_runs_out_and_a_store_says_how_many_batches_it_has(store: Any) -> None:
    spec = (tf.TensorSpec((None, WIDTH)), tf.TensorSpec((None,)))
    made = tf.data.Dataset.from_generator(lambda: ((x.toarray(), y) for x, y in ScipyBatches()), output_signature=spec)
    assert int(made.cardinality()) == -2
    found = model(sparse=False)
    with pytest.warns(UserWarning, match="ran out of data"):
        found.fit(made, verbose=0)
    assert int(store.to_tf(BATCH).cardinality()) == N // BATCH
    model().fit(store.to_tf(BATCH), epochs=2, verbose=0)  # a warning of Keras would be an error


def test_a_position_of_a_generator_can_not_be_saved_and_that_of_a_store_is_json(store: Any, tmp_path: Path) -> None:
    made = tf.data.Dataset.range(4).map(lambda i: tf.numpy_function(lambda i: i, [i], tf.int64))
    with pytest.raises(tf.errors.FailedPreconditionError, match="stateful"):
        tf.train.Checkpoint(iterator=iter(made)).write(tmp_path / "position")
    ds = store.to_tf(BATCH, shuffle=True, seed=0)
    whole = [y.numpy() for _, y in ds]
    again = store.to_tf(BATCH, shuffle=True, seed=0)
    again.loader.load_state_dict({**again.loader.state_dict(), "epoch": 0, "batch": 2})
    # a dataset always has the batches of a whole epoch: behind these come the first ones of the next
    for (_, found), expected in zip(again.take(2), whole[2:], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_batches_without_any_entry_train(tmp_path: Path) -> None:
    store = ss.convert(sp.csr_array((8, WIDTH)), tmp_path / "a.zarr", columns={"y": np.zeros(8)}, progress=False)
    history = model(SparseDense, optimizer=LazyAdam(0.1)).fit(store.to_tf(4), verbose=0)
    assert history.history["loss"][0] < np.log(2)


@pytest.mark.parametrize(("optimizer", "moved"), [("adam", True), (LazyAdam, False)], ids=["Adam", "LazyAdam"])
def test_adam_moves_features_that_are_in_no_batch_and_the_lazy_one_does_not(optimizer: Any, moved: bool) -> None:
    first, second = (tf.SparseTensor([[0, i]], [1.0], (1, WIDTH)) for i in (0, 1))
    found = model(SparseDense, optimizer=optimizer if isinstance(optimizer, str) else optimizer(0.001))
    found.train_on_batch(first, np.ones((1, 1)))
    before = found.get_weights()[0].copy()
    found.train_on_batch(second, np.ones((1, 1)))
    assert bool(before[0] != found.get_weights()[0][0]) is moved


def test_normalization_can_not_adapt_to_sparse_rows() -> None:
    with pytest.raises(ValueError, match="unsupported type"):
        keras.layers.Normalization().adapt(tf.sparse.from_dense(X.toarray()))


def test_an_exported_model_takes_dense_rows_alone(store: Any, tmp_path: Path) -> None:
    found = model()
    found.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    x = next(iter(store.to_tf(BATCH)))[0]
    with pytest.raises(TypeError, match="SparseTensor"):
        served.serve(x)
    expected = found.predict(X[:BATCH], verbose=0)
    np.testing.assert_allclose(served.serve(tf.sparse.to_dense(x)), expected, rtol=1e-5)


MIRRORED = """
import sys, keras, numpy as np, tensorflow as tf, sparsestore as ss
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
store = ss.convert(np.eye(16), "eye.zarr", columns={"y": np.arange(16) % 2}, progress=False)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    for layout in ("dense", "sparse"):
        model = keras.Sequential([keras.Input((16,), sparse=layout == "sparse"), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        try:
            model.fit(store.to_tf(8, layout=layout), verbose=0)
            print(layout, "trained")
        except AttributeError as error:
            print(layout, error)
"""


@pytest.mark.slow
def test_several_replicas_train_from_dense_batches_alone(tmp_path: Path) -> None:
    """In a process of its own, as devices can be set up only once."""
    command = [sys.executable, "-c", MIRRORED]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == ["dense trained", "sparse 'SparseTensor' object has no attribute 'device'"]
