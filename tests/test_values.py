"""A value in another dtype is the same, or rounded where that is one of floats; all else is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sparsestore.values import cast

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
