"""Which rows of a store a view has, in at most one bit a row, and splits that appended rows do not disturb."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsestore.plan import shuffle

__all__ = ["Selection", "split"]

_WORD = 512
"""Bits that share an entry of a bitmap's directory: 16 bytes beside 64."""

_SPLIT_ROWS = 2**20
"""Rows drawn together in a split. It decides which rows those are: changing it changes every split."""

_GROUP_KEY = 2**64 - 1  # a window number that no draw of rows reaches

Positions = NDArray[np.int64]
Bools = NDArray[np.bool_]
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Bitmap:
    """Sets of rows, a bit each, in words of 512 that each know their first row and how many are set before them."""

    bits: NDArray[np.uint8]  # (w, 64)
    before: Positions  # (w + 1,)
    first_row: Positions  # (w,)

    def select(self, ranks: Positions) -> Positions:
        """Rows of the set bits with the given numbers, ascending."""
        word = _covering(self.before, ranks)
        new = np.diff(word, prepend=-1) != 0
        touched = word[new]
        ones = np.flatnonzero(np.unpackbits(self.bits[touched], axis=1))
        # `ones` holds the bits of the touched words only: where do those of each begin in it?
        counts = self.before[touched + 1] - self.before[touched]
        begin = np.cumsum(counts) - counts
        group = np.cumsum(new) - 1
        inside = ones[begin[group] + ranks - self.before[word]] - group * _WORD
        return self.first_row[word] + inside


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows of a store, at positions 0 to n_rows - 1.

    They are pieces of the store in its order, each all rows of a range or those of a bitmap; or, only where the
    caller gave an order or repeats, explicit row numbers (8 bytes a row, one segment). Immutable: any number of
    threads may use it.

    Attributes
    ----------
    store_starts : (s + 1,) int64 array
        Row at which each segment of the store starts, and the number of its rows.
    segment_rows : (s,) int64 array
        Rows of the view in each segment; (1,) for explicit rows.

    Examples
    --------
    >>> every = Selection.all(np.array([4, 3]))
    >>> some = every.take_slice(slice(1, 6)).take_mask(np.array([True, True, False, True, True]))
    >>> some.segment_rows, some.rows(np.arange(4))
    (array([2, 2]), array([1, 2, 4, 5]))
    """

    store_starts: Positions
    segment_rows: Positions
    _at: Positions  # (m + 1,) position at which each piece starts; strictly ascending
    _first: Positions  # (m,) its first row, or the number of its first bit in the bitmap
    _in_bitmap: Bools  # (m,)
    _bitmap: _Bitmap | None
    _explicit: Positions | None = None

    @classmethod
    def all(cls, segment_rows: ArrayLike) -> Selection:
        """Every row of a store with the given numbers of rows in its segments."""
        starts = _starts(np.asarray(segment_rows, np.int64))
        return _assemble(starts, ([_Piece(a, b)] for a, b in pairwise(starts.tolist())))

    @property
    def n_rows(self) -> int:
        """Rows of the view."""
        return int(self._at[-1])

    def rows(self, positions: Positions) -> Positions:
        """Row numbers of the store at the given positions; fastest where these ascend.

        Parameters
        ----------
        positions : (m,) int64 array

        Returns
        -------
        (m,) int64 array

        Raises
        ------
        IndexError
            If a position is not in the view.
        """
        if not len(positions):
            return np.zeros(0, np.int64)
        _check_bounds(positions, self.n_rows, negative=False)
        if self._explicit is not None:
            return self._explicit[positions]
        if (positions[1:] < positions[:-1]).any():
            by_position = np.argsort(positions)
            found = np.empty(len(positions), np.int64)
            found[by_position] = self.rows(positions[by_position])
            return found
        piece = _covering(self._at, positions)
        found = self._first[piece] + (positions - self._at[piece])
        if self._bitmap is not None:
            packed = self._in_bitmap[piece]
            found[packed] = self._bitmap.select(found[packed])
        return found

    def fingerprint(self) -> str:
        """32 hexadecimal digits that change with membership, order and segments; the same on every platform."""
        digest = hashlib.blake2b(digest_size=16)
        arrays = [self.store_starts, self.segment_rows, self._at, self._first, self._in_bitmap.astype(np.int64)]
        if self._bitmap is not None:
            arrays += [self._bitmap.bits, self._bitmap.first_row]
        if self._explicit is not None:
            arrays.append(self._explicit)
        for array in arrays:
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()

    def take_slice(self, rows: slice) -> Selection:
        """The rows at a slice of the positions, as numpy slices; a negative step gives explicit rows.

        Examples
        --------
        >>> Selection.all([10]).take_slice(slice(-4, None, 2)).rows(np.arange(2))
        array([6, 8])
        """
        start, stop, step = rows.indices(self.n_rows)
        if self._explicit is not None or step < 0:
            return _explicit(self.store_starts, self.rows(np.arange(start, stop, step, dtype=np.int64)))
        if step > 1:
            mask = np.zeros(self.n_rows, np.bool_)
            mask[rows] = True
            return self.take_mask(mask)
        # pieces keep their bitmap and start at a later bit
        at = np.clip(self._at, start, max(start, stop))
        kept = np.flatnonzero(np.diff(at))
        first = self._first[kept] + at[kept] - self._at[kept]
        ends = np.clip(_starts(self.segment_rows), start, max(start, stop))
        packed = self._in_bitmap[kept]
        new_at = np.append(at[kept], at[-1]) - start
        bitmap = self._bitmap if packed.any() else None
        return Selection(self.store_starts, np.diff(ends), new_at, first, packed, bitmap)

    def take_mask(self, mask: Array) -> Selection:
        """The rows where a boolean array, one element a row of the view, is True.

        Raises
        ------
        TypeError
            If the mask is not boolean.
        IndexError
            If it has another length, in numpy's words.
        """
        if mask.dtype != np.bool_:
            raise TypeError(f"mask has dtype {mask.dtype}, expected bool")
        if mask.shape != (self.n_rows,):
            raise IndexError(
                f"boolean index did not match indexed array along axis 0; size of axis is {self.n_rows} "
                f"but size of corresponding boolean axis is {len(mask) if mask.ndim == 1 else mask.shape}"
            )
        if self._explicit is not None:
            return _explicit(self.store_starts, self._explicit[mask])
        return _assemble(self.store_starts, (self._members(s, mask[a:b]) for s, a, b in self._segments()))

    def take_ids(self, ids: ArrayLike) -> Selection:
        """The rows at the given positions, negative ones from the end; in that order, repeats allowed.

        Raises
        ------
        TypeError
            If they are not integers.
        IndexError
            If one is out of bounds, in numpy's words.

        Examples
        --------
        >>> Selection.all([3, 2]).take_ids([4, 0, -1]).rows(np.arange(3))
        array([4, 0, 4])
        """
        given = np.asarray(ids)
        if given.size == 0:
            given = given.astype(np.int64)
        if given.dtype.kind not in "iu" or given.ndim != 1:
            raise TypeError(
                f"row ids have dtype {given.dtype} and {given.ndim} dimensions, expected a 1-D array of integers"
            )
        _check_bounds(given, self.n_rows, negative=True)
        positions = given.astype(np.int64)
        positions[positions < 0] += self.n_rows
        rows = self.rows(positions)
        if self._explicit is not None or (rows[1:] <= rows[:-1]).any():
            return _explicit(self.store_starts, rows)
        cuts = np.searchsorted(rows, self.store_starts)
        bounds = zip(pairwise(self.store_starts.tolist()), pairwise(cuts.tolist()), strict=True)
        return _assemble(self.store_starts, (_pieces_of(a, b, rows[first:last]) for (a, b), (first, last) in bounds))

    def _segments(self) -> Iterator[tuple[int, int, int]]:
        """Number, first position and end of each segment."""
        starts = _starts(self.segment_rows).tolist()
        return ((s, a, b) for s, (a, b) in enumerate(pairwise(starts)))

    def _members(self, segment: int, mask: Bools) -> list[_Piece]:
        """The view's rows of a segment where a mask over them is True."""
        at = int(self.segment_rows[:segment].sum())
        positions = np.flatnonzero(mask)
        positions += at
        start, stop = self.store_starts[segment : segment + 2].tolist()
        return _pieces_of(start, stop, self.rows(positions))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows start to stop of the store; those whose bit is set, where there are bits (the first is for `start`)."""

    start: int
    stop: int
    bits: NDArray[np.uint8] | None = None


def _pieces_of(start: int, stop: int, rows: Positions) -> list[_Piece]:
    """Strictly ascending rows of a segment in whatever is smaller: runs, or a bitmap over the segment."""
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) != 1)
    if len(breaks) < 2 or (len(breaks) + 1) * 17 * 8 < stop - start:  # a run takes 17 bytes
        firsts, lasts = rows[np.append(0, breaks + 1)], rows[np.append(breaks, len(rows) - 1)]
        return [_Piece(a, b + 1) for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)]
    mask = np.zeros(stop - start, np.bool_)
    mask[rows - start] = True
    return [_Piece(start, stop, np.packbits(mask))]


def _assemble(store_starts: Positions, segments: Iterable[list[_Piece]]) -> Selection:
    """A selection of the pieces of each segment."""
    at, first, in_bitmap, segment_rows = [0], [], [], []
    words: list[NDArray[np.uint8]] = []
    first_row: list[Positions] = []
    n_set = 0
    for pieces in segments:
        begin = at[-1]
        for piece in pieces:
            count = piece.stop - piece.start
            if piece.bits is not None:
                padded = np.zeros((-(-count // _WORD), _WORD // 8), np.uint8)
                padded.reshape(-1)[: len(piece.bits)] = piece.bits
                words.append(padded)
                first_row.append(np.arange(piece.start, piece.stop, _WORD, dtype=np.int64))
                count = int(np.bitwise_count(padded).sum(dtype=np.int64))
            if count:
                at.append(at[-1] + count)
                first.append(piece.start if piece.bits is None else n_set)
                in_bitmap.append(piece.bits is not None)
                n_set += count if piece.bits is not None else 0
        segment_rows.append(at[-1] - begin)
    bitmap = None
    if words:
        bits = np.concatenate(words)
        bitmap = _Bitmap(bits, _starts(np.bitwise_count(bits).sum(axis=1, dtype=np.int64)), np.concatenate(first_row))
    return Selection(
        store_starts,
        np.array(segment_rows, np.int64),
        np.array(at, np.int64),
        np.array(first, np.int64),
        np.array(in_bitmap, np.bool_),
        bitmap,
    )


def _explicit(store_starts: Positions, rows: Positions) -> Selection:
    size, none = np.array([len(rows)], np.int64), np.zeros(0, np.int64)
    return Selection(store_starts, size, _starts(size), none, none.astype(np.bool_), None, rows)


def _starts(sizes: Positions) -> Positions:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _covering(bounds: Positions, at: Positions) -> Positions:
    """Which of the half-open ranges between ascending `bounds` covers each of the ascending numbers `at`."""
    if len(bounds) < len(at):  # look up the fewer in the more
        return np.repeat(np.arange(len(bounds) - 1, dtype=np.int64), np.diff(np.searchsorted(at, bounds)))
    return np.searchsorted(bounds, at, side="right") - 1


def _check_bounds(ids: Array, n_rows: int, *, negative: bool) -> None:
    wrong = (ids >= n_rows) | (ids < (-n_rows if negative else 0))
    if wrong.any():
        raise IndexError(f"index {ids[np.argmax(wrong)]} is out of bounds for axis 0 with size {n_rows}")
