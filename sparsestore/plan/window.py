"""The rows of one window of an epoch: arithmetic on block numbers, no matter how many rows there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.forking import Lock
from sparsestore.plan import shuffle as shuffling

__all__ = ["MOST_BLOCK_ROWS", "Plan", "WindowRows"]

MOST_BLOCK_ROWS = 2**32
"""Rows of a block; all that short blocks of many segments lack must be a number of 64 bits."""

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class WindowRows:
    """The rows of a window.

    Attributes
    ----------
    positions : (m,) int64 array
        Positions in the view, block after block in file order (they ascend), as they should be read.
    order : (m,) int64 array or None
        The rows in the order of training are ``positions[order]``; None: they are `positions`.
    """

    positions: Positions
    order: Positions | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Which rows of a view, in what order, epoch after epoch; a pure function of the fields.

    Per epoch all blocks (none crosses a segment) are permuted and laid end to end. Window w is rows
    ``[w * window_rows, (w + 1) * window_rows)`` of that; a block cut by a border belongs to two windows. The rows of
    a window are permuted, then cut into batches. Every row comes once. Any number of threads may use a plan.

    Parameters
    ----------
    segment_rows : (s,) int64 array
        Number of rows that the view has in each segment; zeros are allowed.
    batch_size : int
        Rows in a batch.
    block_rows : int
        Consecutive rows read together, at most 2**32; the last block of a segment may be shorter.
    window_rows : int
        Rows permuted together: a multiple of `batch_size`.
    shuffle : bool
        False: the rows come in store order.
    seed : int
        From 0 to 2**64 - 1.
    drop_remainder : bool
        Whether the last batch is left out where it is short.

    Raises
    ------
    ValueError
        If the numbers do not fit together.

    Examples
    --------
    >>> plan = Plan(np.array([5, 4]), batch_size=2, block_rows=2, window_rows=4, shuffle=True, seed=0)
    >>> plan.n_blocks, plan.n_windows, plan.n_batches
    (5, 3, 5)
    >>> rows = plan.window(0, 0)
    >>> rows.positions, rows.positions[rows.order]
    (array([...]), array([...]))
    """

    segment_rows: Positions
    batch_size: int
    block_rows: int
    window_rows: int
    shuffle: bool = False
    seed: int = 0
    drop_remainder: bool = False

    n_rows: int = field(init=False)
    """Rows of the view."""
    n_blocks: int = field(init=False)
    """Blocks that the view is cut into."""
    _short: _ShortBlocks = field(init=False, repr=False)
    _epoch: tuple[int, _Epoch] | None = field(init=False, repr=False, default=None)
    _lock: Lock = field(init=False, repr=False, default_factory=Lock)

    def __post_init__(self) -> None:
        for name in ("batch_size", "block_rows", "window_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.block_rows > MOST_BLOCK_ROWS:
            raise ValueError(f"block_rows is {self.block_rows}, expected at most {MOST_BLOCK_ROWS}")
        if self.window_rows % self.batch_size:
            raise ValueError(
                f"window_rows is {self.window_rows}, expected a multiple of batch_size, {self.batch_size}: "
                f"for example {max(self.window_rows // self.batch_size, 1) * self.batch_size}"
            )
        shuffling.check_seed(self.seed)
        segment_rows = np.asarray(self.segment_rows, np.int64)
        if segment_rows.ndim != 1 or (segment_rows < 0).any():
            raise ValueError(f"segment_rows is {self.segment_rows}, expected a number of rows, 0 or more, a segment")
        blocks = -(-segment_rows // self.block_rows)
        # block b starts at row b * block_rows less what the short blocks before it lack
        lacking = blocks * self.block_rows - segment_rows
        short = lacking > 0
        put = object.__setattr__
        put(self, "segment_rows", segment_rows)
        put(self, "n_rows", int(segment_rows.sum()))
        put(self, "n_blocks", int(blocks.sum()))
        put(self, "_short", _ShortBlocks(np.cumsum(blocks)[short] - 1, lacking[short], self.block_rows))

    def __reduce__(self) -> tuple[Any, ...]:  # a lock can not be pickled
        fields = (self.segment_rows, self.batch_size, self.block_rows, self.window_rows)
        return Plan, (*fields, self.shuffle, self.seed, self.drop_remainder)

    @property
    def n_windows(self) -> int:
        """Windows of an epoch; the last may be short."""
        return -(-self.n_rows // self.window_rows)

    @property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        return self.n_rows // self.batch_size if self.drop_remainder else -(-self.n_rows // self.batch_size)

    def window(self, epoch: int, w: int) -> WindowRows:
        """Rows of window `w` of an epoch, in O(window_rows) time once the epoch's blocks are permuted.

        Raises
        ------
        IndexError
            If there is no such window.
        """
        if not 0 <= w < self.n_windows:
            raise IndexError(f"window {w} is out of bounds for an epoch of {self.n_windows} windows")
        start = w * self.window_rows
        stop = min(start + self.window_rows, self.n_rows)
        if not self.shuffle:
            return WindowRows(np.arange(start, stop, dtype=np.int64), None)
        state = self._epoch_state(epoch)
        first, last = state.short.block_of(start), state.short.block_of(stop - 1)
        blocks = state.permutation[first : last + 1]
        starts, lengths = self._short.starts(blocks), self._short.lengths(blocks)
        # the two blocks at the borders may be cut; the cuts are rows of the permuted blocks laid end to end
        before = start - int(state.short.starts(np.array([first]))[0])
        lengths[-1] = stop - int(state.short.starts(np.array([last]))[0])
        starts[0] += before
        lengths[0] -= before
        by_position = np.argsort(starts)
        starts, lengths = starts[by_position], lengths[by_position]
        ends = np.cumsum(lengths)
        positions = np.repeat(starts - (ends - lengths), lengths)
        positions += np.arange(stop - start, dtype=np.int64)
        return WindowRows(positions, shuffling.order(self.seed, shuffling.WINDOW, epoch, w, stop - start))

    def _epoch_state(self, epoch: int) -> _Epoch:
        with self._lock():  # threads that start an epoch together wait for one permutation instead of each making it
            if self._epoch is None or self._epoch[0] != epoch:
                permutation = shuffling.Permutation(self.n_blocks, self.seed, epoch)
                at = permutation.inverse(self._short.blocks)
                by_place = np.argsort(at)
                short = _ShortBlocks(at[by_place], self._short.lacking[by_place], self.block_rows)
                object.__setattr__(self, "_epoch", (epoch, _Epoch(permutation, short)))
            return self._epoch[1]  # type: ignore[index]


class _ShortBlocks:
    """Where blocks start, laid end to end, when a few of them are short: exact, and O(log short blocks) each."""

    def __init__(self, blocks: Positions, lacking: Positions, block_rows: int) -> None:
        self.blocks = blocks  # which blocks are short, ascending
        self.lacking = lacking  # rows that each of them lacks
        self._block_rows = block_rows
        self._lacking_before: Positions = np.concatenate([np.zeros(1, np.int64), np.cumsum(lacking)])
        self._ends = (blocks + 1) * block_rows - self._lacking_before[1:]

    def starts(self, blocks: Positions) -> Positions:
        """Row at which each block starts."""
        return blocks * self._block_rows - self._lacking_before[np.searchsorted(self.blocks, blocks)]

    def lengths(self, blocks: Positions) -> Positions:
        """Rows of each block."""
        lengths = np.full(len(blocks), self._block_rows, np.int64)
        if len(self.blocks):
            at = np.minimum(np.searchsorted(self.blocks, blocks), len(self.blocks) - 1)
            lengths -= np.where(self.blocks[at] == blocks, self.lacking[at], 0)
        return lengths

    def block_of(self, row: int) -> int:
        """The block that holds a row."""
        ended = int(np.searchsorted(self._ends, row, side="right"))
        return (row + int(self._lacking_before[ended])) // self._block_rows


@dataclass(frozen=True, slots=True)
class _Epoch:
    permutation: shuffling.Permutation
    short: _ShortBlocks
