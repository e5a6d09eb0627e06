"""What users hold: opening, row access as numpy and scipy know it, columns, views, versions."""

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sparsestore as ss

N, M = 61, 9


@pytest.fixture(scope="module", params=["raw", "compact", "raw without mmap"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ss.Store, sp.csr_array]:
    """A store of several segments of different dtypes, and the same matrix in scipy."""
    rng = np.random.default_rng(0)
    parts = [sp.random_array((n, M), density=0.3, rng=rng, format="csr", dtype=np.float32) for n in (20, 1, 40)]
    parts[0].data[:] = 1
    parts[1].data = np.rint(parts[1].data * 300)
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    ss.convert(parts[0], path, columns={"y": np.arange(20)}, profile=request.param.split()[0])
    ss.open(path).append(parts[1], y=[20]).append(parts[2], y=np.arange(21, 61))
    return ss.open(path, mmap="without" not in request.param), sp.csr_array(sp.vstack(parts))


def indices() -> st.SearchStrategy[Any]:
    number = st.integers(-N, N - 1)
    bound = st.none() | st.integers(-2 * N, 2 * N)
    step = st.none() | st.integers(-7, 7).filter(bool)
    return st.one_of(
        number,
        st.builds(slice, bound, bound, step),
        st.lists(number, max_size=30),
        st.lists(number, max_size=30).map(lambda found: np.array(found, np.int32)),
        st.lists(st.booleans(), min_size=N, max_size=N).map(np.array),
    )


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=indices())
def test_rows_are_picked_as_scipy_picks_them(pair: tuple[ss.Store, sp.csr_array], key: Any) -> None:
    store, x = pair
    rows = np.arange(N)[key]
    expected = x[np.atleast_1d(rows)]
    found = store[key]
    assert isinstance(found, sp.csr_array)
    assert found.shape == expected.shape
    assert found.dtype == x.dtype
    assert (found != expected).nnz == 0
    found.check_format(full_check=True)
    assert np.array_equal(store.column("y")[key], rows)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (N, "index 61 is out of bounds for axis 0 with size 61"),
        (-N - 1, "index -62 is out of bounds for axis 0 with size 61"),
        ([3, 99], "index 99 is out of bounds for axis 0 with size 61"),
        (np.zeros(3, bool), "boolean index did not match indexed array along axis 0; size of axis is 61 but size of"),
        ([0.5], "arrays used as indices must be of integer"),
        ((1, 2), r"for features use select\(features=...\)"),
        (None, "can not pick rows"),
        (np.zeros((2, 2), int), "in one dimension, found 2"),
    ],
    ids=["int", "negative", "list", "mask", "float", "tuple", "newaxis", "2-D"],
)
def test_wrong_rows_are_an_index_error_in_numpys_words(
    pair: tuple[ss.Store, sp.csr_array], key: Any, error: str
) -> None:
    with pytest.raises(IndexError, match=error):
        pair[0][key]


def test_a_row_is_two_dimensional(pair: tuple[ss.Store, sp.csr_array]) -> None:
    assert pair[0][3].shape == (1, M)


