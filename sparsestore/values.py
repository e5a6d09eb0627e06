"""Values in another dtype, and sums of them: rounded where these are floats, else exact, or told not to fit. No I/O."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cast", "misfit", "overflow", "sums"]

Array = NDArray[Any]


def cast(values: Array, dtype: np.dtype[Any]) -> tuple[Array, int | None]:
    """Values in a dtype, and the place of the first that does not fit, or None.

    Floats may be rounded. Any other change does not fit, and neither does a number that would become inf.

    Examples
    --------
    >>> cast(np.array([0.5, 1e300]), np.dtype("float32"))[1]
    1
    """
    found = values.dtype
    if found == dtype:
        return values, None
    with np.errstate(over="ignore", invalid="ignore"):
        out = values.astype(dtype)
        if _holds_all(dtype, found):
            return out, None
        if dtype.kind == "f":
            bad = np.isinf(out)
            if bad.any():
                bad &= np.isfinite(values)
        else:
            bad = out != values
            if found.kind == "f" and dtype.kind != "b":
                # what these become is up to the processor, and may look right
                bad |= values >= float(np.iinfo(dtype).max + 1)
    return out, int(np.argmax(bad)) if bad.any() else None


def _holds_all(dtype: np.dtype[Any], found: np.dtype[Any]) -> bool:
    """Whether the dtypes alone tell that all values fit."""
    if dtype.kind == "f" and found.kind in "iu":
        return int(np.iinfo(found).max) <= float(np.finfo(dtype).max)
    return np.can_cast(found, dtype, "safe")


def misfit(value: Any, dtype: np.dtype[Any]) -> str:
    """What is to be said of a place whose value does not fit."""
    return f"value {value} does not fit {dtype}: give a wider dtype="


def sums(values: Array, starts: NDArray[np.int64], *, whole: bool = False) -> tuple[Array, int | None]:
    """Sums of runs of values that begin at `starts`, in their dtype, and the number of the first that does not fit.

    Integers are summed exactly, floats in float64, and of booleans any is the sum. A sum is inf or nan only where a
    value of the run is. With `whole`, floats are whole numbers, and so are their sums, exactly, or they do not fit.

    Examples
    --------
    >>> sums(np.array([200, 50, 200, 100], np.uint8), np.array([0, 2]))[1]
    1
    """
    if values.dtype.kind == "b":
        return np.logical_or.reduceat(values, starts), None
    if values.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            out = np.add.reduceat(values, starts, dtype=np.float64).astype(values.dtype, copy=False)
        bad = ~np.isfinite(out)
        if bad.any():
            bad &= np.logical_and.reduceat(np.isfinite(values), starts)
        if whole:
            bad |= _rounded(values, starts, out)
    else:
        wide = np.add.reduceat(values, starts, dtype=np.uint64 if values.dtype == np.uint64 else np.int64)
        limits = np.iinfo(values.dtype)
        bad = (wide < limits.min) | (wide > limits.max)
        most = max(int(values.max(initial=0)), -int(values.min(initial=0)))
        if values.dtype.itemsize == 8 and most * len(values) >= 2**62:
            # sums of 64 bits can wrap: where the rounded sum comes near the limits, Python's integers decide
            near = np.flatnonzero(np.abs(np.add.reduceat(values, starts, dtype=np.float64)) >= 2.0**62)
            stops = np.append(starts[1:], len(values))
            for at in near.tolist():
                bad[at] |= not limits.min <= sum(values[starts[at] : stops[at]].tolist()) <= limits.max
        out = wide.astype(values.dtype)
    return out, int(np.argmax(bad)) if bad.any() else None


def _rounded(values: Array, starts: NDArray[np.int64], out: Array) -> NDArray[np.bool_]:
    """Where the sum of a run of whole numbers is another one in floats, which read a next one alike from 2**53 on."""
    exact = np.add.reduceat(values, starts, dtype=np.float64)
    bad: NDArray[np.bool_] = exact != out
    stops = np.append(starts[1:], len(values))
    for at in np.flatnonzero(np.add.reduceat(np.abs(values), starts, dtype=np.float64) >= 2.0**53).tolist():
        total = sum(map(int, values[starts[at] : stops[at]].tolist()))
        bad[at] = abs(total) >= 2**53 or total != float(out[at])
    return bad


def overflow(dtype: np.dtype[Any]) -> str:
    """What is to be said of a place whose sum does not fit."""
    return f"the sum of its duplicates does not fit {dtype}: give a wider dtype="
