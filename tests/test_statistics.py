from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsestore.statistics import BLOCK_SIZES, LabelAccumulator, LabelStatistics, RowCounts, merge

Array = NDArray[np.generic]


def gather(values: Array, *, step: int = 10**9, dtype: str | None = None) -> LabelStatistics | None:
    accumulator = LabelAccumulator(dtype or values.dtype, values.shape[1:])
    for at in range(0, len(values), step):
        accumulator.update(values[at : at + step])
    return accumulator.finish()


def known(values: Array, **options: int) -> LabelStatistics:
    statistics = gather(values, **options)  # type: ignore[arg-type]
    assert statistics is not None
    return statistics


def test_texts_of_any_length_are_classes_up_to_the_most() -> None:
    texts = np.array([f"class {i}" for i in range(64)], object)
    texts[0] += "z" * 100_000
    labels = texts[np.arange(70_000) % 64]
    statistics = known(labels, dtype="string", step=999)
    assert statistics.classes == tuple(sorted(texts))
    numbers = np.argsort(np.argsort(texts))[np.arange(70_000) % 64]
    assert np.array_equal(
        statistics.to_arrays()[0], known(numbers).to_arrays()[0][:, [0, 1, *range(3, 67), *range(68, 132)]]
    )
    assert gather(np.append(labels, "one more"), dtype="string") is None


def test_nuls_at_the_end_do_not_tell_texts_apart() -> None:
    statistics = known(np.array(["a", "a\0", "b\0", "\0", "a\0b"] * 3, object), dtype="string")
    assert statistics.classes == ("", "a", "a\0b", "b")


def one_hot(values: Array) -> Array:
    return (values[:, None] == np.unique(values)).astype(float)


def anova(values: Array, block_rows: int, segments: list[int] | None = None) -> float:
    """Between-block over total mean square, generalised to short blocks, with plain loops."""
    x = values.astype(float).reshape(len(values), -1)
    x = x - x.mean(axis=0)
    between = lengths = start = 0.0
    for rows in segments or [len(x)]:
        stop = start + rows
        for at in range(int(start), int(stop), block_rows):
            block = x[at : min(at + block_rows, int(stop))]
            between += (block.sum(axis=0) ** 2).sum()
            lengths += len(block) ** 2
        start = stop
    n = len(x)
    return float(between / (n - lengths / n) / ((x**2).sum() / (n - 1)))


