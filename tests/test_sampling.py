"""Rows drawn by weights: how often they come, what they count, and that all else stays as it is without."""

from __future__ import annotations

import json
import pickle
import re
import tracemalloc
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from fakes import FakeReader, make_loader, random_matrix
from scipy.stats import chi2

import sparsestore as ss
from sparsestore import weights as weighing
from sparsestore.loader import Loader

N_ROWS, N_FEATURES = 1003, 57
X = random_matrix(N_ROWS, N_FEATURES, 0.1)
RNG = np.random.default_rng(0)
WEIGHT = RNG.gamma(0.5, size=N_ROWS) * (RNG.random(N_ROWS) < 0.8)  # skewed, and a fifth of the rows has none
RARE = (np.arange(N_ROWS) % 100 == 7).astype(np.int64)
COLUMNS: dict[str, Any] = {
    "y": RARE,
    "w": WEIGHT,
    "sample_weight": np.random.default_rng(2).random(N_ROWS),
    "sorted": (np.arange(N_ROWS) > 950).astype(np.float32),
    "text": np.array(["no", "yes"], object)[RARE],
    "wide": np.ones((N_ROWS, 3)),
}


def drawing(weights: Any = "w", *, columns: Any = None, **options: Any) -> Loader:
    return make_loader(FakeReader(X, columns or COLUMNS), shuffle=True, weights=weights, **options)


def stored(path: Path, n: int = N_ROWS, **options: Any) -> ss.Store:
    columns = {name: values[:n] for name, values in COLUMNS.items() if name != "wide"}
    return ss.convert(X[:n], path / "a.zarr", columns=columns, **options)


def epoch(loader: Loader, number: int = 0) -> tuple[Any, Any]:
    """Row numbers and sample weights of an epoch, without the rows themselves."""
    windows = [loader.window(number, i) for i in range(len(loader.pieces))]
    rows, factors = [w.row_ids for w in windows], [w.columns["sample_weight"] for w in windows]
    return np.concatenate(rows), np.concatenate(factors)


def same(a: Any, b: Any) -> bool:
    x, other = (batch.x if isinstance(batch.x, np.ndarray) else batch.x.toarray() for batch in (a, b))
    return (
        np.array_equal(a.row_ids, b.row_ids)
        and np.array_equal(x, other)
        and a.columns.keys() == b.columns.keys()
        and all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)
    )


# ------------------------------------------------------------------------------------------ how often rows come


@pytest.mark.parametrize("form", ["column", "array"])
def test_rows_come_as_often_as_their_weights_say(form: str) -> None:
    """A chi-square test: in one window a count is floor or ceil of its expectation, so its variance is known."""
    epochs, expected = 300, WEIGHT * (N_ROWS / WEIGHT.sum())
    loader = drawing("w" if form == "column" else WEIGHT, batch_size=100, window_rows=1100, seed=1)
    counts = np.zeros(N_ROWS)
    for i in range(epochs):
        rows, factors = epoch(loader, i)
        now = np.bincount(rows, minlength=N_ROWS)
        assert ((now == np.floor(expected)) | (now == np.ceil(expected))).all()
        assert np.allclose(factors, 1)
        counts += now
    part = expected % 1
    varies = part * (1 - part) > 1e-6
    statistic = float(
        ((counts - epochs * expected) ** 2 / (epochs * np.maximum(part * (1 - part), 1e-6)))[varies].sum()
    )
    assert chi2.ppf(0.0005, varies.sum()) < statistic < chi2.ppf(0.9995, varies.sum())
    assert not counts[WEIGHT == 0].any()


def test_with_small_windows_corrected_counts_follow_the_weights() -> None:
    """Windows of 64 rows differ in weight by half; the sum of the corrections of a row makes up for it."""
    epochs, expected = 300, WEIGHT * (N_ROWS / WEIGHT.sum())
    loader = drawing(batch_size=32, window_rows=64, block_rows=16)
    sums = np.empty((epochs, N_ROWS))
    spread = []
    for i in range(epochs):
        rows, factors = epoch(loader, i)
        assert factors.sum() == pytest.approx(N_ROWS, rel=1e-5)
        spread.append(np.std(factors))
        sums[i] = np.bincount(rows, factors, minlength=N_ROWS)
    assert np.mean(spread) > 0.1
    often = expected > 0.02  # the count of a row that hardly ever comes is far from normal
    error = sums[:, often].std(axis=0) / np.sqrt(epochs)
    z = (sums[:, often].mean(axis=0) - expected[often]) / error
    assert often.sum() > 500
    assert np.abs(z).max() < 5
    assert 0.8 < (z**2).mean() < 1.2
    assert sums.mean(axis=0)[~often].max() < 0.1
    assert not sums[:, WEIGHT == 0].any()


