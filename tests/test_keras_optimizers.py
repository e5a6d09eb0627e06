from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from sparsestore.keras import LazyAdagrad, LazyAdam, LazyFTRL, LazyMomentum, SparseDense  # noqa: E402

# Keras 3.15 asks TensorFlow 2.21 for arrays in the way of numpy 1
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning")

ROWS, UNITS, STEPS = 12, 3, 5
FTRL = {
    "learning_rate_power": -0.4,
    "initial_accumulator_value": 0.2,
    "l1_regularization_strength": 0.01,
    "l2_regularization_strength": 0.02,
    "l2_shrinkage_regularization_strength": 0.03,
    "beta": 0.04,
}
PAIRS: dict[str, tuple[Any, Any]] = {
    "adam": (LazyAdam, keras.optimizers.Adam),
    "amsgrad": (lambda **o: LazyAdam(amsgrad=True, **o), lambda **o: keras.optimizers.Adam(amsgrad=True, **o)),
    "adagrad": (LazyAdagrad, keras.optimizers.Adagrad),
    "momentum": (LazyMomentum, lambda **o: keras.optimizers.SGD(momentum=0.9, **o)),
    "nesterov": (
        lambda **o: LazyMomentum(nesterov=True, **o),
        lambda **o: keras.optimizers.SGD(momentum=0.9, nesterov=True, **o),
    ),
    "ftrl": (LazyFTRL, keras.optimizers.Ftrl),
    "ftrl with all its terms": (lambda **o: LazyFTRL(**FTRL, **o), lambda **o: keras.optimizers.Ftrl(**FTRL, **o)),
}


def gradients(rows: Any, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """One for each step; zero but in the given rows."""
    rng = np.random.default_rng(seed)
    found = np.zeros((STEPS, ROWS, UNITS), np.float32)
    found[:, rows] = rng.normal(size=found[:, rows].shape)
    return list(found)


def slices(gradient: np.ndarray[Any, Any], rows: Any, seed: int = 0) -> Any:
    """The same as IndexedSlices: out of order, and the first row's in two parts."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows)
    indices = np.concatenate([order, order[:1]])
    values = np.concatenate([gradient[order], gradient[order[:1]] - 2])
    values[0] = 2
    return tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(indices), (ROWS, UNITS))


def trained(optimizer: Any, given: list[Any]) -> np.ndarray[Any, Any]:
    table = keras.Variable(np.random.default_rng(7).normal(size=(ROWS, UNITS)).astype(np.float32))
    optimizer.build([table])
    for gradient in given:
        optimizer.apply([gradient], [table])
    return table.numpy()


@pytest.mark.parametrize("kind", PAIRS)
def test_where_all_rows_are_touched_it_is_its_twin(kind: str) -> None:
    lazy, twin = PAIRS[kind]
    every = np.arange(ROWS)
    given = gradients(every)
    found = trained(lazy(learning_rate=0.1), [slices(each, every, seed) for seed, each in enumerate(given)])
    expected = trained(twin(learning_rate=0.1), [tf.constant(each) for each in given])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_dense_gradient_goes_the_way_of_its_twin(kind: str) -> None:
    lazy, twin = PAIRS[kind]
    given = [tf.constant(each) for each in gradients([1, 2])]
    np.testing.assert_array_equal(trained(lazy(learning_rate=0.1), given), trained(twin(learning_rate=0.1), given))


@pytest.mark.parametrize("kind", PAIRS)
def test_rows_that_no_batch_has_stay_and_the_others_are_those_of_a_table_of_these_rows(kind: str) -> None:
    lazy, twin = PAIRS[kind]
    rows = np.array([2, 3, 11])
    given = gradients(rows)
    found = trained(lazy(learning_rate=0.1), [slices(each, rows, seed) for seed, each in enumerate(given)])
    expected = trained(twin(learning_rate=0.1), [tf.constant(each) for each in given])
    before = trained(lazy(learning_rate=0.1), [])
    others = np.delete(np.arange(ROWS), rows)
    np.testing.assert_array_equal(found[others], before[others])
    np.testing.assert_allclose(found[rows], expected[rows], rtol=1e-4, atol=1e-5)


def test_adagrad_is_adagrad_whatever_the_rows() -> None:
    rng = np.random.default_rng(3)
    chosen = [rng.choice(ROWS, 4, replace=False) for _ in range(STEPS)]
    given = [each * 0 for each in gradients([0])]
    for gradient, rows in zip(given, chosen, strict=True):
        gradient[rows] = rng.normal(size=(4, UNITS))
    found = trained(LazyAdagrad(0.1), [slices(each, rows) for each, rows in zip(given, chosen, strict=True)])
    expected = trained(keras.optimizers.Adagrad(0.1), [tf.constant(each) for each in given])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_moments_of_a_row_wait_while_it_is_in_no_batch() -> None:
    """What tells LazyAdam from Adam: there they fade, and the row goes on moving."""
    row = np.array([4])
    given = [slices(gradients(row)[0], row), slices(gradients([5])[1], np.array([5]))]
    once, later = trained(LazyAdam(0.1), given[:1]), trained(LazyAdam(0.1), given)
    np.testing.assert_array_equal(once[4], later[4])
    adam = [tf.constant(gradients(row)[0]), tf.constant(gradients([5])[1])]
    assert (trained(keras.optimizers.Adam(0.1), adam[:1])[4] != trained(keras.optimizers.Adam(0.1), adam)[4]).all()


def model(optimizer: Any, policy: str = "float32") -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((ROWS,), sparse=True)
    made = keras.Model(inputs, keras.layers.Dense(1)(SparseDense(UNITS, dtype=policy)(inputs)))
    made.compile(optimizer, "mse")
    return made


def data(n: int = 4) -> Any:
    rng = np.random.default_rng(0)
    x = tf.sparse.from_dense((rng.random((n, ROWS)) < 0.3).astype(np.float32))
    return tf.data.Dataset.from_tensors((x, rng.normal(size=(n, 1)))).repeat(6)


@pytest.mark.parametrize(
    "optimizer",
    [
        LazyAdam,
        LazyFTRL,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (LazyAdagrad, LazyMomentum)),
    ],
)
def test_a_model_goes_on_from_a_file_as_if_never_stopped(optimizer: Any, tmp_path: Path) -> None:
    whole = model(optimizer(learning_rate=0.05))
    whole.fit(data(), epochs=2, verbose=0, shuffle=False)
    half = model(optimizer(learning_rate=0.05))
    half.fit(data(), verbose=0, shuffle=False)
    half.save(tmp_path / "half.keras")
    rest = keras.models.load_model(tmp_path / "half.keras")
    assert type(rest.optimizer) is optimizer
    assert rest.optimizer.get_config() == half.optimizer.get_config()
    rest.fit(data(), verbose=0, shuffle=False)
    for one, other in zip(whole.get_weights(), rest.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_schedules_clipping_and_a_scaled_loss_work_on_sparse_gradients() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9)
    for options in ({"learning_rate": schedule}, {"clipnorm": 0.1}, {"clipvalue": 0.1}, {"global_clipnorm": 0.1}):
        made = model(LazyAdam(**options))
        losses = made.fit(data(), epochs=2, verbose=0, shuffle=False).history["loss"]
        assert losses[1] < losses[0], options
    made = model(keras.optimizers.LossScaleOptimizer(LazyAdam(0.05)), "mixed_float16")
    losses = made.fit(data(), epochs=2, verbose=0, shuffle=False).history["loss"]
    assert losses[1] < losses[0]
