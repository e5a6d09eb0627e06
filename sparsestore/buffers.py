"""Memory for batches: handed out as arrays, taken back when the last of their views is gone. A leaf.

Fresh pages are the largest cost of copying rows: the kernel clears each before it gives it. So large arrays lie on
pages of 2 MiB where the system has them, which come five times as fast as those of 4 KiB, and are used again once
nobody can see them any more.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Buffers"]

HUGE_PAGE = 1 << 21
LEAST_BYTES = 1 << 18
"""Smaller arrays are the C library's: it has such memory at hand, and a page more or less is no matter."""
KEPT = 3
"""Blocks kept for the next array: as many as a consumer and a thread that reads ahead of it have in turns."""


class Buffers:
    """Gives arrays over blocks of memory that are recycled.

    A block is taken back when nothing refers to its array or a view of it any more: numpy keeps the owner of the memory
    alive for every view, however made, and so do those that share numpy's memory, as TensorFlow does. Until then nobody
    else writes to it. May be called from several threads at once.

    Examples
    --------
    >>> buffers = Buffers()
    >>> kept = buffers.empty(1 << 20, "float32")[10:]
    >>> kept[:] = 1
    >>> other = buffers.empty(1 << 20, "float32")
    >>> other[:] = 2
    >>> float(kept.max()), kept.ctypes.data % 64
    (1.0, 40)
    """

    def __init__(self) -> None:
        # changed by single calls only, since threads may be here at once
        self._free: deque[mmap.mmap] = deque(maxlen=KEPT)
        self._lent: deque[tuple[weakref.ref[Any], mmap.mmap]] = deque()

    def empty(self, n: int, dtype: DTypeLike) -> NDArray[Any]:
        """A (n,) array of any content that starts at a multiple of 64 bytes; MemoryError where there is no room."""
        dtype = np.dtype(dtype)
        size = n * dtype.itemsize
        if size < LEAST_BYTES or sys.platform == "win32":
            raw = np.empty(size + 64, np.uint8)
            start = -raw.ctypes.data % 64
            return raw[start : start + size].view(dtype)
        self._take_back()
        block = self._block(size)
        # an object of its own for every loan: when it dies, the memory is nobody's
        loan = (ctypes.c_uint8 * size).from_buffer(block, _start(block))
        # looked at when the next block is asked for: what would be called when it dies could swallow a Ctrl-C
        self._lent.append((weakref.ref(loan), block))
        array: NDArray[Any] = np.frombuffer(loan, np.uint8).view(dtype)  # type: ignore[call-overload]
        return array

    def _take_back(self) -> None:
        """Of what was lent, keep what nobody sees any more."""
        for _ in range(len(self._lent)):
            with suppress(IndexError):  # another thread was faster
                loan, block = self._lent.popleft()
                if loan() is None:
                    self._free.append(block)
                else:
                    self._lent.append((loan, block))

    def _block(self, size: int) -> mmap.mmap:
        fits = [block for block in tuple(self._free) if size + HUGE_PAGE <= len(block) <= 4 * size + HUGE_PAGE]
        for block in sorted(fits, key=len):
            with suppress(ValueError):  # another thread was faster
                self._free.remove(block)
                return block
        with suppress(IndexError):
            self._free.popleft()  # what was needed before is not needed now: memory for both may not be there
        # an eighth more, so that the next batch fits though its rows are a little longer
        whole = -(-(size + size // 8) // HUGE_PAGE) * HUGE_PAGE if size >= HUGE_PAGE else size + size // 8
        try:
            block = mmap.mmap(-1, whole + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:  # Python has no MemoryError of what mmap(2) says
            raise MemoryError(
                f"{whole + HUGE_PAGE} bytes for batches: {error.strerror}: the process has reached its limit of memory "
                f"(ulimit -v) or of maps (sysctl vm.max_map_count)"
            ) from None
        if hasattr(mmap, "MADV_HUGEPAGE") and size >= HUGE_PAGE:
            with suppress(OSError):  # a kernel without
                block.madvise(mmap.MADV_HUGEPAGE)
        return block


def _start(block: mmap.mmap) -> int:
    """Where the block's first large page begins."""
    return -ctypes.addressof(ctypes.c_uint8.from_buffer(block)) % HUGE_PAGE
