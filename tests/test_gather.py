"""Each compiled loop gives what its numpy twin gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsestore.kernels import gather

Array = NDArray[Any]
# each pair is compiled once: a few of each kind, as the reader meets them
INDICES = ["uint16", "int32", "int64"]
PAIRS = [
    ("uint8", "float32"),
    ("float32", "float32"),
    ("int64", "float64"),
    pytest.param("float64", "float32", marks=pytest.mark.slow),
    pytest.param("uint64", "uint64", marks=pytest.mark.slow),
]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Row lengths, many of them 0; starts in a source; targets in an output, rows in any order."""
    lengths = np.array(draw(st.lists(st.sampled_from([0, 0, 1, 2, 7]), max_size=12)), np.int64)
    order = np.array(draw(st.permutations(range(len(lengths)))), np.int64)
    starts = (np.cumsum(lengths) - lengths)[order].astype(np.uint64)
    lengths = lengths[order]
    return starts, lengths, np.cumsum(lengths) - lengths


def values(dtype: str, n: int) -> Array:
    if np.dtype(dtype).kind == "f":
        return np.random.default_rng(n).normal(size=n).astype(dtype)
    info = np.iinfo(dtype)
    return np.random.default_rng(n).integers(0, info.max, n, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("stored", INDICES)
@pytest.mark.parametrize(("data", "out"), PAIRS, ids=str)
@given(layout=layouts())
@settings(max_examples=25, deadline=None)
def test_gather(stored: str, data: str, out: str, layout: tuple[Array, Array, Array]) -> None:
    starts, lengths, targets = layout
    n = int(lengths.sum())
    indices = values(stored, n) % 30000
    found = [(np.zeros(n, np.int64), np.zeros(n, out)) for _ in range(2)]
    for loop, (out_indices, out_data) in zip((gather.gather, gather.gather_numpy), found, strict=True):
        loop(indices, values(data, n), starts, lengths, targets, out_indices, out_data)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("stored", INDICES)
@given(layout=layouts())
@settings(max_examples=25, deadline=None)
def test_gather_indices(stored: str, layout: tuple[Array, Array, Array]) -> None:
    starts, lengths, targets = layout
    n = int(lengths.sum())
    found = np.zeros((2, n), np.int64)
    gather.gather_indices(values(stored, n), starts, lengths, targets, found[0])
    gather.gather_indices_numpy(values(stored, n), starts, lengths, targets, found[1])
    np.testing.assert_array_equal(found[0], found[1])


def test_a_wide_feature_number_is_not_read_as_negative() -> None:
    out = np.zeros(1, np.int32)
    one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)
    gather.gather_indices(np.array([65535], np.uint16), zero.astype(np.uint64), one, zero, out)
    assert out.tolist() == [65535]


@pytest.mark.parametrize(("value", "dtype"), [(1, "float32"), (0.25, "float64"), (7, "uint8"), (2**64 - 1, "uint64")])
@given(layout=layouts())
@settings(max_examples=15, deadline=None)
def test_fill(value: float, dtype: str, layout: tuple[Array, Array, Array]) -> None:
    _, lengths, targets = layout
    found = np.zeros((2, int(lengths.sum())), dtype)
    keep = np.arange(len(lengths)) % 2 == 0
    gather.fill(value, lengths[keep], targets[keep], found[0])
    gather.fill_numpy(value, lengths[keep], targets[keep], found[1])
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("first", [0, 2**33 + 5], ids=["small", "past 2**33"])
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_locate(dtype: str, first: int, data: st.DataObject) -> None:
    n = data.draw(st.sampled_from([1, 7, 1024, 1025, 3000]))
    lengths = np.random.default_rng(n).integers(0, min(np.iinfo(dtype).max, 1000), n, dtype=dtype, endpoint=True)
    ends = first + np.cumsum(lengths, dtype=np.int64)
    anchors = (ends - lengths.astype(np.int64))[::1024]
    near = st.sampled_from([row for row in (0, 1, 1022, 1023, 1024, 1025, n - 2, n - 1) if 0 <= row < n])
    rows = np.array(data.draw(st.lists(near | st.integers(0, n - 1), max_size=20)), np.int64)
    if data.draw(st.booleans()) and len(rows):
        rows = np.arange(rows[0], min(rows[0] + 50, n))  # a run, as blocks are
    found = [(np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.int64)) for _ in range(2)]
    gather.locate(rows, lengths, anchors, *found[0])
    gather.locate_numpy(rows, lengths, anchors, *found[1])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("stored", [*INDICES, "int32"])
@pytest.mark.parametrize(("data", "dtype"), PAIRS, ids=str)
@given(layout=layouts(), width=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_scatter(stored: str, data: str, dtype: str, layout: tuple[Array, Array, Array], width: int) -> None:
    starts, lengths, _ = layout
    n = int((starts + lengths.astype(np.uint64)).max(initial=0))
    indices = (np.random.default_rng(n).permutation(n) % 45).astype(stored)  # some have no cell
    rows = np.arange(len(starts))
    if n % 2:  # others lie between
        rows = np.flatnonzero(np.random.default_rng(n).random(2 * len(starts)) < 0.8)[: len(starts)]
    starts, lengths = starts[: len(rows)], lengths[: len(rows)]
    for loops in ((gather.scatter, gather.scatter_numpy), (gather.scatter_constant, gather.scatter_constant_numpy)):
        entries = values(data, n) if loops[0] is gather.scatter else 3
        found = np.full((2, (rows.max(initial=-1) + 1) * width), 7, dtype)  # what a block held before is cleared
        outside = [
            loop(indices, entries, starts, lengths, rows, width, cells)
            for loop, cells in zip(loops, found, strict=True)
        ]
        np.testing.assert_array_equal(found[0], found[1])
        assert outside[0] == outside[1]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@given(seed=st.integers(0, 100), shape=st.tuples(st.integers(0, 6), st.integers(1, 6)))
@settings(max_examples=25, deadline=None)
def test_densify(dtype: str, seed: int, shape: tuple[int, int]) -> None:
    dense = np.random.default_rng(seed).integers(0, 3, shape).astype(dtype)
    indptr = np.concatenate([[0], np.count_nonzero(dense, axis=1).cumsum()]).astype(np.int64)
    indices, data = np.nonzero(dense)[1].astype(np.int32), dense[dense != 0]
    for loop in (gather.densify, gather.densify_numpy):
        out = np.zeros(shape, np.float32)
        loop(indptr, indices, data, out)
        np.testing.assert_array_equal(out, dense)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=6))
@settings(max_examples=100, deadline=None)
def test_first_descent(dtype: str, rows: list[list[int]]) -> None:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    indices = np.array([index for row in rows for index in row], dtype)
    expected = next((i for i, row in enumerate(rows) if sorted(set(row)) != row), -1)
    assert gather.first_descent(indptr, indices) == expected
    assert gather.first_descent_numpy(indptr, indices) == expected
