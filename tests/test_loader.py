from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from fakes import AllRows, ChosenRows, FakeReader, make_loader, random_matrix, slow
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsestore
from sparsestore.batch import Batch, targets
from sparsestore.buffers import Buffers
from sparsestore.loader import Loader
from sparsestore.storage import LocalStorage

N_ROWS, N_FEATURES = 1003, 57
X = random_matrix(N_ROWS, N_FEATURES, 0.1)
Y = np.random.default_rng(1).integers(0, 5, N_ROWS)
WEIGHT = np.random.default_rng(2).random(N_ROWS)


def reader(**options: Any) -> FakeReader:
    return FakeReader(X, {"y": Y, "sample_weight": WEIGHT, "wide": np.arange(N_ROWS * 3).reshape(-1, 3)}, **options)


def row_ids(batches: Any) -> list[list[int]]:
    return [batch.row_ids.tolist() for batch in batches]


def same(a: Batch, b: Batch) -> bool:
    return (
        np.array_equal(a.row_ids, b.row_ids)
        and np.array_equal(a.x.toarray(), b.x.toarray())  # type: ignore[union-attr]
        and a.columns.keys() == b.columns.keys()
        and all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)
    )


@settings(max_examples=40, deadline=None)
@given(
    segments=st.lists(st.integers(0, 120), min_size=1, max_size=5).filter(any),
    batch_size=st.integers(1, 40),
    batches=st.integers(1, 5),
    block_rows=st.integers(1, 50),
    shuffle=st.booleans(),
    n_partitions=st.integers(1, 4),
)
def test_every_row_comes_once_with_its_values(
    segments: list[int], batch_size: int, batches: int, block_rows: int, shuffle: bool, n_partitions: int
) -> None:
    n = sum(segments)
    n_partitions = min(n_partitions, -(-n // batch_size))
    x, y = X[:n], Y[:n]
    seen = []
    for partition in range(n_partitions):
        loader = make_loader(
            FakeReader(x, {"y": y}),
            segments=segments,
            batch_size=batch_size,
            window_rows=batches * batch_size,
            block_rows=block_rows,
            shuffle=shuffle,
            partition=partition,
            n_partitions=n_partitions,
            columns=("y",),
        )
        got = list(loader)
        assert len(got) == len(loader)
        for batch in got:
            assert np.array_equal(batch.x.toarray(), x[batch.row_ids].toarray())  # type: ignore[union-attr]
            assert np.array_equal(batch.y, y[batch.row_ids])  # type: ignore[arg-type]
            seen.append(batch.row_ids)
    ids = np.sort(np.concatenate(seen))
    assert len(np.unique(ids)) == len(ids)
    assert n - len(ids) < n_partitions * batch_size  # batches that can not be dealt equally
    if n_partitions == 1:
        assert len(ids) == n
        if not shuffle:
            assert np.array_equal(np.concatenate(seen), np.arange(n))


def test_partitions_together_give_the_batches_of_one() -> None:
    whole = {tuple(ids) for ids in row_ids(make_loader(reader(), shuffle=True, batch_size=16))}
    for n_partitions in (2, 3, 8):
        parts = [
            make_loader(reader(), shuffle=True, batch_size=16, partition=p, n_partitions=n_partitions)
            for p in range(n_partitions)
        ]
        assert len({len(part) for part in parts}) == 1
        dealt = [tuple(ids) for part in parts for ids in row_ids(part)]
        assert len(dealt) == len(set(dealt)) == 63 // n_partitions * n_partitions
        assert set(dealt) <= whole


def test_each_iteration_is_the_next_epoch_in_a_new_order_and_seeds_repeat() -> None:
    loader, again = make_loader(reader(), shuffle=True, seed=7), make_loader(reader(), shuffle=True, seed=7)
    assert loader.epoch == 0
    first, second = row_ids(loader), row_ids(loader)
    assert loader.epoch == 2
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(N_ROWS))
    assert [row_ids(again), row_ids(again)] == [first, second]
    assert row_ids(make_loader(reader(), shuffle=True, seed=8)) != first


def test_an_abandoned_iteration_was_an_epoch() -> None:
    loader, other = make_loader(reader(), shuffle=True), make_loader(reader(), shuffle=True)
    for _ in loader:
        break
    list(other)
    assert row_ids(loader) == row_ids(other)


def test_two_iterations_at_once_do_not_disturb_each_other() -> None:
    alone = make_loader(reader(), shuffle=True)
    expected = [row_ids(alone), row_ids(alone)]
    loader = make_loader(reader(), shuffle=True)
    a, b = zip(*zip(iter(loader), iter(loader), strict=True), strict=True)
    assert [row_ids(a), row_ids(b)] == expected


def test_an_iteration_goes_on_in_its_order_whatever_state_is_loaded_meanwhile() -> None:
    expected = row_ids(make_loader(reader(), shuffle=True, seed=1))
    other = make_loader(reader(), shuffle=True, seed=2, block_rows=32, window_rows=64)
    loader = make_loader(reader(), shuffle=True, seed=1)
    begun = iter(loader)
    first = [next(begun).row_ids.tolist() for _ in range(3)]
    loader.load_state_dict(other.state_dict())
    assert first + row_ids(begun) == expected
    loader.load_state_dict(other.state_dict())
    assert row_ids(loader) == row_ids(other)


def test_drop_remainder_leaves_the_short_batch_out() -> None:
    loader = make_loader(reader(), drop_remainder=True)
    assert len(loader) == N_ROWS // 32
    assert {len(ids) for ids in row_ids(loader)} == {32}


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("n_partitions", [1, 3])
def test_a_resume_at_any_batch_equals_no_interruption(shuffle: bool, n_partitions: int) -> None:
    def fresh(seed: int = 3) -> Loader:
        return make_loader(
            reader(),
            batch_size=48,
            shuffle=shuffle,
            seed=seed,
            columns=("y",),
            n_partitions=n_partitions,
            partition=n_partitions - 1,
        )

    loader = fresh()
    list(loader)  # the interruption is in epoch 1
    states, expected = [loader.state_dict()], []
    for batch in loader:
        expected.append(batch)
        states.append(loader.state_dict())
    after = next(iter(loader))
    for k, state in enumerate(states):
        resumed = fresh(seed=99)  # the state's seed wins
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert resumed.state_dict() == state
        got = list(resumed)
        if k == len(expected):
            assert same(got[0], after)
        else:
            assert len(got) == len(expected) - k
            assert all(same(a, b) for a, b in zip(got, expected[k:], strict=True))
            assert same(next(iter(resumed)), after)


def test_a_state_tells_what_was_received_not_what_was_read() -> None:
    source = reader()
    loader = make_loader(source, batch_size=32)
    batches = iter(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 0)
    next(batches)
    until = time.monotonic() + 5
    while len(source.found) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    assert len(source.found) >= 2
    assert loader.state_dict()["batch"] == 1
    for _ in batches:
        pass
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)


