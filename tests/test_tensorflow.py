from __future__ import annotations

import gc
import re
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from check_bridge import CASES, INPUTS, Decoded, check_bridge, check_inputs
from fakes import FakeReader, make_loader, random_matrix, slow

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import sparsestore  # noqa: E402
from sparsestore.bridges.tensorflow import dataset  # noqa: E402
from sparsestore.buffers import Buffers  # noqa: E402

N_ROWS, N_FEATURES = 500, 83
X = random_matrix(N_ROWS, N_FEATURES, 0.1)
WIDE = random_matrix(N_ROWS, 3, 1.0, seed=5).toarray()
Y = (np.asarray(X @ np.random.default_rng(1).normal(size=N_FEATURES)) > 0).astype(np.int64)
COLUMNS = {"y": Y, "sample_weight": np.random.default_rng(2).random(N_ROWS), "wide": WIDE, "row": np.arange(N_ROWS)}
LAYOUTS = pytest.mark.parametrize("layout", ["sparse", "dense"])


def reader(**options: Any) -> FakeReader:
    return FakeReader(X, COLUMNS, **options)


def logistic(layout: str, n_features: int = N_FEATURES, units: int = 1, metrics: Any = ("accuracy",)) -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((n_features,), sparse=layout == "sparse")
    model = keras.Model(inputs, keras.layers.Dense(units, activation="sigmoid")(inputs))
    model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy", metrics=list(metrics))
    return model


def decode(element: Any) -> Decoded:
    x, y, weight = element if isinstance(element, tuple) and len(element) == 3 else (*as_pair(element), None)
    x = tf.sparse.to_dense(x) if isinstance(x, tf.SparseTensor) else x
    return (
        x.numpy(),
        tf.nest.map_structure(lambda t: None if t is None else t.numpy(), y),
        None if weight is None else weight.numpy(),
    )


def as_pair(element: Any) -> tuple[Any, Any]:
    return element if isinstance(element, tuple) else (element, None)


@pytest.mark.parametrize("case", CASES)
def test_elements_are_the_batches_of_the_loader(case: str) -> None:
    check_bridge(dataset, decode, CASES[case])


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetch_changes_nothing(prefetch: int) -> None:
    check_bridge(lambda loader: dataset(loader, prefetch=prefetch), decode, CASES["y and weights"])


def test_sparse_x_is_canonical() -> None:
    for x in dataset(make_loader(reader(), shuffle=True)):
        at = x.indices.numpy()
        assert at.dtype == np.int64
        assert (np.diff(at[:, 0] * N_FEATURES + at[:, 1]) > 0).all()
        assert x.dense_shape.numpy().tolist()[1] == N_FEATURES


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint16", "int64", "bool"])
@LAYOUTS
@pytest.mark.parametrize("features", [None, np.array([40, 2, 9])], ids=["all features", "some"])
def test_x_has_the_dtype_asked_for(dtype: str, layout: str, features: Any) -> None:
    source = FakeReader((X * 10).astype(np.int8))
    expected = source.matrix.toarray().astype(dtype)
    if features is not None:
        expected = expected[:, features]
    for element, start in zip(
        dataset(make_loader(source, dtype=dtype, layout=layout, features=features)), range(0, N_ROWS, 32), strict=True
    ):
        x = decode(element)[0]
        assert x.dtype == dtype
        assert np.array_equal(x, expected[start : start + 32])


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_shapes_and_cardinality_are_known(drop_remainder: bool) -> None:
    rows = 32 if drop_remainder else None
    for layout in ("sparse", "dense"):
        loader = make_loader(
            reader(), columns=("wide", "y", "sample_weight"), layout=layout, drop_remainder=drop_remainder
        )
        ds = dataset(loader)
        x, y, weight = ds.element_spec
        assert x.shape.as_list() == [rows, N_FEATURES]
        assert isinstance(x, tf.SparseTensorSpec if layout == "sparse" else tf.TensorSpec)
        assert (y["wide"].shape.as_list(), y["y"].shape.as_list(), weight.shape.as_list()) == (
            [rows, 3],
            [rows],
            [rows],
        )
        assert int(ds.cardinality()) == len(loader) == len(list(ds)) == (15 if drop_remainder else 16)


