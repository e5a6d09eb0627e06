"""Numbers as text: what is written gives them back, and the compiled loops write what plain Python writes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsestore.kernels import decimals as d

EDGES = [0.0, -0.0, 1.0, -1.0, 0.1, 2.5, 1e-5, 1.5e-5, 1e-7, 123.456, 1e15, 2.0**53, 1e22, 1e23, 1e300, 5e-324, 1 / 3]
EDGES += [np.nan, np.inf, -np.inf, 1e-20, 0.3, 9007199254740991.0, 4503599627370497.5, 1e-22, 1.7976931348623157e308]


def texts(values: NDArray[Any]) -> list[str]:
    text, ends = d.spelled(d.decimals(values))
    return [text[a:b].tobytes().decode() for a, b in pairwise(ends)]


def same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan], expected[~nan])
    np.testing.assert_array_equal(np.signbit(found[~nan]), np.signbit(expected[~nan]))


def check(values: NDArray[Any]) -> None:
    """What is written gives the same numbers, in no more digits than Python needs, and as the twin has it."""
    written = texts(values)
    with np.errstate(invalid="ignore"):  # a NaN that signals
        same_bits(np.array([float(text) for text in written], np.float64).astype(values.dtype), values)
        same_bits(np.array(written).astype(values.dtype), values)
    for a, b in zip(d.decimals(values), d.decimals_numpy(values), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_edges_are_given_back(dtype: str) -> None:
    with np.errstate(over="ignore"):
        check(np.array(EDGES).astype(dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_any_bits_are_given_back(dtype: str) -> None:
    rng = np.random.default_rng(0)
    size = np.dtype(dtype).itemsize
    check(np.frombuffer(rng.bytes(500 * size), dtype))
    check(rng.random(500).astype(dtype))
    check((rng.integers(-(10**6), 10**6, 500) / 1000).astype(dtype))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(), max_size=20), st.lists(st.floats(width=32), max_size=20))
def test_any_floats_are_given_back(doubles: list[float], singles: list[float]) -> None:
    check(np.array(doubles, np.float64))
    check(np.array(singles, np.float32))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "bool"])
def test_whole_numbers_are_written_as_python_writes_them(dtype: str) -> None:
    ends = [False, True] if dtype == "bool" else [np.iinfo(dtype).min, 0, 1, 10, 99, np.iinfo(dtype).max]
    values = np.array(ends, dtype)
    assert texts(values) == [str(int(value)) for value in ends]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.0, "5"),
        (-2.5, "-2.5"),
        (0.1, "0.1"),
        (0.00001, "0.00001"),
        (0.000001, "1e-6"),
        (-1.25e-9, "-125e-11"),
        (123456.789, "123456.789"),
        (1e22, "1e+22"),
        (1 / 3, "0.3333333333333333"),
        (-0.0, "-0.0"),
    ],
)
def test_text_is_short(value: float, text: str) -> None:
    assert texts(np.array([value])) == [text]


def test_float32_needs_nine_digits_at_most() -> None:
    values = np.random.default_rng(0).random(10_000).astype(np.float32)
    assert max(len(text.removeprefix("0.").lstrip("0")) for text in texts(values)) <= 9
    assert texts(np.array([0.1, 16777216, 1e-40], np.float32)) == ["0.1", "16777216", "1e-40"]


def test_whole_float32_are_whole_for_who_reads_float64_first() -> None:
    values = np.array([2**24 + 2, 9.0752e15, 1e22, 3.4e38], np.float32)
    assert [float(text) for text in texts(values)] == values.tolist()


def test_seventeen_digits_are_written_by_the_compiled_loop() -> None:
    values = np.random.default_rng(0).random(5_000)
    numbers = d.decimals(values)
    assert len(numbers.odd_ends) < 50
    assert max(len(text.removeprefix("0.").replace(".", "").lstrip("0")) for text in texts(values[values > 1e-4])) == 17


@pytest.mark.parametrize("dtype", ["int32", pytest.param("int64", marks=pytest.mark.slow)])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_lines_are_those_of_the_twins(dtype: str, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 4), max_size=6))
    indptr = np.append(0, np.cumsum(lengths, dtype=np.int64))
    high = data.draw(st.sampled_from([9, 2**31 - 2]))
    indices = np.array(data.draw(st.lists(st.integers(0, high), min_size=sum(lengths), max_size=sum(lengths))), dtype)
    values = np.array(data.draw(st.lists(st.floats(), min_size=sum(lengths), max_size=sum(lengths))), np.float64)
    labels = np.array(
        data.draw(st.lists(st.floats(width=32), min_size=len(lengths), max_size=len(lengths))), np.float32
    )
    whole = st.integers(-(2**63), 2**63 - 1)
    qids = np.array(data.draw(st.just([]) | st.lists(whole, min_size=len(lengths), max_size=len(lengths))), np.int64)
    heads, numbers = d.spelled(d.decimals(labels)), d.decimals(values)
    rows = heads, qids, indptr, indices, numbers, data.draw(st.integers(0, 1))
    assert d.row_lines(*rows).tobytes() == d.row_lines_numpy(*rows).tobytes()
    names = None
    if high == 9 and data.draw(st.booleans()):
        names = d.spelled(d.decimals(np.arange(10, dtype=np.int64) ** 5))
    given_ = {"base": 1, "delimiter": ord("\t"), "names": names}
    triples = data.draw(st.integers(0, 2**40)), indptr, indices, numbers
    assert d.triple_lines(*triples, **given_).tobytes() == d.triple_lines_numpy(*triples, **given_).tobytes()  # type: ignore[arg-type]