def test_a_state_is_small_json() -> None:
    state = make_loader(reader(), shuffle=True, seed=5).state_dict()
    assert (
        json.loads(json.dumps(state))
        == state
        == {
            "version": 1,
            "fingerprint": "all",
            "batch_size": 32,
            "shuffle": True,
            "drop_remainder": False,
            "n_partitions": 1,
            "seed": 5,
            "block_rows": 4,
            "window_rows": 128,
            "epoch": 0,
            "batch": 0,
        }
    )


def test_a_state_brings_its_own_block_and_window_rows() -> None:
    loader = make_loader(reader(), shuffle=True, block_rows=8, window_rows=320)
    batches = iter(loader)
    next(batches)
    state, rest = loader.state_dict(), row_ids(batches)
    other = make_loader(reader(), shuffle=True, block_rows=2, window_rows=64)
    other.load_state_dict(state)
    assert (other.plan.block_rows, other.plan.window_rows) == (8, 320)
    assert row_ids(other) == rest


def test_rank_zero_can_save_for_all_partitions() -> None:
    parts = [make_loader(reader(), shuffle=True, partition=p, n_partitions=2) for p in range(2)]
    iterators = [iter(part) for part in parts]
    for _ in range(5):
        [next(batches) for batches in iterators]
    other = make_loader(reader(), shuffle=True, partition=1, n_partitions=2)
    other.load_state_dict(parts[0].state_dict())
    assert row_ids(other) == row_ids(iterators[1])