def test_strings_come_as_tensors() -> None:
    names = np.array([f"row {i}: é" for i in range(N_ROWS)], object)
    (_, y), *_ = dataset(make_loader(FakeReader(X, {"name": names, "y": Y}), columns=("name", "y")))
    assert [value.decode() for value in y["name"].numpy()] == names[:32].tolist()


def test_rows_without_entries_and_a_matrix_without_any() -> None:
    empty = scipy.sparse.csr_array((70, 9), dtype=np.float32)
    for layout in ("sparse", "dense"):
        got = [decode(element)[0] for element in dataset(make_loader(FakeReader(empty), layout=layout))]
        assert [x.shape for x in got] == [(32, 9), (32, 9), (6, 9)]
        assert not np.concatenate(got).any()


def test_missing_values_are_refused_by_name() -> None:
    source = reader()
    source.column = lambda _, rows: np.ma.MaskedArray(Y[rows], rows < 3)  # type: ignore[method-assign]
    with pytest.raises(tf.errors.InvalidArgumentError, match="column 'y' lacks 3 of 128 values"):
        list(dataset(make_loader(source, columns=("y",))))


def test_weights_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="columns has 'sample_weight' and nothing to weigh: add 'y'"):
        dataset(make_loader(reader(), columns=("sample_weight",)))


def test_a_negative_prefetch_is_refused() -> None:
    with pytest.raises(ValueError, match="prefetch is -1, expected 0 or more"):
        dataset(make_loader(reader()), prefetch=-1)


def test_an_error_of_the_reader_reaches_the_model_with_its_words() -> None:
    def fail(call: int) -> None:
        if call == 1:
            raise OSError("segments/7/X/data: flipped byte")

    with pytest.raises(tf.errors.UnknownError, match="segments/7/X/data: flipped byte"):
        list(dataset(make_loader(reader(before_find=fail))))


class Begun:
    """Records where the iterations of a loader begin."""

    def __init__(self, loader: Any) -> None:
        self.starts: list[tuple[int, int]] = []
        begin = loader.begin

        def recorded(**options: Any) -> tuple[int, int]:
            self.starts.append(begin(**options))
            return self.starts[-1]

        loader.begin = recorded


