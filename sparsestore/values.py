"""Values in another dtype: rounded where that is one of floats, else the same, or told not to fit. No I/O."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cast", "misfit"]

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


def misfit(row: int, feature: int, value: Any, dtype: np.dtype[Any]) -> ValueError:
    """The error that says of an entry that its value does not fit."""
    return ValueError(f"row {row}, feature {feature}: value {value} does not fit {dtype}: give a wider dtype=")