def test_too_large_a_result_is_refused_with_both_numbers(
    pair: tuple[ss.Store, sp.csr_array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: 100)
    with pytest.raises(MemoryError, match=r"61 rows take about [\d,]+ bytes and 100 are free: take fewer rows"):
        pair[0][:]


def test_the_logical_dtype_comes_back_whatever_is_stored(tmp_path: Path) -> None:
    for dtype in ("float64", "float32", "int64", "int8", "uint16", "bool"):
        x = sp.csr_array(np.array([[0, 1], [1, 0]], dtype))
        store = ss.convert(x, tmp_path / dtype)
        assert store.dtype == dtype
        assert store[:].dtype == dtype
        assert (store[:].toarray() == x.toarray()).all()


def test_half_floats_come_back_as_floats_since_scipy_has_none(tmp_path: Path) -> None:
    store = ss.convert(np.array([[0, 0.1]], np.float16), tmp_path / "s.zarr")
    assert store.dtype == np.float16
    assert store[:].dtype == np.float32
    assert store[0].toarray()[0, 1] == np.float16(0.1)


def test_labels_of_several_outputs_come_back(tmp_path: Path) -> None:
    y = np.arange(12, dtype=np.float32).reshape(4, 3)
    store = ss.convert(np.eye(4), tmp_path / "s.zarr", columns={"y": y})
    assert store.column("y").shape == (4, 3)
    assert np.array_equal(store.column("y")[[2, 0]], y[[2, 0]])
    (batch,) = store.loader(4)
    assert np.array_equal(batch.y, y)


def test_an_unknown_column_is_named_with_those_there_are(pair: tuple[ss.Store, sp.csr_array]) -> None:
    with pytest.raises(KeyError, match=r"no column 'label': the store has \['y'\]"):
        pair[0].column("label")
    with pytest.raises(ValueError, match="no column 'label': the store has 'y'"):
        pair[0].loader(4, columns=("label",))


def test_features_are_renumbered_in_the_order_given(pair: tuple[ss.Store, sp.csr_array]) -> None:
    store, x = pair
    view = store.select(rows=slice(5, 50, 3), features=[7, 2, 8])
    assert view.shape == (15, 3)
    assert (view[:] != x[5:50:3][:, [7, 2, 8]]).nnz == 0
    assert (view.select(features=[2])[:] != x[5:50:3][:, [8]]).nnz == 0
    assert view.nnz == x[5:50:3][:, [7, 2, 8]].nnz
    rows = sp.vstack([batch.x for batch in view.loader(4)])
    assert (sp.csr_array(rows) != view[:]).nnz == 0
    with pytest.raises(IndexError, match="index 9 is out of bounds for axis 1 with size 9"):
        store.select(features=[9])


def read_elsewhere(loader: Any) -> list[np.ndarray]:
    return [batch.row_ids for batch in loader]


def test_stores_views_and_loaders_go_to_other_processes(pair: tuple[ss.Store, sp.csr_array]) -> None:
    store, x = pair
    view = pickle.loads(pickle.dumps(store.select(rows=slice(3, 50), features=[1, 4])))
    assert (view[:] != x[3:50][:, [1, 4]]).nnz == 0
    loaders = [store.loader(7, shuffle=True, seed=3, partition=p, n_partitions=2) for p in range(2)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(read_elsewhere, loaders)
    for loader, batches in zip(loaders, found, strict=True):
        assert all(np.array_equal(a, b.row_ids) for a, b in zip(batches, loader, strict=True))


def test_entries_are_counted_of_as_many_rows_as_there_are_in_another_order(tmp_path: Path) -> None:
    store = ss.convert(np.tri(4), tmp_path / "s.zarr")
    assert [store.select(rows=rows).nnz for rows in ([0] * 4, [3, 3, 1, 0], [3, 2, 1, 0])] == [4, 11, 10]


def test_a_view_of_rows_keeps_their_order_and_repeats(pair: tuple[ss.Store, sp.csr_array]) -> None:
    store, x = pair
    view = store.select(rows=[5, 1, 1, -1])
    assert (view[:] != x[[5, 1, 1, 60]]).nnz == 0
    assert view.column("y")[:].tolist() == [5, 1, 1, 60]
    assert store.select(rows=np.arange(N) % 2 == 0).shape == (31, M)


def test_row_ids_are_those_of_the_store_opened(pair: tuple[ss.Store, sp.csr_array]) -> None:
    store, _ = pair
    train, val = store.split(0.8, seed=1)
    for view in (train, val):
        for batch in view.loader(7, shuffle=True, seed=0):
            assert (store[batch.row_ids] != batch.x).nnz == 0
            assert np.array_equal(batch.y, batch.row_ids)


def test_splits_are_disjoint_whole_and_unmoved_by_appends(tmp_path: Path) -> None:
    y = np.arange(400) % 4
    store = ss.convert(sp.eye_array(400, format="csr"), tmp_path / "s.zarr", columns={"y": y, "user": y // 2})
    parts = store.split({"train": 0.5, "val": 0.25, "test": 0.25}, seed=5, stratify="y")
    ids = {name: np.concatenate([b.row_ids for b in part.loader(64)]) for name, part in parts.items()}
    assert sorted(np.concatenate(list(ids.values()))) == list(range(400))
    assert np.bincount(y[ids["test"]]).tolist() == [25] * 4
    grown = store.append(sp.csr_array((100, 400)), y=np.zeros(100, int), user=np.zeros(100, int))
    for name, part in grown.split({"train": 0.5, "val": 0.25, "test": 0.25}, seed=5, stratify="y").items():
        again = np.concatenate([b.row_ids for b in part.loader(64)])
        assert np.array_equal(again[again < 400], ids[name])
    train, val = store.split(0.5, group="user", seed=2)
    assert not set(train.column("user")[:]) & set(val.column("user")[:])
    assert [len(view) for view in store.split([0.5, 0.5])] == [200, 200]


def test_rows_without_a_value_are_split_by_what_they_lack(tmp_path: Path) -> None:
    mask = np.arange(400) % 4 == 0
    columns = {
        "y": np.ma.array(np.arange(400) % 2, mask=mask),
        "user": np.ma.array(np.where(mask, "", "a"), object, mask=mask),
    }
    store = ss.convert(sp.eye_array(400, format="csr"), tmp_path / "s.zarr", columns=columns)
    train, val = store.split(0.75, stratify="y")
    assert [int(view.column("y")[:].mask.sum()) for view in (train, val)] == [75, 25]
    sides = {tuple(len(view) for view in store.split(0.5, group="user", seed=seed)) for seed in range(20)}
    assert sides == {(0, 400), (400, 0), (100, 300), (300, 100)}


def test_a_part_split_again_by_group_has_its_shares(tmp_path: Path) -> None:
    users = np.arange(2000) // 2
    store = ss.convert(sp.csr_array((2000, 3)), tmp_path / "s.zarr", columns={"user": users})
    train, rest = store.split(0.5, group="user")
    for view in (train, rest, pickle.loads(pickle.dumps(rest)), rest.select(rows=slice(2, None), features=[1])):
        val, test = view.split(0.5, group="user")
        assert abs(len(val) / len(view) - 0.5) < 0.1
        assert not set(val.column("user")[:]) & set(test.column("user")[:])


@pytest.mark.parametrize(
    ("fractions", "error"),
    [(1.5, "fraction is 1.5"), ({"a": 0.7, "b": 0.7}, "add up to 1.4"), ([0.5, 0.0], "fraction of '1' is 0")],
)
def test_bad_fractions_are_named(pair: tuple[ss.Store, sp.csr_array], fractions: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        pair[0].split(fractions)


def test_an_appended_version_leaves_the_old_object_as_it_was(tmp_path: Path) -> None:
    first = ss.convert(np.eye(3), tmp_path / "s.zarr", columns={"y": [1, 2, 3]})
    second = first.append(np.ones((2, 3)), y=[4, 5])
    assert (first.shape, second.shape) == ((3, 3), (5, 3))
    assert first.column("y")[:].tolist() == [1, 2, 3]
    assert second.versions == [1, 2]
    assert ss.open(tmp_path / "s.zarr", version=1).shape == (3, 3)
    replaced = ss.convert(np.ones((1, 2)), tmp_path / "s.zarr", overwrite=True)
    assert (replaced.version, replaced.shape) == (3, (1, 2))
    assert (second[:].toarray() == np.vstack([np.eye(3), np.ones((2, 3))])).all()


def test_gc_keeps_what_the_kept_versions_need(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    ss.convert(np.eye(3), path)
    store = ss.convert(np.ones((2, 3)), path, overwrite=True)
    old = ss.open(path, version=1)
    assert old[:].nnz == 3
    planned = store.gc(older_than="0s", dry_run=True)
    assert len([key for key in planned if key.startswith("segments/")]) == 1
    assert len(list((path / "segments").iterdir())) == 2
    assert store.gc(older_than="0s") == planned
    assert store.versions == [2]
    assert store.verify() == []
    assert store[:].nnz == 6
    assert old[:].nnz == 3  # its map is its own
    with pytest.raises(FileNotFoundError, match="there is no version 1, there are 2"):
        ss.open(path, version=1)


def test_gc_leaves_what_a_running_writer_has_not_published(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    store = ss.convert(np.eye(3), path)
    with ss.store.append_to(path, max_bytes=2048) as writer:
        writer.append(np.ones((50_000, 3)))
        assert len(list((path / "segments").iterdir())) == 2
        assert store.gc(older_than=0) == []
    assert ss.open(path).shape == (50_003, 3)


def test_young_garbage_stays(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    store = ss.convert(np.eye(3), path)
    (path / "segments" / ("0" * 32)).mkdir()
    assert store.gc() == []
    for age in (np.int64(3600), np.float32(3600)):
        assert store.gc(older_than=age) == []
    assert store.gc(older_than="0s") == ["segments/" + "0" * 32]


@pytest.mark.parametrize("age", ["yesterday", "-3h", -1], ids=str)
def test_bad_ages_are_named(tmp_path: Path, age: Any) -> None:
    store = ss.convert(np.eye(3), tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="older_than is"):
        store.gc(older_than=age)


def test_a_missing_store_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such store: make one with"):
        ss.open(tmp_path / "none.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="is no sparsestore"):
        ss.open(tmp_path / "folder")


def test_an_unknown_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    ss.convert(np.eye(3), path)
    text = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(text.replace('"format":1', '"format":7'))
    with pytest.raises(ValueError, match="format 7 is not known to this release, which reads format 1: upgrade"):
        ss.open(path)


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scheme 'ftp' is not supported"):
        ss.open("ftp://host/x.zarr")
    ss.convert(np.eye(3), f"file://{tmp_path}/s.zarr")
    assert ss.open(tmp_path / "s.zarr").shape == (3, 3)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_bad_batch_size_is_named(pair: tuple[ss.Store, sp.csr_array], size: Any) -> None:
    with pytest.raises(ValueError, match=f"batch_size is {size}, expected an integer of at least 1"):
        pair[0].loader(size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_rows": 0}, "window_rows is 0, expected an integer of at least 1"),
        ({"window_rows": 4.0}, "window_rows is 4.0, expected an integer"),
        ({"block_rows": "atuo"}, "block_rows is 'atuo', expected an integer of at least 1, or 'auto'"),
        ({"block_rows": 10**30}, f"block_rows is {10**30}, expected an integer from 1 to"),
        ({"seed": 1.5}, "seed is 1.5, expected an integer"),
        ({"n_partitions": 2.0}, "n_partitions is 2.0, expected an integer"),
        ({"partition": -1}, "partition is -1, expected an integer of at least 0"),
        ({"dtype": "flaot32"}, "dtype is 'flaot32': data type 'flaot32' not understood"),
        ({"dtype": "U3"}, "dtype is <U3, expected bool, integers or floats"),
    ],
    ids=str,
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_bad_option_of_the_loader_is_named(
    pair: tuple[ss.Store, sp.csr_array], options: dict[str, Any], message: str, shuffle: bool
) -> None:
    with pytest.raises(ValueError, match=message):
        pair[0].loader(4, shuffle=shuffle, **options)


def test_a_shuffle_in_partitions_needs_a_seed(pair: tuple[ss.Store, sp.csr_array]) -> None:
    """Each would draw one of its own, and rows come twice or never."""
    with pytest.raises(ValueError, match=r"without a seed, and n_partitions=2: .* pass the same seed to all"):
        pair[0].loader(4, shuffle=True, n_partitions=2)
    halves = [pair[0].loader(4, shuffle=True, seed=5, partition=p, n_partitions=2) for p in range(2)]
    ids = [row for half in halves for batch in half for row in batch.row_ids.tolist()]
    assert len(ids) == len(set(ids)) > 0
    assert len(pair[0].loader(4, n_partitions=2)) == len(halves[0])


def test_a_state_of_a_window_of_any_size_is_taken(pair: tuple[ss.Store, sp.csr_array]) -> None:
    for shuffle in (False, True):
        loader = pair[0].loader(4, shuffle=shuffle, seed=0, window_rows=2**70)
        first = next(iter(loader))
        loader.load_state_dict({**loader.state_dict(), "batch": 0})
        assert np.array_equal(next(iter(loader)).row_ids, first.row_ids)


def test_numbers_of_numpy_do_not_spoil_the_state(pair: tuple[ss.Store, sp.csr_array]) -> None:
    loader = pair[0].loader(
        np.int32(4),
        shuffle=np.True_,
        seed=np.uint64(7),
        window_rows=np.int64(8),
        block_rows=np.int16(2),
        drop_remainder=np.False_,
        partition=np.int64(1),
        n_partitions=np.int64(2),
    )
    next(iter(loader))
    state = json.loads(json.dumps(loader.state_dict()))
    loader.load_state_dict(state)
    assert loader.state_dict() == state


def test_a_relative_path_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ss.convert(np.eye(3), "s.zarr", columns={"y": [0, 1, 2]})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert store[:].nnz == 3
    assert store.append(np.eye(3), y=[3, 4, 5])[:].nnz == 6
    assert store.verify() == []


def test_the_version_that_append_gives_is_the_one_that_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ss.convert(np.eye(3), tmp_path / "s.zarr")
    publish = ss.store.append_to.__globals__["Writer"].publish

    def publish_and_be_followed(writer: Any) -> Any:
        version = publish(writer)
        monkeypatch.undo()
        ss.open(tmp_path / "s.zarr").append(np.eye(3))
        return version

    monkeypatch.setattr("sparsestore.writer.Writer.publish", publish_and_be_followed)
    assert (store.append(np.eye(3)).version, ss.open(tmp_path / "s.zarr").version) == (2, 3)


def test_a_dense_batch_that_does_not_fit_in_memory_is_refused(tmp_path: Path) -> None:
    x = sp.csr_array((np.ones(2), ([0, 1], [0, 2**36 - 1])), shape=(2, 2**36))
    store = ss.convert(x, tmp_path / "wide.zarr")
    message = r"a dense batch of 2 rows x 68719476736 features takes 549,755,813,888 bytes and [\d,]+ are free"
    with pytest.raises(MemoryError, match=message):
        store.loader(4, layout="dense")
    with pytest.raises(MemoryError, match=message):
        store.plan(4, layout="dense")
    assert next(iter(store.loader(4))).x.nnz == 2


def test_a_plan_of_an_unknown_layout_is_refused(pair: tuple[ss.Store, sp.csr_array]) -> None:
    with pytest.raises(ValueError, match="layout is 'spares', expected one of 'sparse', 'dense'"):
        pair[0].plan(4, layout="spares")


def test_an_array_of_fractions_splits_as_a_list_does(pair: tuple[ss.Store, sp.csr_array]) -> None:
    assert [len(view) for view in pair[0].split(np.array([0.5, 0.25]))] == [
        len(view) for view in pair[0].split([0.5, 0.25])
    ]


def test_a_number_in_an_array_is_a_number(pair: tuple[ss.Store, sp.csr_array]) -> None:
    assert pair[0][np.array(-1)].shape == (1, M)
    assert pair[0].column("y")[np.array(7)] == 7
    assert np.shape(pair[0].column("y")[np.array(7)]) == ()


def test_a_view_without_rows_has_nothing_to_load(pair: tuple[ss.Store, sp.csr_array]) -> None:
    view = pair[0].select(rows=[])
    assert view[:].shape == (0, M)
    with pytest.raises(ValueError, match="the view has no rows"):
        view.loader(4)
    with pytest.raises(ValueError, match="the view has no rows"):
        view.plan(4)


def test_a_window_that_does_not_fit_in_memory_is_refused(
    pair: tuple[ss.Store, sp.csr_array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: 100)
    with pytest.raises(
        MemoryError, match=r"windows of \d+ rows and batches of \d+ take about [\d,]+ bytes and 100 are free"
    ):
        pair[0].loader(4)


def sorted_store(path: Path) -> ss.Store:
    n = 200_000
    y = np.repeat(np.arange(20), n // 20)
    x = sp.csr_array((np.ones(n, np.float32), np.arange(n) % 50, np.arange(n + 1)), shape=(n, 50))
    return ss.convert(x, path, columns={"y": y})


def test_auto_blocks_keep_the_drift_low_and_a_bad_size_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = sorted_store(tmp_path / "s.zarr")
    report = store.plan(256, seed=0)
    assert report.quality is not None
    assert report.block_rows == 2
    assert report.quality.drift <= 2
    assert "--shuffle" in str(report)
    with pytest.raises(ValueError, match=r"drift S = \d+\.\d, .*allow_poor_shuffle=True"):
        store.loader(256, shuffle=True, block_rows=1024)
    with pytest.warns(UserWarning, match="is a poor shuffle"):
        store.loader(256, shuffle=True, block_rows=1024, allow_poor_shuffle=True)
    with pytest.warns(UserWarning, match="drift S = 5.7"):
        store.loader(256, shuffle=True, block_rows=8)
    caplog.clear()
    for _ in range(2):
        store.loader(256, shuffle=True)
    (record,) = caplog.records
    assert "only 2 of them are read together" in record.message
    once = ss.convert(store[:], tmp_path / "t.zarr", columns={"y": store.column("y")[:]}, shuffle=True, seed=0)
    report = once.plan(256, seed=0)
    assert report.block_rows >= 1024
    assert report.advice is None


def test_rows_in_an_order_of_their_own_are_not_judged_by_their_order_on_disk(tmp_path: Path) -> None:
    n = 200_000
    y = np.random.default_rng(0).integers(0, 2, n)
    x = sp.csr_array((np.ones(n, np.float32), np.arange(n) % 50, np.arange(n + 1)), shape=(n, 50))
    store = ss.convert(x, tmp_path / "s.zarr", columns={"y": y}, shuffle=True, seed=0)
    assert store.plan(64).block_rows == 4096
    by_label = store.select(rows=np.argsort(store.column("y")[:], kind="stable"))
    plan = by_label.plan(64)
    assert plan.quality is not None
    assert (plan.block_rows, plan.quality.verdict) == (16, "unknown")


def test_advice_waits_for_the_first_shuffled_loader(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = sorted_store(tmp_path / "s.zarr")
    caplog.clear()
    store.loader(256)
    assert not caplog.records
    for _ in range(2):
        store.loader(256, shuffle=True)
    assert ["are read together" in record.message for record in caplog.records] == [True]


def test_the_plan_is_a_pure_function_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = sorted_store(tmp_path / "s.zarr")
    before = store.plan(128, seed=3).to_json()
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: 1 << 30)
    assert ss.open(tmp_path / "s.zarr").plan(128, seed=3).to_json() == before


def test_repr_and_html_show_the_facts(pair: tuple[ss.Store, sp.csr_array]) -> None:
    store, _ = pair
    assert "version 3" in repr(store)
    assert "61 x 9" in repr(store)
    assert "y (int64)" in repr(store)
    assert "<td>61 x 9</td>" in store._repr_html_()
    assert "<View" in repr(store.select(rows=[1]))


def test_bad_open_arguments_are_named(tmp_path: Path) -> None:
    ss.convert(np.eye(3), tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="check is 'sometimes', expected one of first, always, never"):
        ss.open(tmp_path / "s.zarr", check="sometimes")


def test_an_empty_store_has_no_segment(tmp_path: Path) -> None:
    with ss.create(tmp_path / "s.zarr", n_features=5, columns={"y": "int64"}):
        pass
    store = ss.open(tmp_path / "s.zarr")
    assert (store.shape, store.nnz) == ((0, 5), 0)
    assert store[:].shape == (0, 5)
    assert store.verify() == []
    assert store.append(np.eye(5), y=range(5)).shape == (5, 5)