@pytest.mark.parametrize("column", ["y", "text"])
def test_classes_come_out_balanced(column: str) -> None:
    """One row in a hundred is of a class that becomes half, in each window as far as it has both."""
    loader = drawing(f"balanced:{column}", batch_size=256, window_rows=1024, columns=COLUMNS)
    for i in range(3):
        rows, factors = epoch(loader, i)
        assert abs(int(RARE[rows].sum()) - N_ROWS / 2) <= 1
        assert np.allclose(factors, 1)
        # of the many no row comes twice, of the few all come about as often
        assert np.bincount(rows, minlength=N_ROWS)[RARE == 0].max() == 1
        assert np.ptp(np.bincount(rows, minlength=N_ROWS)[RARE == 1]) <= 1


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float64"])
def test_classes_of_any_dtype_are_balanced(dtype: str) -> None:
    y = RNG.choice(
        2 if dtype == "bool" else 5, N_ROWS, p=[0.9, 0.1] if dtype == "bool" else [0.6, 0.2, 0.1, 0.06, 0.04]
    )
    columns = {"y": y.astype(dtype)}
    rows, factors = epoch(drawing("balanced:y", columns=columns, batch_size=1024, window_rows=1024))
    assert np.ptp(np.bincount(y[rows])) <= 1
    assert factors.dtype == np.float32


@pytest.mark.parametrize("weights", ["w", "balanced:sorted"])
def test_weighted_means_are_those_of_the_store_where_rows_are_sorted_and_windows_small(weights: str) -> None:
    """Most windows have one class only. The tolerance is that of the mean of so many epochs."""
    order = np.argsort(X.sum(axis=1) + 10 * COLUMNS["sorted"])
    columns = {"w": np.sort(WEIGHT), "sorted": COLUMNS["sorted"][order]}
    f = np.sin(np.arange(N_ROWS) / 100) + columns["sorted"]
    share = np.where(columns["sorted"] == 1, 1 / columns["sorted"].sum(), 1 / (columns["sorted"] == 0).sum())
    expected = float(np.average(f, weights=columns["w"] if weights == "w" else share))
    loader = drawing(weights, columns=columns, batch_size=32, window_rows=64, block_rows=64)
    means = []
    for i in range(200):
        rows, factors = epoch(loader, i)
        means.append(float((factors * f[rows]).sum() / N_ROWS))
    plain = float(f.mean())
    tolerance = 4 * np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - expected) < tolerance < abs(plain - expected) / 10


def test_equal_weights_are_a_shuffle() -> None:
    loader = drawing(np.full(N_ROWS, 0.3), columns=COLUMNS)
    for i in range(2):
        rows, factors = epoch(loader, i)
        assert sorted(rows.tolist()) == list(range(N_ROWS))
        assert np.allclose(factors, 1)


def test_a_window_without_weight_counts_nothing() -> None:
    weights = np.zeros(N_ROWS)
    weights[:4] = 1
    loader = drawing(weights, batch_size=8, window_rows=8, block_rows=4)
    rows, factors = epoch(loader)
    assert np.array_equal(factors > 0, rows < 4)
    assert factors.sum() == pytest.approx(N_ROWS, rel=1e-6)
    assert len(rows) == N_ROWS


# ------------------------------------------------------------------------------------- batches are those of a loader


def test_batches_have_the_rows_drawn_and_what_stands_beside_them() -> None:
    loader = drawing(columns=COLUMNS, layout="sparse")
    assert loader.columns == ("sample_weight",)
    loader = make_loader(FakeReader(X, COLUMNS), shuffle=True, weights="w", columns=("y", "text", "wide"))
    assert loader.columns == ("y", "text", "wide", "sample_weight")
    assert loader.schema["sample_weight"].dtype == "float32"
    repeats = 0
    for batch in loader:
        assert np.array_equal(batch.x.toarray(), X[batch.row_ids].toarray())  # type: ignore[union-attr]
        assert list(batch.columns) == list(loader.columns)
        for name in ("y", "text", "wide"):
            assert np.array_equal(batch.y[name], COLUMNS[name][batch.row_ids])  # type: ignore[index]
        assert batch.sample_weight is batch.columns["sample_weight"]
        assert batch.sample_weight.dtype == np.float32
        repeats += len(batch.row_ids) - len(np.unique(batch.row_ids))
    assert repeats > 100