def test_a_state_of_another_loader_is_refused_naming_each_difference() -> None:
    state = make_loader(reader(), shuffle=True).state_dict()
    other = make_loader(
        reader(version=2),
        batch_size=16,
        drop_remainder=True,
        selection=AllRows(N_ROWS, "other"),
        n_partitions=2,
        features=np.array([1, 2]),
    )
    before = other.state_dict()
    with pytest.raises(ValueError, match="the state belongs to another loader") as caught:
        other.load_state_dict(state)
    for part in (
        "version is 1, here 2;",
        "fingerprint is 'all', here 'other/",
        "batch_size is 32, here 16;",
        "shuffle is True, here False;",
        "drop_remainder is False, here True;",
        "n_partitions is 1, here 2",
    ):
        assert part in str(caught.value)
    assert other.state_dict() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 32}, "batch of the state is 32, expected below 32, the batches of an epoch"),
        ({"batch": -1}, "batch of the state is -1, expected a whole number from 0"),
        ({"epoch": "one"}, "epoch of the state is 'one', expected a whole number from 0"),
        ({"seed": None}, "seed of the state is None"),
        ({"epoch": 2**64}, r"epoch of the state is 18446744073709551616, expected below 2\*\*64"),
        ({"block_rows": 2**64}, "block_rows is 18446744073709551616, expected at most 4294967296"),
        ({"block_rows": 2**62}, "block_rows is 4611686018427387904, expected at most 4294967296"),
        ({"window_rows": 33}, "window_rows is 33, expected a multiple of batch_size, 32"),
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    loader = make_loader(reader(), shuffle=True)
    before = loader.state_dict()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict({**before, **change})
    assert loader.state_dict() == before


def test_something_else_is_no_state() -> None:
    with pytest.raises(ValueError, match=r"not the state of a loader: it lacks version, fingerprint, .*, batch$"):
        make_loader(reader()).load_state_dict({})


def test_columns_become_y_and_sample_weight() -> None:
    batch = next(iter(make_loader(reader(), columns=("y", "sample_weight"))))
    assert np.array_equal(batch.y, Y[:32])  # type: ignore[arg-type]
    assert np.array_equal(batch.sample_weight, WEIGHT[:32])  # type: ignore[arg-type]
    assert list(batch.columns) == ["y", "sample_weight"]
    batch = next(iter(make_loader(reader(), columns=("wide", "y"))))
    assert isinstance(batch.y, dict)
    assert list(batch.y) == ["wide", "y"]
    assert batch.y["wide"].shape == (32, 3)
    assert batch.sample_weight is None
    assert next(iter(make_loader(reader()))).y is None
    assert targets({"wide": 1}) == (1, None)


def test_an_unknown_column_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no column 'z': the store has 'y', 'sample_weight', 'wide'"):
        make_loader(reader(), columns=("y", "z"))


def test_an_unknown_layout_is_named() -> None:
    with pytest.raises(ValueError, match="layout is 'coo', expected one of 'sparse', 'dense'"):
        make_loader(reader(), layout="coo")


def test_not_one_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="not one batch: 1003 rows in batches of 2000, drop_remainder=True"):
        make_loader(reader(), batch_size=2000, drop_remainder=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_dense_and_sparse_have_the_same_values_in_the_dtype_asked_for(dtype: str) -> None:
    source = FakeReader((X * 10).astype(np.int8))
    sparse = make_loader(source, shuffle=True, dtype=dtype)
    dense = make_loader(source, shuffle=True, dtype=dtype, layout="dense")
    for a, b in zip(sparse, dense, strict=True):
        assert isinstance(a.x, scipy.sparse.csr_array)
        assert isinstance(b.x, np.ndarray)
        assert a.x.dtype == b.x.dtype == dtype
        assert np.array_equal(a.x.toarray(), b.x)
        assert b.x.shape == (len(b.row_ids), N_FEATURES)


@pytest.mark.parametrize(
    ("values", "dtype", "stored"),
    [
        ([300, 1], "int8", "uint16"),
        ([300, 1], "int16", "uint16"),
        ([-1, 1], "uint8", "int8"),
        ([1.5, 1.0], "int64", "float64"),
        ([300, 300], "int8", "uint16"),
        ([1.5, 1.5], "int32", "float64"),
        ([np.nan, np.nan], "int32", "float64"),
    ],
)
def test_a_dtype_of_integers_that_may_lack_a_value_is_refused(
    values: list[float], dtype: str, stored: str, tmp_path: Path
) -> None:
    store = sparsestore.convert(np.array([[1], [1]]), tmp_path / "s.zarr")
    store = store.append(np.array(values)[:, None])
    with pytest.raises(
        ValueError, match=f"dtype is {dtype}, and rows 2 to 3 of .* stored as {stored}, .* {dtype} lacks"
    ):
        store.loader(2, dtype=dtype)
    assert len(store.loader(2, dtype="float32")) == 2
    ones = sparsestore.convert(np.ones((4, 1)), tmp_path / "ones.zarr")
    with pytest.raises(ValueError, match=f"rows 2 to 3 of .* {dtype} lacks"):
        ones.to_tf(2, inputs={"beside": store}, dtype=dtype)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([300, 2], "int32"), ([300.0, 2.0], "int64"), ([1.0, 1.0], "int8"), ([100, 100], "int8"), ([1.5, 0.0], "bool")],
)
def test_a_dtype_of_integers_that_has_all_stored_values_gives_them(
    values: list[float], dtype: str, tmp_path: Path
) -> None:
    store = sparsestore.convert(np.array(values)[:, None], tmp_path / "s.zarr")
    (batch,) = store.loader(2, dtype=dtype, layout="dense")
    assert batch.x.dtype == dtype
    assert batch.x[:, 0].tolist() == np.array(values).astype(dtype).tolist()


