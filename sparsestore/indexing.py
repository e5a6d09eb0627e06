"""numpy's ways to name rows, as row numbers, with numpy's words where they are wrong. A leaf."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["row_numbers"]


def row_numbers(key: Any, n: int, *, axis: int = 0) -> NDArray[np.int64]:
    """Numbers, 0 to n - 1, of the rows that `key` picks from n: an int, a slice, integers (with repeats) or a mask.

    Raises
    ------
    IndexError
        As numpy words it.

    Examples
    --------
    >>> row_numbers([-1, 0], 5), row_numbers(slice(None, None, -2), 5)
    (array([4, 0]), array([4, 2, 0]))
    """
    if isinstance(key, slice):
        return np.arange(*key.indices(n), dtype=np.int64)
    if isinstance(key, tuple) or key is None or key is Ellipsis:
        raise IndexError(
            f"{key!r} can not pick rows: use an integer, a slice, integers or a boolean mask; "
            f"for features use select(features=...)"
        )
    if isinstance(key, np.ndarray) and key.ndim == 0 and key.dtype.kind in "iu":
        key = key[()]  # to numpy an integer like any other
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        if not -n <= key < n:
            raise IndexError(f"index {key} is out of bounds for axis {axis} with size {n}")
        return np.array([int(key) % n], np.int64)
    given = np.asarray(key)
    if given.size == 0 and given.ndim == 1 and given.dtype.kind == "f" and not isinstance(key, np.ndarray):
        given = given.astype(np.int64)  # [] is no array of floats
    if given.dtype == np.bool_:
        if given.shape != (n,):
            size = len(given) if given.ndim == 1 else given.shape
            raise IndexError(
                f"boolean index did not match indexed array along axis {axis}; size of axis is {n} but size of "
                f"corresponding boolean axis is {size}"
            )
        return np.flatnonzero(given).astype(np.int64)
    if given.dtype.kind not in "iu":
        raise IndexError("arrays used as indices must be of integer (or boolean) type")
    if given.ndim != 1:
        raise IndexError(f"rows are picked by integers in one dimension, found {given.ndim}")
    wrong = (given >= n) | (given < -n)
    if wrong.any():
        raise IndexError(f"index {given[np.argmax(wrong)]} is out of bounds for axis {axis} with size {n}")
    numbers = given.astype(np.int64)
    numbers[numbers < 0] += n
    return numbers
