from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsestore.plan.quality import (
    auto_block_rows,
    default_window_rows,
    design_effect,
    drift,
    shuffle_quality,
    verdict,
)
from sparsestore.plan.window import Plan
from sparsestore.statistics import LabelAccumulator, LabelStatistics, merge


def known(*segments: NDArray[np.generic]) -> LabelStatistics:
    found = []
    for values in segments:
        accumulator = LabelAccumulator(values.dtype)
        accumulator.update(values)
        statistics = accumulator.finish()
        assert statistics is not None
        found.append(statistics)
    merged = merge(found)
    assert merged is not None
    return merged


class Correlated:
    """Labels with the same correlation at every distance inside a block of any size."""

    def __init__(self, rho: float) -> None:
        self.rho = rho

    def ratio(self, block_rows: int) -> float:
        return 1 + self.rho * (block_rows - 1)


MILLION = np.array([1_000_000])


@pytest.mark.parametrize(
    ("block_rows", "window_rows", "expected"),
    [(16, 65_536, 14.4), (64, 65_536, 57.1), (256, 262_144, 144.2), (4096, 16_384, 3808.9 * 4095 / 3915)],
    ids=str,
)
def test_drift_is_that_of_the_study(block_rows: int, window_rows: int, expected: float) -> None:
    # 600,000 rows sorted by label and topic; the study's rho was estimated and is a little below 1
    assert drift(1.0, block_rows, window_rows, 600_000) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("block_rows", "window_rows", "measured"),
    [(16, 16_384, 1.21), (64, 65_536, 1.22), (256, 16_384, 5.26), (1024, 65_536, 5.27), (4096, 16_384, 62.39)],
    ids=str,
)
def test_design_effect_is_what_was_measured(block_rows: int, window_rows: int, measured: float) -> None:
    assert design_effect(1.0, block_rows, window_rows, 600_000, 256) == pytest.approx(measured, rel=0.12)


def test_drift_is_what_a_simulated_epoch_shows() -> None:
    # the variance, over many epochs, of the mean label of a window of a plan, against that of independent rows
    y = np.repeat(np.random.default_rng(0).normal(size=1250), 16)
    window_rows = 2000
    plan = Plan(np.array([len(y)]), 100, 32, window_rows, shuffle=True, seed=0)
    means = [y[plan.window(epoch, 3).positions].mean() for epoch in range(1500)]
    observed = np.var(means) / (y.var() / window_rows)
    rho = (known(y).ratio(32) - 1) / 31
    assert drift(rho, 32, window_rows, len(y)) == pytest.approx(observed, rel=0.15)


@pytest.mark.parametrize(
    ("s", "expected"),
    [(1, "good"), (2, "good"), (2.1, "fair"), (4, "fair"), (4.1, "poor"), (16, "poor"), (16.1, "refused")],
)
def test_verdicts(s: float, expected: str) -> None:
    assert verdict(s) == expected
    assert verdict(math.nan) == "unknown"


def test_quality_of_sorted_and_of_shuffled_labels() -> None:
    y = np.repeat([0, 1], 500_000)
    bad = shuffle_quality(known(y), MILLION, batch_size=256, block_rows=64, window_rows=65_536)
    assert bad.rho == pytest.approx(1, abs=0.01)
    assert bad.drift == pytest.approx(1 + 63 * (1 - 65_536 / 1e6), rel=0.01)
    assert bad.effective_batch_size == pytest.approx(256 / (1 + 255 * 64 / 65_536), rel=0.01)
    assert bad.verdict == "refused"
    good = shuffle_quality(
        known(np.random.default_rng(0).permutation(y)), MILLION, batch_size=256, block_rows=4096, window_rows=65_536
    )
    assert good.drift < 2
    assert good.verdict == "good"
    assert good.effective_batch_size <= 256


def test_a_window_of_everything_is_a_full_shuffle() -> None:
    found = shuffle_quality(Correlated(1.0), np.array([5000]), batch_size=10, block_rows=4096, window_rows=5000)
    assert (found.drift, found.design_effect, found.effective_batch_size, found.verdict) == (1.0, 1.0, 10.0, "good")
    unknown = shuffle_quality(None, np.array([5000]), batch_size=10, block_rows=4096, window_rows=65_536)
    assert unknown.verdict == "good"
    assert auto_block_rows(Correlated(1.0), np.array([5000]), 5000) == 4096
    assert auto_block_rows(None, np.array([5000]), 65_536) == 4096


def test_blocks_of_one_row_are_a_full_shuffle() -> None:
    found = shuffle_quality(Correlated(1.0), MILLION, batch_size=256, block_rows=1, window_rows=65_536)
    assert (found.drift, found.design_effect) == (1.0, 1.0)