@pytest.mark.parametrize(
    ("dtype", "becomes"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int64", "float64")]
)
def test_stored_sample_weights_are_multiplied(dtype: str, becomes: str) -> None:
    columns = {**COLUMNS, "sample_weight": (COLUMNS["sample_weight"] * 10).astype(dtype)}
    source = FakeReader(X, columns)
    drawn, given = (
        make_loader(source, shuffle=True, weights="w", columns=names) for names in (("y",), ("sample_weight", "y"))
    )
    assert given.columns == ("sample_weight", "y")
    assert given.schema["sample_weight"].dtype == becomes
    for a, b in zip(drawn, given, strict=True):
        assert b.sample_weight.dtype == becomes  # type: ignore[union-attr]
        assert np.allclose(b.sample_weight, a.sample_weight * columns["sample_weight"][a.row_ids], rtol=1e-3)  # type: ignore


@pytest.mark.parametrize("profile", ["raw", "compact"])
@pytest.mark.parametrize("mmap", [True, False])
def test_layouts_profiles_and_segments_give_the_same(tmp_path: Path, profile: str, mmap: bool) -> None:
    stored(tmp_path, 600, profile=profile)
    rest = {name: values[600:] for name, values in COLUMNS.items() if name != "wide"}
    ss.open(tmp_path / "a.zarr").append(X[600:], **rest)
    store = ss.open(tmp_path / "a.zarr", mmap=mmap)
    options: Any = {"shuffle": True, "seed": 3, "window_rows": 256, "weights": "w", "allow_poor_shuffle": True}
    sparse, dense = (list(store.loader(64, layout=layout, **options)) for layout in ("sparse", "dense"))
    assert all(same(a, b) for a, b in zip(sparse, dense, strict=True))
    features = list(store.select(features=[5, 1]).loader(64, **options))
    for batch, narrow in zip(sparse, features, strict=True):
        assert np.array_equal(batch.x.toarray(), X[batch.row_ids].toarray())
        assert np.array_equal(narrow.x.toarray(), X[batch.row_ids][:, [5, 1]].toarray())


def test_located_rows_are_copied_in_an_order_with_repeats(tmp_path: Path) -> None:
    """Of two segments, and of one whose values are all the same: by all ways of copying."""
    ones = X.copy()
    ones.data[:] = 1
    ss.convert(X, tmp_path / "a.zarr").append(ones)
    both = scipy.sparse.vstack([X, ones], format="csr")
    rows, order = np.arange(900, 1100), RNG.integers(0, 200, 500) // 3 * 3
    store = ss.open(tmp_path / "a.zarr")
    located = store._reader.locate(rows)
    expected = both[rows[order]].toarray()
    found = located.reordered(order)
    assert found.nnz == np.count_nonzero(expected)
    assert np.array_equal(found.copy(100, 333).to_scipy().toarray(), expected[100:333])
    assert np.array_equal(located.take(order).to_scipy().toarray(), expected)
    dense = np.full((400, N_FEATURES), 7, np.float32)
    found.scatter(100, 500, dense)
    assert np.array_equal(dense, expected[100:])
    batches = found.coordinates(0, 500, 64, np.float32)
    for b, (start, stop) in enumerate(zip(batches.starts, batches.stops, strict=True)):
        values, (at, features) = batches.values[start:stop], batches.places[start:stop].T
        assert np.array_equal(
            scipy.sparse.coo_array((values, (at, features)), (64, N_FEATURES)).toarray()[: len(expected[64 * b :])],
            expected[64 * b : 64 * b + 64],
        )


@pytest.mark.parametrize("profile", ["raw", "compact"])
def test_batches_are_the_same_where_memory_is_scarce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    x = scipy.sparse.random_array((20_000, 300), density=0.2, format="csr", dtype=np.float32, rng=0)
    store = ss.convert(x[:15_000], tmp_path / "a.zarr", profile=profile).append(x[15_000:])
    options: Any = {"shuffle": True, "seed": 0, "window_rows": 1000, "block_rows": 100, "allow_poor_shuffle": True}
    weights = RNG.gamma(0.3, size=20_000)
    expected = list(store.loader(500, weights=weights, **options))
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: x.nnz * 6 * 3 // 5)
    found = list(ss.open(tmp_path / "a.zarr").loader(500, weights=weights, **options))
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_partitions_together_give_the_batches_of_one() -> None:
    def batches(**options: Any) -> list[bytes]:
        return [b.row_ids.tobytes() + b.sample_weight.tobytes() for b in drawing(batch_size=16, **options)]  # type: ignore

    whole = batches()
    parts = [batches(partition=p, n_partitions=3) for p in range(3)]
    assert [len(part) for part in parts] == [21, 21, 21]
    assert sorted(whole) == sorted(chain(*parts))


@pytest.mark.parametrize("weights", ["w", "balanced:text", WEIGHT], ids=["column", "balanced", "array"])
def test_a_resume_at_any_batch_equals_no_interruption(weights: Any) -> None:
    loader = drawing(weights, batch_size=48, seed=3)
    list(loader)
    states, expected = [loader.state_dict()], []
    for batch in loader:
        expected.append(batch)
        states.append(loader.state_dict())
    for k, state in enumerate(states[:-1]):
        resumed = drawing(weights, batch_size=48, seed=99)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        got = list(resumed)
        assert len(got) == len(expected) - k
        assert all(same(a, b) for a, b in zip(got, expected[k:], strict=True))


def test_a_state_knows_its_weights() -> None:
    loaders = {
        "none": make_loader(FakeReader(X, COLUMNS), shuffle=True),
        "w": drawing("w"),
        "balanced:y": drawing("balanced:y"),
        "array": drawing(WEIGHT),
        "other array": drawing(WEIGHT + 1),
    }
    states = {name: loader.state_dict() for name, loader in loaders.items()}
    assert "weights" not in states["none"]
    assert states["w"]["weights"] == "w"
    assert states["balanced:y"]["weights"] == "balanced:y"
    assert states["array"] == drawing(WEIGHT.astype(object).astype(float).tolist()).state_dict()
    for name, loader in loaders.items():
        for other, state in states.items():
            if other == name:
                loader.load_state_dict(state)
                continue
            theirs, ours = (re.escape(repr(states[key].get("weights"))) for key in (other, name))
            with pytest.raises(ValueError, match=f"belongs to another loader: weights is {theirs}, here {ours}$"):
                loader.load_state_dict(state)


@pytest.mark.parametrize("weights", ["w", "balanced:text", np.arange(N_ROWS)], ids=["column", "balanced", "array"])
def test_a_loader_with_weights_can_be_sent_to_another_process(tmp_path: Path, weights: Any) -> None:
    loader = stored(tmp_path).loader(64, shuffle=True, seed=1, weights=weights)
    again = pickle.loads(pickle.dumps(loader))
    assert all(same(a, b) for a, b in zip(loader, again, strict=True))


def test_a_view_has_weights_of_its_own_rows(tmp_path: Path) -> None:
    store = stored(tmp_path)
    view = store.select(rows=np.arange(N_ROWS) % 100 < 10)  # one in ten is of the class that is rare
    options: Any = {"batch_size": 2000, "shuffle": True, "seed": 0}
    (batch,) = view.loader(weights="balanced:y", **options)
    assert abs(batch.y.sum() - len(view) / 2) <= 1
    (batch,) = view.loader(weights=(np.arange(len(view)) < 3).astype(np.int8), **options)
    assert np.unique(batch.row_ids).tolist() == [0, 1, 2]
    (batch,) = store.select(rows=[9, 4, 4, 70]).loader(weights=[1, 0, 2, 1], **options)
    assert sorted(batch.row_ids.tolist()) == [4, 4, 9, 70]
    train, _ = store.split(0.5, seed=0)
    rows = np.concatenate([batch.row_ids for batch in train.loader(weights="w", shuffle=True, seed=0)])
    assert (WEIGHT[rows] > 0).all()
    assert set(rows.tolist()) <= set(np.concatenate([b.row_ids for b in train.loader()]).tolist())


# ------------------------------------------------------------------------------------------------ what it costs


def test_only_rows_that_come_are_read_and_each_once() -> None:
    source = FakeReader(X, COLUMNS)
    loader = make_loader(source, shuffle=True, weights="w", batch_size=100, window_rows=500)
    batches = list(loader)
    for i, rows in enumerate(source.found):
        assert (np.diff(rows) > 0).all()
        come = np.concatenate([batch.row_ids for batch in batches[5 * i : 5 * i + 5]])
        assert np.array_equal(rows, np.unique(come))
    window = make_loader(source, shuffle=True, weights="w", batch_size=100, window_rows=500, columns=("y",)).window(
        0, 0
    )
    assert (window.n_rows, window.n_found) == (500, len(source.found[0]))


def test_repeats_take_no_more_memory(tmp_path: Path) -> None:
    x = scipy.sparse.random_array((20_000, 2000), density=0.02, format="csr", dtype=np.float32, rng=0)
    store = ss.convert(x, tmp_path / "a.zarr")
    one = np.zeros(len(store))
    one[7] = 1

    def peak(weights: Any) -> int:
        loader = store.loader(500, shuffle=True, seed=0, weights=weights, window_rows=20_000)
        for batch in loader:
            del batch
        tracemalloc.start()
        try:
            for batch in loader:
                del batch
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(one) < 1.2 * peak(np.ones(len(store)))


def test_weights_are_added_up_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {}
    for piece in (10_000, 100):
        monkeypatch.setattr(weighing, "_PIECE", piece)
        source = FakeReader(X, COLUMNS)
        asked: list[int] = []
        column = source.column
        source.column = lambda name, rows, a=asked, c=column: (a.append(len(rows)), c(name, rows))[1]  # type: ignore
        for weights in ("w", "balanced:text", "balanced:y"):
            make_loader(source, shuffle=True, weights=weights)
        assert max(asked) <= piece
        expected[piece] = [epoch(drawing(weights))[0].tolist() for weights in ("w", "balanced:text", WEIGHT)]
        expected[piece].append(drawing(WEIGHT).state_dict())  # type: ignore[arg-type]
    assert expected[10_000] == expected[100]


# --------------------------------------------------------------------------------------------------- what is refused


def changed(at: int, value: float) -> Any:
    values = WEIGHT.copy()
    values[at] = value
    return values


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("z", "no column 'z' to take weights from: the store has 'y', 'w', .*, or an array"),
        ("balanced:z", "no column 'z' to take weights from"),
        ("text", "column 'text' holds text, and weights are numbers: weights='balanced:text' draws each"),
        ("wide", "column 'wide' has 3 values a row, and weights need one"),
        ("bad", "column 'bad' is -1.0 at row 300 of the store, expected a finite number, 0 or more"),
        ("nothing", "column 'nothing' is 0 at all rows: there is nothing to draw"),
        ("balanced:nan", "column 'nan' has no value at row 7 of the store: a row without a class can not be balanced"),
        (changed(5, np.nan), "weights is nan at row 5 of the view, expected a finite number, 0 or more"),
        (changed(1002, np.inf), "weights is inf at row 1002 of the view"),
        (np.ma.MaskedArray(WEIGHT, np.arange(N_ROWS) == 4), "weights has no value at row 4 of the view"),
        (np.zeros(N_ROWS), "weights is 0 at all rows"),
        (np.full(N_ROWS, 1e308), "weights adds up to more than a float can hold: divide all weights by the largest"),
        (WEIGHT[1:], r"weights has shape \(1002,\), expected \(1003,\): a number for each row of the view"),
        (2.0, r"weights has shape \(\), expected \(1003,\)"),
        ({0: 1.0, 1: 5.0}, "weights is a dict of dtype object, expected the name of a column, 'balanced:' and"),
        (np.array(["a"] * N_ROWS), "weights is a ndarray of dtype <U1, expected"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_what_are_no_weights_is_refused(weights: Any, message: str) -> None:
    columns = {**COLUMNS, "bad": changed(300, -1), "nothing": np.zeros(N_ROWS, int), "nan": changed(7, np.nan)}
    with pytest.raises(ValueError, match=message):
        drawing(weights, columns=columns)


def test_pieces_that_together_are_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighing, "_PIECE", 100)
    weights = changed(0, 1e308)
    weights[-1] = 1e308
    for given, name in ((weights, "weights"), ("large", "column 'large'")):
        with pytest.raises(ValueError, match=f"{name} adds up to more than a float can hold"):
            drawing(given, columns={**COLUMNS, "large": weights})


def test_missing_values_are_no_weights_and_no_classes(tmp_path: Path) -> None:
    y = np.ma.MaskedArray(RARE, np.arange(N_ROWS) == 12)
    store = ss.convert(X, tmp_path / "a.zarr", columns={"y": y})
    with pytest.raises(ValueError, match="column 'y' has no value at row 12 of the store, expected"):
        store.loader(shuffle=True, weights="y")
    with pytest.raises(ValueError, match="column 'y' has no value at row 12 of the store: a row without a class"):
        store.loader(shuffle=True, weights="balanced:y")
    present = store.select(rows=np.arange(N_ROWS) != 12)
    assert abs(sum(int(b.y.sum()) for b in present.loader(shuffle=True, weights="balanced:y")) - N_ROWS / 2) <= 1


def test_too_many_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighing, "MOST_CLASSES", 10)
    with pytest.raises(ValueError, match="column 'w' has more than 10 different values, too many for classes"):
        drawing("balanced:w")


