"""The bridge to Keras, on its back end: TensorFlow, and in processes of their own once more on JAX and on PyTorch."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import random
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_bridge import CASES, INPUTS, Decoded, check_bridge, check_inputs
from fakes import FakeReader, make_loader, random_matrix

# Keras wants a back end, and takes TensorFlow unless told
BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
pytest.importorskip(BACKEND, reason=f"needs {BACKEND}, a back end of Keras")
keras = pytest.importorskip("keras", reason="needs Keras")

import sparsestore as ss  # noqa: E402
from sparsestore.bridges.keras import AHEAD, Batches, dataset  # noqa: E402

# Keras on PyTorch asks its tensors for arrays in numpy's old way
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ROOT = Path(__file__).parents[1]
N_ROWS, N_FEATURES = 500, 83
X = random_matrix(N_ROWS, N_FEATURES, 0.1)
Y = (np.asarray(X @ np.random.default_rng(1).normal(size=N_FEATURES)) > 0).astype(np.int64)
COLUMNS = {"y": Y, "row": np.arange(N_ROWS), "sample_weight": np.random.default_rng(2).random(N_ROWS)}
LAYOUTS = ["dense"] if BACKEND == "torch" else ["sparse", "dense"]
BOTH = pytest.mark.parametrize("layout", LAYOUTS)
AGAIN = "SPARSESTORE_TESTS_OF_ONE_BACKEND"

if BACKEND == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)


def reader(**options: Any) -> FakeReader:
    return FakeReader(X, COLUMNS, **options)


def rows_of(**options: Any) -> Any:
    """A dataset whose y is the number of each row."""
    return dataset(make_loader(reader(), columns=("row",), shuffle=True, layout=LAYOUTS[0], **options))


def numbers(elements: Any) -> list[list[int]]:
    return [np.asarray(y).tolist() for _, y in elements]


def epochs(n: int, **options: Any) -> list[list[list[int]]]:
    """Row numbers of each batch of some epochs, as the loader has them."""
    loader = make_loader(reader(), columns=("row",), shuffle=True, **options)
    return [[batch.y.tolist() for batch in loader] for _ in range(n)]


def dense(x: Any) -> Any:
    if BACKEND == "tensorflow" and not isinstance(x, np.ndarray):
        import tensorflow as tf

        return tf.sparse.to_dense(x).numpy()
    return np.asarray(x.todense() if hasattr(x, "todense") else x)


def decode(element: Any) -> Decoded:
    x, y, weight = (*element, None, None)[:3]
    y = {name: np.asarray(a) for name, a in y.items()} if isinstance(y, dict) else y if y is None else np.asarray(y)
    return dense(x), y, None if weight is None else np.asarray(weight)


@pytest.mark.parametrize("case", CASES)
def test_elements_are_the_batches_of_the_loader(case: str) -> None:
    options = CASES[case]
    if options.get("layout", "sparse") not in LAYOUTS or (BACKEND == "jax" and options.get("batch_size") == 1):
        options = {**options, "layout": "dense"}  # the last takes JAX long
    check_bridge(dataset, decode, options)


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_beside_the_matrix_have_the_same_rows(case: str, tmp_path: Path) -> None:
    options = INPUTS[case]
    if options.get("layout", "sparse") not in LAYOUTS:
        options = {**options, "layout": "dense"}
    check_inputs(lambda store, **given: store.to_keras(32, **given), dense, tmp_path, **options)


def test_inputs_of_batches_that_are_asked_for_in_any_order(tmp_path: Path) -> None:
    def shuffled(store: Any, **given: Any) -> Any:
        ds = store.to_keras(32, **given)
        order = random.Random(0).sample(range(len(ds)), len(ds))
        return Epochs(ds, order)

    check_inputs(shuffled, dense, tmp_path, in_order=False, layout="dense")


class Epochs:
    """Epochs of batches in an order that `fit` could ask for."""

    def __init__(self, ds: Any, order: list[int]) -> None:
        self.ds, self.order = ds, order

    def __iter__(self) -> Any:
        yield from [self.ds[i] for i in self.order]
        self.ds.on_epoch_end()


def test_batches_may_be_asked_for_in_any_order(caplog: pytest.LogCaptureFixture) -> None:
    expected, ds = epochs(3, batch_size=10, window_rows=40), rows_of(batch_size=10, window_rows=40)
    order = list(range(len(ds)))
    assert len(ds) == 50
    with caplog.at_level(logging.WARNING, "sparsestore"):
        for epoch in range(3):
            found = {i: np.asarray(ds[np.int64(i)][1]).tolist() for i in order}
            assert [found[i] for i in range(50)] == expected[epoch]
            ds.on_epoch_end()
            random.Random(epoch).shuffle(order)
    (record,) = caplog.records  # once, and not of the first epoch
    assert "pass shuffle=False to fit" in record.message
    for index in (50, -1):
        with pytest.raises(IndexError, match=f"batch {index} is out of range: an epoch has 50"):
            ds[index]


def test_threads_get_each_batch_once_nearly_all_of_them_read_ahead() -> None:
    source = reader()
    ds = dataset(make_loader(source, columns=("row",), shuffle=True, layout=LAYOUTS[0], batch_size=10, window_rows=40))
    with ThreadPoolExecutor(4) as pool:
        for expected in epochs(2, batch_size=10, window_rows=40):
            assert numbers(pool.map(ds.__getitem__, range(50))) == expected
            ds.on_epoch_end()


@pytest.mark.parametrize("gap", [1, AHEAD - 1])
def test_each_window_is_found_once_where_batches_come_nearly_in_order(gap: int) -> None:
    source = reader()
    ds = dataset(make_loader(source, columns=("row",), layout=LAYOUTS[0], batch_size=10, window_rows=40))
    order = [i for start in range(0, 50, gap + 1) for i in reversed(range(start, min(start + gap + 1, 50)))]
    assert sorted(order) == list(range(50))
    ds[0]
    for i in order:
        if i:
            ds[i]
    assert len(source.found) == 13


def test_an_epoch_that_was_not_read_is_not_over() -> None:
    expected, ds = epochs(2), rows_of()
    ds[0], ds[1]
    ds.on_epoch_end()
    assert [numbers(ds), numbers(ds)] == expected


def test_fit_reads_the_epochs_of_the_loader_from_the_first_on() -> None:
    asked: list[list[int]] = []

    class Watched(Batches):
        def __getitem__(self, i: int) -> Any:
            element = super().__getitem__(i)
            asked.extend(numbers([element]))
            return element

    ds = Watched(make_loader(reader(), columns=("row",), shuffle=True, layout=LAYOUTS[0], batch_size=10))
    model = logistic(LAYOUTS[0])
    model.compile("sgd", "mse")
    model.fit(ds, epochs=2, shuffle=False, verbose=0)
    expected = epochs(2, batch_size=10)
    # Keras looks at a batch or two before it begins
    assert asked[-100:] == expected[0] + expected[1]
    assert all(batch in expected[0] for batch in asked[:-100])
    asked.clear()
    model.fit(ds, epochs=1, verbose=0)
    assert sorted(asked[-50:]) == sorted(epochs(3, batch_size=10)[2])


def logistic(layout: str, call: Any = None) -> Any:
    class Dense(keras.layers.Dense):  # type: ignore[misc]
        def call(self, x: Any, training: Any = None) -> Any:
            if call is not None:
                call()
            return super().call(x, training)

    inputs = keras.Input((N_FEATURES,), sparse=layout == "sparse")
    model = keras.Model(inputs, Dense(1, activation="sigmoid", kernel_initializer="zeros")(inputs))
    model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy", weighted_metrics=["accuracy"])
    return model


@BOTH
def test_training_gets_the_loss_of_a_model_in_numpy(layout: str) -> None:
    ds = dataset(make_loader(reader(), columns=("y",), shuffle=True, layout=layout))
    val = dataset(make_loader(reader(), columns=("y",), layout=layout))
    model = logistic(layout)
    history = model.fit(ds, validation_data=val, epochs=3, shuffle=False, verbose=0).history
    loader = make_loader(reader(), columns=("y",), shuffle=True, layout="dense", dtype="float64")
    kernel, bias = np.zeros(N_FEATURES), 0.0
    for epoch in range(3):
        losses = []
        for batch in loader:
            p = 1 / (1 + np.exp(-(batch.x @ kernel + bias)))
            losses += (-(batch.y * np.log(p) + (1 - batch.y) * np.log(1 - p))).tolist()
            kernel -= 0.5 * batch.x.T @ (p - batch.y) / len(p)
            bias -= 0.5 * float(np.mean(p - batch.y))
        assert history["loss"][epoch] == pytest.approx(np.mean(losses), rel=1e-3)
    expected = 1 / (1 + np.exp(-(X @ kernel + bias)))
    assert model.predict(val, verbose=0).ravel() == pytest.approx(expected, abs=1e-3)
    unlabelled = dataset(make_loader(reader(), layout=layout))
    assert model.predict(unlabelled, verbose=0).ravel() == pytest.approx(expected, abs=1e-3)
    weighted = dataset(make_loader(reader(), columns=("y", "sample_weight"), layout=layout))
    found = model.evaluate(weighted, verbose=0, return_dict=True)
    right = np.average((expected > 0.5) == Y, weights=COLUMNS["sample_weight"])
    assert found["accuracy"] == pytest.approx(right, abs=1e-3)


@pytest.mark.skipif(BACKEND == "torch", reason="no sparse inputs, nothing is compiled")
def test_the_model_is_compiled_a_few_times_only() -> None:
    calls: list[int] = []
    model = logistic("sparse", lambda: calls.append(1))
    ds = dataset(make_loader(reader(), columns=("y",), shuffle=True, batch_size=16))
    model.fit(ds, epochs=1, shuffle=False, verbose=0)
    first = len(calls)
    assert first <= 6  # to build it, for whole batches and for the short one
    model.fit(ds, epochs=3, shuffle=False, verbose=0)
    assert len(calls) <= first + 2


def test_a_state_goes_on_at_its_batch() -> None:
    stream = [batch for epoch in epochs(4) for batch in epoch]
    ds = rows_of()
    assert numbers(ds) == stream[:16]
    other = rows_of(seed=9)
    other.load_state_dict(ds.state_dict(steps=5))
    for at in (21, 37):
        assert numbers(other) == stream[at : at + 16]
    assert (other.state_dict()["epoch"], other.state_dict()["batch"]) == (3, 5)


def test_what_fails_is_read_again() -> None:
    failures = iter(["segments/7/X/data: flipped byte"])

    def fail(call: int) -> None:
        if call == 1 and (message := next(failures, "")):
            raise OSError(message)

    ds = dataset(make_loader(reader(before_find=fail), columns=("row",), layout=LAYOUTS[0]))
    with pytest.raises(OSError, match="flipped byte"):
        list(ds)
    assert numbers(ds) == [list(range(at, min(at + 32, N_ROWS))) for at in range(0, N_ROWS, 32)]


def test_what_can_not_be_is_refused() -> None:
    source = FakeReader(X, {**COLUMNS, "name": np.array(["é"] * N_ROWS, object)})
    for columns, message in {
        ("sample_weight",): "columns has 'sample_weight' and nothing to weigh: add 'y'",
        ("name",): "column 'name' holds texts, and Keras has no tensors of texts",
    }.items():
        with pytest.raises(ValueError, match=message):
            dataset(make_loader(source, columns=columns, layout="dense"))
    ds = dataset(make_loader(source, layout="dense"))
    with pytest.raises(ValueError, match="use_multiprocessing is True, expected False"):
        ds.use_multiprocessing = True
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="Keras has no sparse inputs on torch: take layout='dense', or to_torch"):
            dataset(make_loader(source))


def test_a_forgotten_dataset_leaves_no_file_open(tmp_path: Path) -> None:
    """The fixtures of conftest look for files and threads after the test."""
    store = ss.convert(X, tmp_path / "x.zarr", columns={"y": Y})
    ds = store.to_keras(8, layout=LAYOUTS[0], window_rows=64)
    x, y = ds[0]
    assert np.array_equal(dense(x), X[:8].toarray())
    assert np.array_equal(y, Y[:8])
    del store, ds, x, y
    gc.collect()


def again(backend: str, folder: Path, *arguments: str) -> None:
    """Run the tests of this file on another back end, in a process of their own."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs {backend}, a back end of Keras")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "pytest")]
    done = subprocess.run(
        [*command, __file__, *arguments],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, AGAIN: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.skipif(AGAIN in os.environ, reason="is such a process")
@pytest.mark.parametrize(
    ("backend", "some"), [("jax", "training and sparse or compiled"), ("torch", "training or refused")], ids=str
)
@pytest.mark.slow
def test_training_on_another_backend(backend: str, some: str, tmp_path: Path) -> None:
    again(backend, tmp_path, "-k", some)


@pytest.mark.slow
@pytest.mark.skipif(AGAIN in os.environ, reason="is such a process")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_all_of_this_on_another_backend(backend: str, tmp_path: Path) -> None:
    again(backend, tmp_path)


@pytest.mark.skipif(AGAIN in os.environ, reason="is the same everywhere")
def test_a_missing_framework_is_named_with_its_extra() -> None:
    script = """
        import sys
        sys.modules["keras"] = None
        import numpy as np, sparsestore as ss, tempfile
        store = ss.convert(np.eye(3), tempfile.mkdtemp() + "/eye.zarr")
        try:
            store.to_keras()
        except ImportError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == 'to_keras needs Keras: pip install "sparsestore[tensorflow]"'
