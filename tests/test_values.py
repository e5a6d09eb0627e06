"""A value in another dtype, and a sum, is the same, or rounded where that is one of floats; all else is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsestore.values import cast, sums

DTYPES = ["bool", *[f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)], *"efd"]
EDGES = [0, 1, -1, 2.5, -0.0, math.nan, math.inf, -math.inf, 65504, 65536, 1e300, 3.5e38, 2**53 + 1]
EDGES += [sign * 2**bits + more for bits in (7, 8, 15, 16, 31, 32, 63, 64) for sign in (1, -1) for more in (-1, 0, 1)]


def values_of(dtype: Any) -> Any:
    """The edges that a dtype has, exactly or rounded."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array([float(edge) for edge in EDGES]).astype(dtype)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.array([int(edge) for edge in EDGES if math.isfinite(edge) and low <= edge <= high], dtype)


def fits(value: Any, dtype: Any) -> bool:
    """As Python's numbers, which have no end, say it."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return not math.isfinite(value) or bool(np.isfinite(np.array([value]).astype(dtype)[0]))
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return math.isfinite(value) and value == int(value) and low <= int(value) <= high


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_a_value_fits_or_is_told(given: str, wanted: str) -> None:
    values, dtype = values_of(np.dtype(given)), np.dtype(wanted)
    for i, value in enumerate(values.tolist()):
        out, at = cast(values[i : i + 1], dtype)
        assert (at is None) == fits(value, dtype), (value, given, wanted)
        if at is None and dtype.kind != "f":
            assert out.tolist() == [value]
    _, at = cast(values, dtype)
    wrong = [i for i, value in enumerate(values.tolist()) if not fits(value, dtype)]
    assert at == (wrong[0] if wrong else None)


@given(data=st.data(), name=st.sampled_from(DTYPES[1:]))
def test_a_sum_is_that_of_pythons_numbers_or_told(data: st.DataObject, name: str) -> None:
    dtype = np.dtype(name)
    edges = [value for value in values_of(dtype).tolist() if value == value]
    runs = data.draw(st.lists(st.lists(st.sampled_from(edges), min_size=1, max_size=4), min_size=1, max_size=4))
    starts = np.cumsum([0, *map(len, runs[:-1])])
    out, at = sums(np.array([value for run in runs for value in run], dtype), starts)
    if dtype.kind != "f":
        fine = [np.iinfo(dtype).min <= sum(run) <= np.iinfo(dtype).max for run in runs]
        assert at == (None if all(fine) else fine.index(False))
        assert [total for total, known in zip(out.tolist(), fine, strict=True) if known] == [
            sum(run) for run, known in zip(runs, fine, strict=True) if known
        ]
        return
    for number, run in enumerate(runs[:at]):  # up to the one that does not fit
        with np.errstate(over="ignore", invalid="ignore"):
            expected = np.array(sum(run)).astype(dtype)
        np.testing.assert_array_equal(out[number], expected)
        assert np.isfinite(out[number]) or not all(map(math.isfinite, run))
    if at is not None:
        assert all(map(math.isfinite, runs[at]))
        assert not np.isfinite(out[at])


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_sum_of_whole_numbers_is_exact_or_told(name: str) -> None:
    most = 2**24 if name == "float32" else 2**53 - 1
    fine = [[1, 2], [most, -1, 1], [most - 1, 1], [-most, 1, -1], [5], [most, most, -most, -most + 1]]
    for run in fine:
        out, at = sums(np.array([*run, 7], name), np.array([0, len(run)]), whole=True)
        assert (out.tolist(), at) == ([sum(run), 7], None)
    for run in ([most, 1], [most - 2, 2, 1, 0], [-most, -1]):
        assert sums(np.array([7, *run], name), np.array([0, 1]), whole=True)[1] == 1


def test_the_sum_of_booleans_is_any_of_them() -> None:
    out, at = sums(np.array([True, True, False, False, True]), np.array([0, 2, 4]))
    assert (out.tolist(), at) == ([True, False, True], None)