def test_weights_need_a_shuffle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights draws rows at random, and shuffle is False: pass shuffle=True"):
        stored(tmp_path).loader(weights="w")


def test_sample_weights_that_draw_do_not_weigh_again(tmp_path: Path) -> None:
    store = stored(tmp_path)
    options: Any = {"batch_size": 2000, "shuffle": True, "seed": 0}
    (batch,) = store.loader(weights="sample_weight", **options)
    assert np.allclose(batch.sample_weight, 1)
    assert list(batch.columns) == ["y", "sample_weight"]
    with pytest.raises(
        ValueError, match="'sample_weight' is in columns and is weights: a row would be drawn by it and"
    ):
        store.loader(weights="sample_weight", columns=("y", "sample_weight"), **options)


def test_text_is_no_sample_weight() -> None:
    source = FakeReader(X, {"w": WEIGHT, "sample_weight": COLUMNS["text"]})
    with pytest.raises(ValueError, match="column 'sample_weight' holds text, and drawn rows have a number there"):
        make_loader(source, shuffle=True, weights="w", columns=("sample_weight",))


# ------------------------------------------------------------------------------------------------------- training


def test_a_model_learns_the_rare_class_from_balanced_batches(tmp_path: Path) -> None:
    """Of one row in fifty, which batches as they come teach it to ignore."""
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    x = (rng.random((2000, 30)) < 0.2).astype(np.float32)
    score = x @ rng.normal(size=30) + rng.normal(size=2000)
    y = (score > np.quantile(score, 0.98)).astype(np.float32)
    store = ss.convert(x, tmp_path / "a.zarr", columns={"y": y})
    recall = {}
    for weights in (None, "balanced:y"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((30,), sparse=True), keras.layers.Dense(1, "sigmoid")])
        model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=[keras.metrics.Recall(name="recall")])
        ds = store.to_tf(100, shuffle=True, seed=0, weights=weights)
        assert int(ds.cardinality()) == 20
        assert len(ds.element_spec) == (2 if weights is None else 3)
        history = model.fit(ds, epochs=4, verbose=0).history
        assert history["loss"][-1] < history["loss"][0]
        recall[weights] = model.evaluate(store.to_tf(1000), verbose=0, return_dict=True)["recall"]
    assert recall["balanced:y"] > 0.8 > 0.4 > recall[None]


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_tensors_are_those_of_the_loader(tmp_path: Path, layout: str) -> None:
    tf = pytest.importorskip("tensorflow")
    store = stored(tmp_path)
    options: Any = {"shuffle": True, "seed": 0, "weights": "w", "layout": layout, "columns": ("y",), "window_rows": 256}
    options["allow_poor_shuffle"] = True
    ds, loader = store.to_tf(64, **options), store.loader(64, **{**options, "layout": "dense"})
    for _ in range(2):
        for (x, y, weight), batch in zip(ds, loader, strict=True):
            x = tf.sparse.to_dense(x) if layout == "sparse" else x
            assert np.array_equal(x, batch.x)
            assert np.array_equal(y, batch.y)
            assert np.array_equal(weight, batch.sample_weight)
    with pytest.raises(ValueError, match="nothing to weigh: add 'y', or leave it out, and weights, which give it"):
        store.to_tf(64, **{**options, "columns": ()})


@pytest.mark.slow
def test_the_page_on_training_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorflow")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert blocks
    exec(compile("\n".join(blocks), "training.md", "exec"), {})
