from __future__ import annotations

import pickle
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsestore.plan import shuffle
from sparsestore.plan.window import Plan

SEGMENTS = st.lists(st.integers(0, 70), min_size=1, max_size=12)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    batch = draw(st.integers(1, 12))
    return Plan(
        np.array(draw(SEGMENTS)),
        batch_size=batch,
        block_rows=draw(st.integers(1, 20)),
        window_rows=batch * draw(st.integers(1, 6)),
        shuffle=True,
        seed=draw(st.integers(0, 2**64 - 1)),
    )


def epoch_rows(plan: Plan, epoch: int) -> list[int]:
    rows: list[int] = []
    for w in range(plan.n_windows):
        window = plan.window(epoch, w)
        rows += (window.positions if window.order is None else window.positions[window.order]).tolist()
    return rows


def brute_force(plan: Plan, epoch: int) -> list[int]:
    """The rule as the documentation states it, with lists."""
    blocks, start = [], 0
    for rows in plan.segment_rows.tolist():
        stop = start + rows
        blocks += [list(range(at, min(at + plan.block_rows, stop))) for at in range(start, stop, plan.block_rows)]
        start = stop
    permuted = [blocks[i] for i in shuffle.order(plan.seed, shuffle.BLOCKS, epoch, 0, len(blocks))]
    laid = [row for block in permuted for row in block]
    rows = []
    for w, at in enumerate(range(0, len(laid), plan.window_rows)):
        window = sorted(laid[at : at + plan.window_rows])
        rows += [window[i] for i in shuffle.order(plan.seed, shuffle.WINDOW, epoch, w, len(window))]
    return rows


@given(plan=plans(), epoch=st.integers(0, 5))
@settings(deadline=None)
def test_windows_are_the_permuted_blocks_laid_end_to_end(plan: Plan, epoch: int) -> None:
    assert epoch_rows(plan, epoch) == brute_force(plan, epoch)