def labels(kind: str, n: int) -> Array:
    rng = np.random.default_rng(n)
    drifting = np.sort(rng.integers(0, 5, n)) + rng.integers(0, 2, n)
    return {
        "uint8_two": lambda: (drifting > 3).astype(np.uint8),
        "bool": lambda: drifting > 2,
        "int64_six": lambda: drifting,
        "float_many": lambda: rng.normal(size=n).cumsum() + 1e6,
        "float32_many": lambda: (rng.normal(size=n) + drifting).astype(np.float32),
        "two_then_many": lambda: np.concatenate([drifting[: n // 2] > 2, rng.integers(0, 9, n - n // 2)]),
        "components": lambda: np.column_stack([drifting, rng.normal(size=n) * 100]),
    }[kind]()


KINDS = ["uint8_two", "bool", "int64_six", "float_many", "float32_many", "two_then_many", "components"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [5, 4096, 10_000, 140_001], ids=str)
def test_ratio_is_the_analysis_of_variance(kind: str, n: int) -> None:
    values = labels(kind, n)
    statistics = known(values, step=3001)
    assert statistics.n_rows == n
    channels = values if statistics.classes is None else one_hot(values)
    for size in (2, 8, 256, 4096):
        if size < n:
            assert statistics.ratio(size) == pytest.approx(anova(channels, size), rel=1e-6)


def test_equal_blocks_give_the_textbook_mean_squares() -> None:
    y = labels("float_many", 8192)
    blocks = y.reshape(-1, 64)
    between = 64 * blocks.mean(axis=1).var(ddof=1)
    assert known(y).ratio(64) == pytest.approx(between / y.var(ddof=1), rel=1e-6)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_shuffled_labels_have_ratio_one_and_sorted_ones_the_block_size(kind: str) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400_000).astype(np.uint8) if kind == "classes" else rng.normal(size=400_000)
    shuffled, in_order = known(y), known(np.sort(y))
    for size in (2, 16, 256, 4096):
        noise = math.sqrt(2 / (len(y) / size))
        assert abs(shuffled.ratio(size) - 1) < 4 * noise
        assert in_order.ratio(size) == pytest.approx(size, rel=0.03)


def test_rows_in_runs_are_seen_at_every_block_size() -> None:
    y = np.repeat(np.random.default_rng(1).integers(0, 2, 50_000), 8)
    statistics = known(y)
    assert [round(statistics.ratio(size)) for size in (2, 4, 8)] == [2, 4, 8]
    assert 6 < statistics.ratio(4096) < 10  # a guess of rho from 4096 alone would allow blocks of 500


@given(st.data())
def test_segments_merge_as_if_their_blocks_were_one_list(data: st.DataObject) -> None:
    n_classes = data.draw(st.sampled_from([1, 2, 3, 50, 200]))
    sizes = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=4))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # each segment about its own centre, and with its own classes
    values = [np.sort(rng.integers(0, n_classes, n)) + i * data.draw(st.integers(0, 3)) for i, n in enumerate(sizes)]
    merged = merge([known(part) for part in values])
    assert merged is not None
    y = np.concatenate(values)
    assert merged.classes == (tuple(np.unique(y).tolist()) if len(np.unique(y)) <= 64 else None)
    channels = y if merged.classes is None else one_hot(y)
    for size in (2, 64, 4096):
        blocks = sum(-(-n // size) for n in sizes)
        assert merged.blocks[BLOCK_SIZES.index(size)] == blocks
        if len(np.unique(y)) > 1 and blocks > 1:
            assert merged.ratio(size) == pytest.approx(anova(channels, size, sizes), rel=1e-6, abs=1e-9)


def test_a_segment_of_classes_merges_with_one_of_numbers() -> None:
    few, many = np.repeat([3, 7], 500), np.arange(1000)
    merged = merge([known(few), known(many)])
    assert merged is not None
    assert merged.classes is None
    assert merged.ratio(16) == pytest.approx(anova(np.concatenate([few, many]), 16, [1000, 1000]), rel=1e-9)


def test_numbers_far_from_zero_keep_their_variance() -> None:
    y = 1.7e9 + np.random.default_rng(0).normal(size=20_000)
    assert known(y).ratio(64) == pytest.approx(anova(y, 64), rel=1e-4)


@pytest.mark.parametrize(
    "y",
    [np.zeros(5000), np.full(5000, 0.1), np.full((5000, 2), 0.1), np.full(5000, "a")],
    ids=["0", "0.1", "2d", "str"],
)
def test_equal_labels_have_ratio_one(y: Array) -> None:
    statistics = gather(y, dtype="string" if y.dtype.kind == "U" else None)
    assert statistics is not None
    both = merge([statistics, statistics])
    assert both is not None
    assert statistics.ratio(64) == both.ratio(64) == 1.0


def test_one_block_tells_nothing() -> None:
    assert math.isnan(known(np.arange(100)).ratio(128))
    assert known(np.arange(1)).ratio(128) == 1.0


def test_between_and_beyond_the_stored_sizes_the_ratio_goes_on() -> None:
    statistics = known(np.repeat([0, 1], 50_000))
    assert statistics.ratio(1) == 1.0
    assert statistics.ratio(96) == pytest.approx(96, rel=0.01)
    assert statistics.ratio(8192) == pytest.approx(8192, rel=0.1)
    with pytest.raises(ValueError, match="block_rows is 0, expected at least 1"):
        statistics.ratio(0)


@pytest.mark.parametrize("dtype", ["U", object], ids=["U", "object"])
def test_strings_are_classes(dtype: object) -> None:
    codes = np.sort(np.random.default_rng(0).integers(0, 5, 10_000))
    words = np.array(["vier", "ä", "b", "c", "d"])[codes].astype(dtype)  # type: ignore[call-overload]
    accumulator = LabelAccumulator("string")
    accumulator.update(words)
    statistics = accumulator.finish()
    assert statistics is not None
    assert statistics.classes == ("b", "c", "d", "vier", "ä")
    assert statistics.ratio(16) == pytest.approx(known(codes).ratio(16))


def test_strings_of_too_many_values_have_no_statistics() -> None:
    many = np.arange(1000).astype(str)
    assert gather(many, dtype="string") is None
    parts = [gather(many[at : at + 40], dtype="string") for at in (0, 40)]
    assert merge([part for part in parts if part is not None]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
@pytest.mark.parametrize("n", [10, 100_000], ids=str)
def test_labels_that_are_not_finite_have_no_statistics(bad: float, n: int) -> None:
    y = np.zeros(n)
    y[n // 2] = bad
    assert gather(y) is None


def test_no_rows_have_no_statistics() -> None:
    assert gather(np.zeros(0)) is None


def test_sixty_four_classes_are_classes_and_sixty_five_are_numbers() -> None:
    assert known(np.arange(64).repeat(9)).classes == tuple(range(64))
    assert known(np.arange(65).repeat(9)).classes is None
    late = np.concatenate([np.arange(40).repeat(2000), np.arange(30, 80)])
    assert known(late, step=100).classes is None
    assert known(late, step=100).ratio(32) == pytest.approx(anova(late, 32), rel=1e-9)


def test_the_caller_may_write_on_into_its_array() -> None:
    buffer, accumulator = np.zeros(100), LabelAccumulator("float64")
    for value in range(10):
        buffer[:] = value
        accumulator.update(buffer)
    statistics = accumulator.finish()
    assert statistics is not None
    assert statistics.classes == tuple(range(10))


@pytest.mark.parametrize("kind", [*KINDS, "strings"])
def test_what_is_stored_comes_back(kind: str) -> None:
    y = labels("int64_six", 9000).astype(str) if kind == "strings" else labels(kind, 9000)
    statistics = gather(y, dtype="string" if kind == "strings" else None)
    assert statistics is not None
    array, attributes = statistics.to_arrays()
    assert array.dtype == np.float64
    assert array.ndim == 2
    back = LabelStatistics.from_arrays(array, json.loads(json.dumps(attributes)))
    assert back.classes == statistics.classes
    assert back.n_rows == 9000
    assert [back.ratio(size) for size in BLOCK_SIZES] == [statistics.ratio(size) for size in BLOCK_SIZES]


def test_refuses_arrays_that_do_not_fit() -> None:
    array, attributes = known(np.arange(100)).to_arrays()
    with pytest.raises(ValueError, match=r"label statistics have shape \(12, 4\) .* expected \(13, 4\)"):
        LabelStatistics.from_arrays(array[1:], attributes)


def test_refuses_to_merge_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match="at least one segment"):
        merge([])
    with pytest.raises(ValueError, match=r"different numbers of components: \[1, 3\]"):
        merge([known(np.arange(100)), known(np.zeros((5, 3)))])


def test_labels_are_gathered_fast() -> None:
    y = np.random.default_rng(0).integers(0, 2, 1_000_000).astype(np.uint8)
    start = time.perf_counter()
    known(y, step=65_536)
    assert time.perf_counter() - start < 0.2  # 0.01 s where nothing else runs


@given(st.lists(st.lists(st.integers(0, 1000), max_size=700), max_size=6))
def test_row_counts_are_sums_of_256_rows(parts: list[list[int]]) -> None:
    counts = RowCounts()
    for part in parts:
        counts.update(np.array(part, np.int64))
    rows = [length for part in parts for length in part]
    assert counts.finish().tolist() == [sum(rows[at : at + 256]) for at in range(0, len(rows), 256)]
    assert counts.longest == max(rows, default=0)


def test_row_counts_widen_when_they_must() -> None:
    counts = RowCounts()
    counts.update(np.full(3, 2**30))
    assert counts.finish().dtype == np.uint32
    counts.update(np.full(3, 2**30))
    assert counts.finish().dtype == np.uint64
    assert counts.finish().tolist() == [6 * 2**30]


@given(
    values=st.lists(
        st.one_of(
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.floats(-1e150, 1e150),
            st.sampled_from([0.0, 1.0, -1.0, 3.4028234663852886e38, 1e-300, 1e100]),
        ),
        min_size=1,
        max_size=80,
    ),
    step=st.integers(1, 80),
)
def test_statistics_of_any_labels_are_taken_for_such(values: list[float], step: int) -> None:
    """Numbers of very different size lose digits where they are added: that is no damage."""
    statistics = gather(np.array(values), step=step)
    if statistics is not None:
        again = LabelStatistics.from_arrays(*statistics.to_arrays())
        assert np.array_equal(again.squares, statistics.squares)
        assert again.classes == statistics.classes