def test_scipy_has_no_float16_but_dense_batches_do() -> None:
    for features in (None, np.array([9, 3])):
        batch = next(iter(make_loader(reader(), dtype="float16", layout="dense", features=features)))
        assert batch.x.dtype == np.float16
        assert np.array_equal(
            batch.x, X[:32][:, features if features is not None else slice(None)].toarray().astype("f2")
        )
    with pytest.raises(ValueError, match='scipy has no sparse arrays of float16: take layout="dense"'):
        iter(make_loader(reader(), dtype="float16"))


@pytest.mark.parametrize("features", [[3, 7, 11], [40, 2, 2, 9], list(range(56, -1, -1)), []], ids=str)
def test_features_are_renumbered_in_the_order_given(features: list[int]) -> None:
    loader = make_loader(reader(), shuffle=True, features=np.array(features, np.int64))
    assert loader.n_features == len(features)
    for batch in loader:
        assert isinstance(batch.x, scipy.sparse.csr_array)
        fresh = scipy.sparse.csr_array((batch.x.data, batch.x.indices, batch.x.indptr), batch.x.shape)
        assert fresh.has_sorted_indices
        assert np.array_equal(batch.x.toarray(), X[batch.row_ids][:, features].toarray())


def test_a_view_gives_row_numbers_of_the_store() -> None:
    chosen = np.array([5, 1, 7, 1000, 5])
    (batch,) = make_loader(reader(), selection=ChosenRows(chosen), columns=("y",))
    assert batch.row_ids.tolist() == chosen.tolist()
    assert np.array_equal(batch.x.toarray(), X[chosen].toarray())  # type: ignore[union-attr]
    assert np.array_equal(batch.y, Y[chosen])  # type: ignore[arg-type]


def test_a_batch_never_changes_after_it_was_handed_out() -> None:
    loader = make_loader(reader(), shuffle=True, columns=("y",))
    kept = [(batch, batch.x.toarray(), batch.y.copy(), batch.row_ids.copy()) for _ in range(3) for batch in loader]  # type: ignore[union-attr]
    for batch, x, y, ids in kept:
        assert np.array_equal(batch.x.toarray(), x)  # type: ignore[union-attr]
        assert np.array_equal(batch.y, y)  # type: ignore[arg-type]
        assert np.array_equal(batch.row_ids, ids)