@settings(deadline=None)
@given(plan=plans(), feistel=st.booleans())
def test_every_row_comes_once(plan: Plan, feistel: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if feistel and plan.n_blocks > 1:
            patch.setattr(shuffle, "REAL_BELOW", 0)
        assert sorted(epoch_rows(plan, 1)) == list(range(plan.n_rows))


@given(plan=plans())
def test_the_same_twice_and_after_pickling(plan: Plan) -> None:
    first = epoch_rows(plan, 2)
    assert epoch_rows(plan, 2) == first
    assert epoch_rows(pickle.loads(pickle.dumps(plan)), 2) == first


def test_a_whole_small_epoch_is_pinned() -> None:
    # Every saved `state_dict`, every run that names its seed and every other reader of the format depends on these
    # rows: two segments, short blocks in both, blocks cut by window borders, a short last window.
    plan = Plan(np.array([11, 6]), batch_size=2, block_rows=4, window_rows=6, shuffle=True, seed=42)
    assert epoch_rows(plan, 3) == [16, 12, 13, 11, 14, 15, 4, 5, 0, 1, 7, 6, 9, 8, 2, 10, 3]


def test_epochs_and_seeds_give_other_orders() -> None:
    def rows(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(epoch_rows(Plan(np.array([100]), 5, 4, 20, True, seed), epoch))

    keys = [(seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({rows(*key) for key in keys}) == len(keys)  # (0, 1) and (1, 0) among them


@given(plan=plans(), w=st.integers(0, 30))
def test_positions_ascend_by_block(plan: Plan, w: int) -> None:
    if w < plan.n_windows:
        window = plan.window(0, w)
        assert (np.diff(window.positions) > 0).all()
        assert window.positions.dtype == np.int64
        assert window.order is not None
        assert window.order.dtype == np.int64
        full = w < plan.n_rows // plan.window_rows
        assert len(window.positions) == (plan.window_rows if full else plan.n_rows % plan.window_rows)


def test_unshuffled_rows_come_in_store_order() -> None:
    plan = Plan(np.array([5, 0, 8]), batch_size=2, block_rows=4, window_rows=4)
    assert epoch_rows(plan, 7) == list(range(13))
    assert plan.window(0, 3).order is None


@given(plan=plans())
def test_batches_are_counted(plan: Plan) -> None:
    dropped = Plan(plan.segment_rows, plan.batch_size, plan.block_rows, plan.window_rows, drop_remainder=True)
    batches = [range(at, min(at + plan.batch_size, plan.n_rows)) for at in range(0, plan.n_rows, plan.batch_size)]
    assert plan.n_batches == len(batches)
    assert dropped.n_batches == sum(len(batch) == plan.batch_size for batch in batches)


def test_an_empty_view_has_no_windows() -> None:
    plan = Plan(np.array([0, 0]), 4, 2, 8, shuffle=True)
    assert (plan.n_rows, plan.n_blocks, plan.n_windows, plan.n_batches) == (0, 0, 0, 0)
    with pytest.raises(IndexError, match="window 0 is out of bounds for an epoch of 0 windows"):
        plan.window(0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"block_rows": -1}, "block_rows is -1, expected at least 1"),
        ({"block_rows": 2**32 + 1}, "block_rows is 4294967297, expected at most 4294967296"),
        ({"window_rows": 0}, "window_rows is 0, expected at least 1"),
        ({"window_rows": 10}, "window_rows is 10, expected a multiple of batch_size, 4: for example 8"),
        ({"seed": -5}, "seed is -5, expected 0 <= seed"),
        ({"segment_rows": np.array([3, -1])}, r"segment_rows is \[ 3 -1\], expected a number of rows, 0 or more"),
    ],
    ids=[
        "batch_size",
        "block_rows",
        "too_many_block_rows",
        "window_rows",
        "not_a_multiple",
        "seed",
        "negative_segment",
    ],
)
def test_refuses_numbers_that_do_not_fit(change: dict[str, object], message: str) -> None:
    numbers: dict[str, object] = {"segment_rows": np.array([9]), "batch_size": 4, "block_rows": 2, "window_rows": 8}
    with pytest.raises(ValueError, match=message):
        Plan(**(numbers | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("block_rows", [1, 16, 4096])
def test_row_numbers_beyond_32_bits(block_rows: int) -> None:
    segments = np.array([2**33 + 5, 7, 2**32 + 1, 123])
    plan = Plan(segments, batch_size=64, block_rows=block_rows, window_rows=65_536, shuffle=True, seed=5)
    seen = [plan.window(4, w).positions for w in (0, 1, plan.n_windows // 2, plan.n_windows - 2, plan.n_windows - 1)]
    rows = np.concatenate(seen)
    assert len(np.unique(rows)) == len(rows) == 4 * 65_536 + plan.n_rows % 65_536
    assert rows.min() >= 0
    assert rows.max() < plan.n_rows
    assert rows.max() > 2**33


def test_many_segments_with_short_blocks_stay_exact() -> None:
    segments = np.random.default_rng(0).integers(0, 300, 5000)
    plan = Plan(segments, batch_size=1000, block_rows=64, window_rows=50_000, shuffle=True, seed=1)
    assert np.array_equal(np.sort(epoch_rows(plan, 0)), np.arange(segments.sum()))


@pytest.mark.parametrize("block_rows", [16, 4096])
def test_a_hundred_million_rows_are_planned_in_milliseconds_and_little_memory(block_rows: int) -> None:
    plan = Plan(np.full(4000, 25_001), 4096, block_rows, 65_536, shuffle=True, seed=0)
    assert plan.n_rows > 100_000_000
    tracemalloc.start()
    plan.window(0, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20
    took = []
    for w in range(1, 8):
        start = time.perf_counter()
        plan.window(0, w)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.02  # 1 to 3 ms where nothing else runs


def test_threads_share_one_block_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = shuffle.Permutation

    def slow(n: int, seed: int, epoch: int) -> shuffle.Permutation:
        made.append(epoch)
        time.sleep(0.02)
        return real(n, seed, epoch)

    monkeypatch.setattr(shuffle, "Permutation", slow)
    plan = Plan(np.array([1000]), 10, 8, 100, shuffle=True, seed=0)
    threads = [threading.Thread(target=plan.window, args=(5, w)) for w in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [5]
    plan.window(6, 0)
    plan.window(6, 1)
    assert made == [5, 6]
