"""Row offsets to row lengths, which take an eighth of the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels.native import Kernel

__all__ = ["narrow", "narrow_numpy"]

Array = NDArray[Any]


@Kernel
def narrow(offsets: Array, longest: int, total: int, out_lengths: Array) -> int:
    """Lengths of the rows between offsets; whether (0 or 1) the offsets ascend from 0 or more to at most `total`.

    Parameters
    ----------
    offsets : (n + 1,) int64 array
    longest : int
        No step may be larger.
    total : int
    out_lengths : (n,) unsigned array
        Holds `longest`.
    """
    # as unsigned numbers those below 0 are beyond any total, and so is the step to a smaller one beyond any length
    bad = np.uint64(offsets[0]) > np.uint64(total)
    for i in range(len(out_lengths)):
        at, end = np.uint64(offsets[np.uint64(i)]), np.uint64(offsets[np.uint64(i) + np.uint64(1)])
        bad |= (end - at > np.uint64(longest)) | (end > np.uint64(total))
        out_lengths[np.uint64(i)] = end - at
    return 0 if bad else 1


def narrow_numpy(offsets: Array, longest: int, total: int, out_lengths: Array) -> int:
    """Twin of `narrow`."""
    steps = np.diff(offsets.astype(object))
    sound = bool(((steps >= 0) & (steps <= longest)).all() and offsets.min() >= 0 and offsets.max() <= total)
    if sound:
        out_lengths[:] = steps.astype(np.int64)
    return int(sound)