def test_batches_that_are_let_go_lie_in_few_blocks_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is the largest cost of a large batch: one is being used, one being made.

    On a busy machine a third is made where a batch is let go of late.
    """
    made: list[int] = []
    block = Buffers._block

    def counted(self: Buffers, size: int) -> Any:
        free = len(self._free)
        found = block(self, size)
        made.append(len(self._free) == free)
        return found

    monkeypatch.setattr(Buffers, "_block", counted)
    x = scipy.sparse.random_array((8 * 1024, 5000), density=0.06, format="csr", dtype=np.float32, rng=0)
    store = sparsestore.convert(x, tmp_path / "a.zarr")
    for batch in store.loader(batch_size=1024, shuffle=False):
        assert batch.x.shape == (1024, 5000)  # type: ignore[union-attr]
    assert sum(made) <= 3 < len(made)


@pytest.mark.parametrize("profile", ["raw", "compact"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_batches_are_the_same_where_memory_is_scarce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, dtype: str
) -> None:
    """Windows are then read around the page cache, into memory that the next window but one has again."""
    rng = np.random.default_rng(0)
    x = scipy.sparse.random_array((40_000, 300), density=0.2, format="csr", rng=0)
    x.data = (rng.integers(1, 255, x.nnz) if dtype == "uint8" else rng.normal(size=x.nnz)).astype(dtype)
    store = sparsestore.convert(x[:30_000], tmp_path / "a.zarr", profile=profile).append(x[30_000:])
    options: Any = {"batch_size": 500, "window_rows": 2000, "block_rows": 100, "seed": 0, "allow_poor_shuffle": True}
    asked: list[str] = []
    read_into = LocalStorage.read_into
    monkeypatch.setattr(
        LocalStorage,
        "read_into",
        lambda self, key, parts, direct: (asked.append(key) if direct else None) or read_into(self, key, parts),
    )
    expected = list(store.loader(**options))
    assert not asked
    n_bytes = x.nnz * (2 + x.dtype.itemsize)
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: n_bytes * 3 // 5)
    found = list(sparsestore.open(tmp_path / "a.zarr").loader(**options))
    assert bool(asked) is (profile == "raw")
    for one, other in zip(found, expected, strict=True):
        assert one.row_ids.tolist() == other.row_ids.tolist()
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(one.x, name), getattr(other.x, name))


def test_a_dense_batch_shows_nothing_of_what_its_memory_held(tmp_path: Path) -> None:
    """Of rows without entries neither, nor of a whole segment of such."""
    x = scipy.sparse.random_array((1200, 300), density=0.1, format="csr", dtype=np.float32, rng=0)
    nothing = scipy.sparse.csr_array((900, 300), dtype=np.float32)
    store = sparsestore.convert(x, tmp_path / "a.zarr").append(nothing)
    expected = np.vstack([x.toarray(), nothing.toarray()])
    loader = store.loader(batch_size=500, layout="dense", shuffle=True, seed=0)
    for _ in range(2):
        for batch in loader:
            np.testing.assert_array_equal(batch.x, expected[batch.row_ids])
            batch.x[:] = 7  # type: ignore[index]


def test_writing_into_a_batch_touches_no_other() -> None:
    expected = row_ids(make_loader(reader(), shuffle=True))
    loader = make_loader(reader(), shuffle=True, columns=("y",))
    for batch, ids in zip(loader, expected, strict=True):
        assert batch.row_ids.tolist() == ids
        assert np.array_equal(batch.x.toarray(), X[ids].toarray())  # type: ignore[union-attr]
        batch.x.data[:] = -1  # type: ignore[union-attr]
        batch.y[:] = -1  # type: ignore[index]
        batch.row_ids[:] = -1


def test_reads_ascend_and_only_what_a_piece_needs() -> None:
    source = reader()
    loader = make_loader(source, shuffle=True, batch_size=100, window_rows=500, partition=1, n_partitions=3)
    got = row_ids(loader)
    assert all((np.diff(rows) > 0).all() for rows in source.found)
    assert sum(map(len, source.found)) == sum(map(len, got))


def test_a_resume_reads_nothing_of_the_windows_before() -> None:
    source = reader()
    loader = make_loader(source, batch_size=10, window_rows=100)
    loader.load_state_dict({**loader.state_dict(), "batch": 75})
    list(loader)
    assert source.found[0][0] == 700


def test_the_next_window_is_read_while_the_consumer_works() -> None:
    source = reader(before_find=slow(0.03))
    loader = make_loader(source, batch_size=100, window_rows=100)
    started = time.monotonic()
    for _ in loader:
        time.sleep(0.03)
    assert time.monotonic() - started < 0.03 * 11 * 1.7


def test_an_error_of_the_reader_reaches_the_consumer_after_the_batches_before_it() -> None:
    def fail(call: int) -> None:
        if call == 2:
            raise OSError("flipped byte in window 2")

    loader = make_loader(reader(before_find=fail))
    got = []
    with pytest.raises(OSError, match="flipped byte in window 2"):
        got.extend(iter(loader))
    batches = iter(make_loader(reader(before_find=fail)))
    assert len([next(batches) for _ in range(8)]) == 8
    with pytest.raises(OSError, match="flipped"):
        next(batches)


@pytest.fixture
def workers() -> Iterator[Any]:
    def count() -> int:
        return sum(thread.name == "sparsestore-prefetch" for thread in threading.enumerate())

    assert count() == 0
    yield count
    assert count() == 0


@pytest.mark.parametrize("how", ["exhausted", "break", "forgotten", "closed", "error"])
def test_no_thread_outlives_its_iteration(how: str, workers: Any) -> None:
    loader = make_loader(reader())
    batches = iter(loader)
    assert workers() == 0
    next(batches)
    if how == "exhausted":
        list(batches)
    elif how == "closed":
        batches.close()  # type: ignore[attr-defined]
    elif how == "break":
        for _ in batches:
            break
        del batches
    elif how == "forgotten":
        del batches
    else:
        with pytest.raises(RuntimeError, match="mine"):
            batches.throw(RuntimeError("mine"))  # type: ignore[attr-defined]
    assert workers() == 0


def test_nothing_keeps_the_reader_but_the_loader_and_its_iterators() -> None:
    source = reader()
    alive = weakref.ref(source)
    loader = make_loader(source)
    batches = iter(loader)
    next(batches)
    del source, loader
    assert alive() is not None
    assert len(list(batches)) == 31
    del batches
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("mmap", [True, False])
def test_an_iteration_abandoned_half_way_leaves_no_file_open(tmp_path: Path, mmap: bool) -> None:
    """The fixtures of conftest look for files and threads after the test."""
    with sparsestore.create(tmp_path / "a.zarr", n_features=N_FEATURES, columns={"y": "int64"}) as writer:
        writer.append(X, y=Y)
    store = sparsestore.open(tmp_path / "a.zarr", mmap=mmap)
    batches = iter(store.loader(batch_size=8, window_rows=64, shuffle=True, seed=0, allow_poor_shuffle=True))
    batch = next(batches)
    assert np.array_equal(batch.x.toarray(), X[batch.row_ids].toarray())
    del batches, batch, store


def test_three_windows_are_alive_at_most() -> None:
    loader = make_loader(reader(), batch_size=32, window_rows=32)
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
    for batch in loader:
        del batch
    assert len(windows) == 32
    assert most <= 3  # the one just made included


def test_a_bridge_without_its_framework_names_the_extra() -> None:
    script = "import sys; sys.modules['tensorflow'] = None; import sparsestore.bridges.tensorflow"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'ImportError: to_tf needs TensorFlow: pip install "sparsestore[tensorflow]"' in done.stderr


def test_repr_tells_what_comes() -> None:
    text = repr(make_loader(reader(), partition=1, n_partitions=2))
    assert text == "<Loader: 16 batches of 32 rows x 57 features, sparse float32, partition 1 of 2, epoch 0>"


@pytest.mark.parametrize("n_workers", [1, 3, 40])
def test_shares_are_the_loader_dealt_out(n_workers: int) -> None:
    x = random_matrix(300, 20, 0.2)
    loader = make_loader(FakeReader(x), shuffle=True, batch_size=10)
    shares = [loader.share(worker, n_workers) for worker in range(n_workers)]
    assert sum(map(len, shares)) == len(loader) == 30
    found = [batch.row_ids.tolist() for share in shares for batch in share]
    assert sorted(found) == sorted(batch.row_ids.tolist() for batch in loader)
    assert loader.epoch == 1


def test_elements_are_made_of_strips_from_any_start() -> None:
    loader = make_loader(FakeReader(random_matrix(300, 20, 0.2)), shuffle=True)
    plain = make_loader(FakeReader(random_matrix(300, 20, 0.2)), shuffle=True)
    expected = [[batch.row_ids.tolist() for batch in plain] for _ in range(3)]

    def make(strip: Any) -> list[list[int]]:
        return [batch.row_ids.tolist() for batch in strip.batches()]

    assert list(loader.elements(make)) == expected[0]
    assert list(loader.elements(make, (2, 4))) == expected[2][4:]
    assert loader.following == (1, 0)  # a start that was given is no claim
    assert list(loader.elements(make)) == expected[1]


def test_row_lengths_are_those_of_rows_spread_over_the_view() -> None:
    x = random_matrix(300, 20, 0.2)
    chosen = np.arange(0, 300, 3)
    loader = make_loader(FakeReader(x), selection=ChosenRows(chosen))
    for most, rows, stride in ((1000, chosen, 1.0), (100, chosen, 1.0), (50, chosen[::2], 2.0)):
        found = loader.row_lengths(most)
        assert found is not None
        assert found[0].tolist() == np.diff(x.indptr)[rows].tolist()
        assert found[1] == stride
    assert make_loader(FakeReader(x), features=np.array([1, 2])).row_lengths(10) is None