class Steps(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.steps: int | None = None
        self.batches = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.steps = self.params["steps"]

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.batches += 1


@pytest.mark.parametrize(
    ("layout", "columns"), [("sparse", ("y", "sample_weight")), ("dense", ("y",))], ids=["sparse, weights", "dense"]
)
def test_fit_evaluate_and_predict(layout: str, columns: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings are errors here, so 'ran out of data' would fail the test."""
    loader = make_loader(reader(), columns=columns, layout=layout, shuffle=True)
    validation = make_loader(reader(), columns=columns, layout=layout)
    train, val, begun, steps = dataset(loader), dataset(validation), Begun(loader), Steps()
    model = logistic(layout)
    history = model.fit(train, validation_data=val, epochs=3, callbacks=[steps], verbose=1).history
    assert begun.starts == [(0, 0), (1, 0), (2, 0)]
    assert (steps.steps, steps.batches) == (16, 48)
    printed = capsys.readouterr().out
    assert "16/16" in printed
    assert "Unknown" not in printed
    assert len(history["loss"]) == len(history["val_loss"]) == 3
    assert history["loss"][-1] < history["loss"][0]
    evaluated = model.evaluate(val, verbose=0)
    assert evaluated == model.evaluate(val, verbose=0)
    assert evaluated[0] == pytest.approx(history["val_loss"][-1], rel=1e-6)
    predicted = model.predict(val, verbose=0)
    kernel, bias = model.layers[-1].get_weights()
    assert predicted == pytest.approx(1 / (1 + np.exp(-(X @ kernel + bias))), abs=1e-5)
    unlabelled = dataset(make_loader(reader(), layout=layout))
    assert np.array_equal(model.predict(unlabelled, verbose=0), predicted)


def test_several_outputs() -> None:
    inputs = keras.Input((N_FEATURES,), sparse=True)
    outputs = {"y": keras.layers.Dense(1, name="y")(inputs), "wide": keras.layers.Dense(3, name="wide")(inputs)}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"y": "mse", "wide": "mse"})
    ds = dataset(make_loader(reader(), columns=("y", "wide"), shuffle=True))
    assert len(model.fit(ds, epochs=2, verbose=0).history["loss"]) == 2
    model = logistic("dense", units=3)
    model.fit(dataset(make_loader(reader(), columns=("wide",), layout="dense")), verbose=0)


@LAYOUTS
def test_columns_are_inputs_beside_the_matrix(layout: str, tmp_path: Path) -> None:
    """Sparse, dense and categorical inputs of one model, by name."""
    columns = {**COLUMNS, "town": np.array(["Bonn", "Kiel", "Ulm"], object)[np.arange(N_ROWS) % 3]}
    store = sparsestore.convert(X, tmp_path / "a.zarr", columns=columns, progress=False)
    ds = store.to_tf(32, inputs=("wide", "town"), shuffle=True, seed=0, layout=layout)
    rows = np.concatenate([each.row_ids for each in store.loader(32, shuffle=True, seed=0)])
    given = list(ds)
    assert [sorted(x) for x, _, _ in given][:1] == [["town", "wide", "x"]]
    matrix = [tf.sparse.to_dense(x["x"]) if layout == "sparse" else x["x"] for x, _, _ in given]
    np.testing.assert_array_equal(np.concatenate(matrix), X.toarray()[rows])
    np.testing.assert_array_equal(np.concatenate([x["wide"] for x, _, _ in given]), WIDE[rows])
    towns = np.concatenate([x["town"].numpy() for x, _, _ in given])
    np.testing.assert_array_equal(towns, [town.encode() for town in columns["town"][rows]])
    np.testing.assert_array_equal(np.concatenate([y for _, y, _ in given]), Y[rows])

    town = keras.Input((1,), name="town", dtype="string")
    number = keras.layers.StringLookup(vocabulary=["Bonn", "Kiel", "Ulm"], output_mode="one_hot")(town)
    inputs = [keras.Input((N_FEATURES,), sparse=layout == "sparse", name="x"), keras.Input((3,), name="wide"), town]
    parts = [keras.layers.Dense(4)(inputs[0]), inputs[1], number]
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(keras.layers.Concatenate()(parts)))
    model.compile("sgd", "binary_crossentropy")
    losses = model.fit(ds, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert model.predict(store.to_tf(64, inputs=("wide", "town"), layout=layout), verbose=0).shape == (N_ROWS, 1)


@pytest.mark.parametrize(
    "shuffled", [pytest.param(False, marks=pytest.mark.slow, id="in order"), pytest.param(True, id="shuffled once")]
)
@LAYOUTS
def test_stores_with_the_same_rows_are_read_together(layout: str, shuffled: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"progress": False, **({"shuffle": True, "seed": 4} if shuffled else {})}
    other = random_matrix(N_ROWS, 11, 0.3, seed=9)
    first = sparsestore.convert(X, tmp_path / "a.zarr", columns={"y": Y, "wide": WIDE}, **options)
    second = sparsestore.convert(other, tmp_path / "b.zarr", **options)
    cells = (lambda x: tf.sparse.to_dense(x).numpy()) if layout == "sparse" else (lambda x: x.numpy())
    number = {tuple(row): i for i, row in enumerate(X.toarray().tolist())}
    for one, two in ((first, second), (first.split(0.7)[0], second.split(0.7)[0])):
        inputs = {"words": two, "width": "wide", "some": two.select(features=[3, 1])}
        ds = one.to_tf(32, inputs=inputs, shuffle=True, seed=2, layout=layout)
        for rows in ([batch.row_ids for batch in epoch] for epoch in [one.loader(32, shuffle=True, seed=2)] * 2):
            given = list(ds)
            found = {name: np.concatenate([cells(x[name]) for x, _ in given]) for name in ("x", "words", "some")}
            np.testing.assert_array_equal(found["x"], first[np.concatenate(rows)].toarray())
            np.testing.assert_array_equal(found["words"], second[np.concatenate(rows)].toarray())
            np.testing.assert_array_equal(found["some"], found["words"][:, [3, 1]])
            at = [number[tuple(row)] for row in found["x"].tolist()]
            np.testing.assert_array_equal(found["words"], other.toarray()[at])
            np.testing.assert_array_equal(np.concatenate([x["width"] for x, _ in given]), WIDE[at])


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_beside_the_matrix_have_the_same_rows(case: str, tmp_path: Path) -> None:
    def cells(x: Any) -> Any:
        return (tf.sparse.to_dense(x) if isinstance(x, tf.SparseTensor) else x).numpy()

    check_inputs(lambda store, **given: store.to_tf(32, **given), cells, tmp_path, **INPUTS[case])


def test_a_state_holds_for_all_stores_that_are_read_together(tmp_path: Path) -> None:
    first = sparsestore.convert(X, tmp_path / "a.zarr", progress=False)
    second = sparsestore.convert(X, tmp_path / "b.zarr", progress=False)
    ds = first.to_tf(32, inputs={"same": second}, shuffle=True, seed=2)
    later = first.to_tf(32, inputs={"same": second}, shuffle=True)
    later.loader.load_state_dict({**ds.loader.state_dict(), "epoch": 1, "batch": 5})
    whole = [list(ds), list(ds)][1]
    for one, two in zip(whole[5:], later, strict=False):
        for name in ("x", "same"):
            assert decode(one[name])[0].tolist() == decode(two[name])[0].tolist() == decode(one["x"])[0].tolist()


def test_other_rows_are_refused(tmp_path: Path) -> None:
    store = sparsestore.convert(X, tmp_path / "a.zarr", progress=False)
    short = sparsestore.convert(X[:50], tmp_path / "b.zarr", progress=False)
    mixed = sparsestore.convert(X, tmp_path / "c.zarr", shuffle=True, seed=1, progress=False)
    with pytest.raises(ValueError, match=r"has 50 rows, expected 500"):
        store.to_tf(inputs={"b": short})
    with pytest.raises(ValueError, match=r"has other rows: row \d+ is row \d+ of what .*c\.zarr was made from"):
        store.to_tf(inputs={"c": mixed})
    with pytest.raises(
        ValueError, match=r"inputs\['d'\] is a ndarray, expected the name of a column, a store or a view"
    ):
        store.to_tf(inputs={"d": np.eye(3)})


def test_a_column_is_an_input_or_a_target_and_the_matrix_is_x(tmp_path: Path) -> None:
    store = sparsestore.convert(X, tmp_path / "a.zarr", columns={"x": Y, "y": Y}, progress=False)
    with pytest.raises(ValueError, match="inputs has 'y', which is in columns, too"):
        store.to_tf(inputs="y")
    with pytest.raises(ValueError, match="'x' is the matrix, so no other can have that name"):
        store.to_tf(inputs="x")
    with pytest.raises(ValueError, match="nope"):
        store.to_tf(inputs=("nope",))
    with pytest.raises(ValueError, match="inputs has 'sample_weight', which with weights= says what each drawn row"):
        store.to_tf(inputs="sample_weight", columns=(), shuffle=True, weights="y")


@LAYOUTS
def test_train_on_batch(layout: str) -> None:
    ds = dataset(make_loader(reader(), columns=("y",), layout=layout, shuffle=True))
    model = logistic(layout)
    losses = [[float(model.train_on_batch(x, y)[0]) for x, y in ds] for _ in range(3)]
    assert [len(epoch) for epoch in losses] == [16, 16, 16]
    assert np.mean(losses[2]) < np.mean(losses[0])


def test_sparse_and_dense_train_alike() -> None:
    losses = {}
    for layout in ("sparse", "dense"):
        loader = make_loader(reader(), columns=("y", "sample_weight"), layout=layout, shuffle=True, seed=4)
        losses[layout] = logistic(layout).fit(dataset(loader), epochs=4, verbose=0).history["loss"]
    assert losses["sparse"] == pytest.approx(losses["dense"], abs=1e-5)


@LAYOUTS
def test_the_model_is_traced_once(layout: str) -> None:
    class Counting(keras.Model):  # type: ignore[misc]
        traces = 0

        def train_step(self, data: Any) -> Any:
            Counting.traces += 1
            return super().train_step(data)

    inputs = keras.Input((N_FEATURES,), sparse=layout == "sparse")
    model = Counting(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    loader = make_loader(reader(), columns=("y",), layout=layout, shuffle=True, batch_size=48)
    ds = dataset(loader)
    model.fit(ds, epochs=3, verbose=0)
    assert Counting.traces == 1
    for x, y in ds:
        model.train_on_batch(x, y)
    assert Counting.traces <= 3  # eager batches say their size: one more for the full, one for the short batch


def test_every_iteration_is_the_next_epoch_and_two_at_once_are_their_own() -> None:
    plain = make_loader(reader(), columns=("row",), shuffle=True)
    expected = [np.concatenate([batch.y for batch in plain]) for _ in range(4)]
    ds = dataset(make_loader(reader(), columns=("row",), shuffle=True))

    def rows(elements: Any) -> Any:
        return np.concatenate([y.numpy() for _, y in elements])

    assert np.array_equal(rows(ds), expected[0])
    assert np.array_equal(rows(ds), expected[1])
    both = list(zip(ds, ds, strict=True))
    assert np.array_equal(rows(a for a, _ in both), expected[2])
    assert np.array_equal(rows(b for _, b in both), expected[3])


def test_in_order_every_iteration_is_the_same() -> None:
    ds = dataset(make_loader(reader(), columns=("row",)))
    for _ in range(3):
        assert np.array_equal(np.concatenate([y.numpy() for _, y in ds]), np.arange(N_ROWS))


def test_a_resumed_loader_starts_at_its_batch_and_loses_none() -> None:
    plain = make_loader(reader(), columns=("row",), shuffle=True)
    stream = [batch.y for _ in range(4) for batch in plain]
    state = {**make_loader(reader(), shuffle=True).state_dict(), "epoch": 1, "batch": 5}
    loader = make_loader(reader(), columns=("row",), shuffle=True, seed=9)
    ds = dataset(loader)
    loader.load_state_dict(state)
    for iteration in range(2):
        got = [y.numpy() for _, y in ds]
        assert len(got) == int(ds.cardinality()) == 16
        start = 16 + 5 + 16 * iteration
        assert all(map(np.array_equal, got, stream[start : start + 16]))
    assert loader.state_dict()["epoch"] == 2
    loader.load_state_dict(state)
    steps = Steps()
    model = logistic("sparse")
    model.fit(ds, epochs=3, initial_epoch=1, verbose=0, callbacks=[steps])
    assert steps.batches == 32


def test_steps_per_epoch_goes_on_through_the_epochs_of_the_loader() -> None:
    seen: list[Any] = []

    class Watched(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            seen.append(data[1].numpy())
            return super().train_step(data)

    plain = make_loader(reader(), columns=("row",), shuffle=True, seed=9)
    stream = [batch.y for _ in range(2) for batch in plain]
    model = Watched([keras.Input((N_FEATURES,), sparse=True), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    ds = dataset(make_loader(reader(), columns=("row",), shuffle=True, seed=9))
    model.fit(ds.repeat(), steps_per_epoch=5, epochs=5, verbose=0)
    assert len(seen) == 25
    assert all(map(np.array_equal, seen, stream))


def test_a_resume_goes_on_training_as_if_never_stopped() -> None:
    def loader() -> Any:
        return make_loader(reader(), columns=("y",), shuffle=True, seed=2)

    whole = logistic("sparse")
    whole.fit(dataset(loader()), epochs=2, verbose=0)
    first, second = loader(), loader()
    model = logistic("sparse")
    for k, (x, y) in enumerate(dataset(first)):
        if k == 11:
            break
        model.train_on_batch(x, y)
    second.load_state_dict({**first.state_dict(), "epoch": 0, "batch": 11})
    rest = dataset(second)
    model.fit(rest, verbose=0)
    model.fit(rest.take(32 - 11 - 16), verbose=0)
    for a, b in zip(whole.get_weights(), model.get_weights(), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_an_iterator_lives_without_any_other_name() -> None:
    iterator = iter(dataset(make_loader(reader(), columns=("row",))))
    gc.collect()
    assert np.array_equal(np.concatenate([y.numpy() for _, y in iterator]), np.arange(N_ROWS))


def test_an_abandoned_iterator_stops_reading_and_lets_go() -> None:
    source = reader(before_find=slow(0.02))
    alive = weakref.ref(source)
    loader = make_loader(source, columns=("y",), batch_size=10, window_rows=10)
    ds = dataset(loader)
    iterator = iter(ds)
    next(iterator)
    del iterator
    gc.collect()
    read = len(source.found)
    assert read < 10
    time.sleep(0.2)
    assert len(source.found) <= read + 1
    del ds, loader, source
    gc.collect()
    assert alive() is None
    assert not any(thread.name == "sparsestore-prefetch" for thread in threading.enumerate())


def test_a_forgotten_dataset_leaves_no_file_open(tmp_path: Path) -> None:
    """The fixtures of conftest look for files and threads after the test."""
    with sparsestore.create(tmp_path / "a.zarr", n_features=N_FEATURES, columns={"y": "int64"}) as writer:
        writer.append(X, y=Y)
    ds = sparsestore.open(tmp_path / "a.zarr").to_tf(batch_size=8, window_rows=64)
    iterator = iter(ds)
    x, y = next(iterator)
    assert np.array_equal(tf.sparse.to_dense(x).numpy(), X[:8].toarray())
    assert np.array_equal(y.numpy(), Y[:8])
    del ds, iterator, x, y


def test_at_most_three_windows_are_alive() -> None:
    loader = make_loader(reader(), batch_size=10, window_rows=10)
    windows: list[weakref.ref[Any]] = []
    most = 0
    window = loader.window

    def watched(epoch: int, i: int) -> Any:
        nonlocal most
        found = window(epoch, i)
        windows.append(weakref.ref(found))
        most = max(most, sum(ref() is not None for ref in windows))
        return found

    loader.window = watched  # type: ignore[method-assign]
    for x in dataset(loader, prefetch=0):
        del x
    assert len(windows) == 50
    assert most <= 3


@pytest.mark.parametrize("batch_size", [256, 512])
@LAYOUTS
def test_batches_that_are_kept_never_change(layout: str, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large enough for memory that is used again; every third batch is kept, the others give theirs back."""
    blocks: list[int] = []
    block = Buffers._block
    monkeypatch.setattr(Buffers, "_block", lambda self, size: blocks.append(size) or block(self, size))
    n_rows, n_features = 20_000, 301
    x = random_matrix(n_rows, n_features, 0.2)
    source = FakeReader(x, {"row": np.arange(n_rows)})
    options = {
        "batch_size": batch_size,
        "layout": layout,
        "columns": ("row",),
        "shuffle": True,
        "window_rows": 4 * batch_size,
    }
    ds = dataset(make_loader(source, **options), prefetch=3)
    for _ in range(2):
        kept = [element for k, element in enumerate(ds) if k % 3 == 0]
        assert len(kept) == -(-len(ds) // 3)
        for element in kept:
            found, rows, _ = decode(element)
            assert np.array_equal(found, x[rows].toarray())
    assert len(blocks) >= 20


def test_a_map_that_writes_in_place_changes_nobody_elses_batch() -> None:
    """TensorFlow calculates in the memory of the last slice of a tensor, ours too."""
    x = random_matrix(4096, 64, 0.5)
    source = FakeReader(x, {"row": np.arange(4096)})
    loader = make_loader(source, columns=("row",), layout="dense", batch_size=64, window_rows=1024)
    ds = dataset(loader).map(lambda x, y: (-x[:32], -y[:32]))
    for _ in range(3):
        for k, (found, rows) in enumerate(ds):
            assert np.array_equal(rows, -np.arange(64 * k, 64 * k + 32))
            assert np.array_equal(found, -x[64 * k : 64 * k + 32].toarray())
    assert np.array_equal(source.values["row"], np.arange(4096))


def test_a_checkpoint_can_take_the_iterator(tmp_path: Path) -> None:
    iterator = iter(dataset(make_loader(reader(), columns=("row",), shuffle=True)))
    for _ in range(7):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    expected = [y.numpy() for _, y in iterator]
    again = iter(dataset(make_loader(reader(), columns=("row",), shuffle=True)))
    tf.train.Checkpoint(iterator=again).read(path).assert_consumed()
    assert all(map(np.array_equal, [y.numpy() for _, y in again], expected))


def tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph and of the functions it calls, gradients and branches too."""
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph  # shapes of library functions

    yield from (output for op in graph.get_operations() for output in op.outputs)
    definition = graph.as_graph_def()
    with graph.as_default():
        for function in definition.library.function:
            inner = function_def_to_graph(function, include_library_functions=True, parent=graph)
            yield from (output for op in inner.get_operations() for output in op.outputs)


def pipeline_ops(ds: Any) -> set[str]:
    """Kinds of operation in the whole input pipeline."""
    text = tf.raw_ops.DatasetToGraphV2(input_dataset=ds._variant_tensor, external_state_policy=1)
    definition = tf.compat.v1.GraphDef.FromString(text.numpy())
    return {node.op for function in definition.library.function for node in function.node_def}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("units", [1, 7])
def test_no_tensor_of_the_sparse_training_graph_has_the_size_of_a_dense_batch(optimizer: str, units: int) -> None:
    batch_size, n_features = 52, 10_007  # a prime, so that no other shape has this product
    x = random_matrix(208, n_features, 0.001)
    found = {}
    for layout in ("sparse", "dense"):
        y = np.zeros((208, units), np.float32)
        loader = make_loader(
            FakeReader(x, {"y": y}), columns=("y",), layout=layout, batch_size=batch_size, drop_remainder=True
        )
        ds = dataset(loader)
        inputs = keras.Input((n_features,), sparse=layout == "sparse")
        hidden = keras.layers.Dense(units, kernel_regularizer="l2")(inputs)
        model = keras.Model(inputs, hidden)
        model.compile(optimizer, "mse")
        model.optimizer.build(model.trainable_variables)
        step = tf.function(model.train_step).get_concrete_function(ds.element_spec)
        sizes = [tensor.shape.num_elements() for tensor in tensors(step.graph)]
        assert len(sizes) > 50
        found[layout] = sum(size == batch_size * n_features for size in sizes)
        ops = {tensor.op.type for tensor in tensors(step.graph)}
        spread = {"SparseToDense", "ScatterNd", "TensorScatterUpdate"}
        if layout == "sparse":
            assert not spread & ops
            assert not spread & pipeline_ops(ds)
    assert found["sparse"] == 0
    assert found["dense"] > 0  # else this test could not fail


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_sparse_training_takes_no_memory_of_the_size_of_a_dense_batch() -> None:
    batch_size, n_features = 128, 4_000_000
    rng = np.random.default_rng(0)
    at = np.sort(rng.integers(0, n_features, (4 * batch_size, 20)), axis=1)
    x = scipy.sparse.csr_array(
        (np.ones(at.size, np.float32), at.ravel(), np.arange(0, at.size + 1, 20)), (len(at), n_features)
    )
    x.sum_duplicates()
    loader = make_loader(FakeReader(x, {"y": np.zeros(len(at))}), columns=("y",), batch_size=batch_size)
    model = logistic("sparse", n_features)
    ds = dataset(loader)
    model.fit(ds.take(1), verbose=0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def memory(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        return int(found[1]) * 1024

    before = memory("VmRSS")
    model.fit(ds, verbose=0)
    assert memory("VmHWM") - before < batch_size * n_features * 4 / 4