def test_labels_not_known_are_said_to_be() -> None:
    found = shuffle_quality(None, MILLION, batch_size=256, block_rows=16, window_rows=65_536)
    assert found.verdict == "unknown"
    assert math.isnan(found.drift)
    assert math.isnan(found.effective_batch_size)
    shuffled = shuffle_quality(None, MILLION, batch_size=256, block_rows=4096, window_rows=65_536, shuffled=True)
    assert (shuffled.drift, shuffled.verdict) == (1.0, "good")


def test_labels_spread_too_evenly_promise_no_more_than_a_full_shuffle() -> None:
    y = np.tile([0, 1], 500_000)
    found = shuffle_quality(known(y), MILLION, batch_size=256, block_rows=4096, window_rows=65_536)
    assert (found.rho, found.drift, found.effective_batch_size) == (0.0, 1.0, 256.0)
    assert auto_block_rows(known(y), MILLION, 65_536) == 4096


@pytest.mark.parametrize(
    ("rho", "expected"), [(1.0, 2), (0.3, 4), (0.05, 16), (0.01, 64), (0.001, 1024), (0.0001, 4096)], ids=str
)
def test_auto_takes_the_largest_good_block(rho: float, expected: int) -> None:
    size = auto_block_rows(Correlated(rho), MILLION, 65_536)
    assert size == expected
    assert drift(rho, size, 65_536, 1_000_000) <= 2
    assert size == 4096 or drift(rho, 2 * size, 65_536, 1_000_000) > 2


def test_rows_in_runs_of_eight_do_not_fool_it() -> None:
    y = np.repeat(np.random.default_rng(0).integers(0, 2, 125_000), 8)
    guess = (known(y).ratio(4096) - 1) / 4095
    assert drift(guess, 128, 65_536, 1_000_000) < 2  # what a single rho would allow
    assert auto_block_rows(known(y), MILLION, 65_536) == 2


class FineOnlyWhenLarge:
    def ratio(self, block_rows: int) -> float:
        return 8.0 if block_rows == 8 else 1.0


def test_every_smaller_block_must_be_good_too() -> None:
    assert auto_block_rows(FineOnlyWhenLarge(), MILLION, 65_536) == 4


def test_without_labels_it_goes_by_how_the_rows_were_written() -> None:
    assert auto_block_rows(None, MILLION, 65_536) == 16
    assert auto_block_rows(None, MILLION, 65_536, shuffled=True) == 4096
    # shuffled each by itself, but not alike: then the labels tell
    assert auto_block_rows(known(np.zeros(500_000), np.ones(500_000)), MILLION, 65_536, shuffled=True) == 2


def test_a_small_view_is_not_cut_into_a_few_blocks() -> None:
    rows = np.array([20_000])
    size = auto_block_rows(Correlated(0.0), rows, 4096)
    assert size == 1024
    assert 20_000 / size >= 16


def test_shuffled_labels_get_large_blocks_in_spite_of_noise() -> None:
    sizes = [
        auto_block_rows(known(np.random.default_rng(seed).normal(size=40_000)), np.array([40_000]), 16_384)
        for seed in range(40)
    ]
    assert sizes.count(2048) >= 36


def test_blocks_in_short_segments_count_with_the_rows_they_have() -> None:
    rng = np.random.default_rng(0)
    # 2000 segments of 100 rows, each of one label: a block is a segment at most, whatever block_rows says
    segments = [np.full(100, value) for value in rng.normal(size=2000)]
    rows = np.full(2000, 100)
    found = shuffle_quality(known(*segments), rows, batch_size=100, block_rows=4096, window_rows=20_000)
    assert found.rho == pytest.approx(1, abs=0.05)
    assert found.drift == pytest.approx(1 + 99 * 0.9, rel=0.05)
    assert auto_block_rows(known(*segments), rows, 20_000) == 2
    shuffled = [rng.normal(size=100) for _ in range(2000)]
    assert auto_block_rows(known(*shuffled), rows, 20_000) == 4096


@given(batch_size=st.integers(1, 200_000), bytes_per_row=st.floats(0, 1e9), window_bytes=st.integers(1, 2**40))
def test_the_default_window_is_whole_batches_that_fit(batch_size: int, bytes_per_row: float, window_bytes: int) -> None:
    rows = default_window_rows(batch_size, bytes_per_row, window_bytes)
    assert rows % batch_size == 0
    assert rows >= batch_size
    if rows > batch_size:
        assert rows <= 65_536
        assert rows * bytes_per_row <= window_bytes * (1 + 1e-9)
    larger = rows + batch_size
    assert larger > 65_536 or larger * bytes_per_row > window_bytes * (1 - 1e-9)


def test_refuses_a_batch_of_no_rows() -> None:
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        default_window_rows(0, 8)
