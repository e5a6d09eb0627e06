"""Which rows of a store a view has, in at most one bit a row, and splits that appended rows do not disturb."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsestore.plan import shuffle

__all__ = ["Selection", "split"]

_WORD = 512
"""Bits that share an entry of a bitmap's directory: 16 bytes beside 64."""

_LANE = 64
"""Bits that are unpacked together."""

_CHUNK_ROWS = 2**20
"""Rows whose numbers are held at once: 8 bytes each."""

_SPLIT_ROWS = 2**16
"""Rows drawn together in a split. It decides which rows those are: changing it changes every split."""

_RUN_ROWS = 1024
"""Scattered rows are kept as runs where there is at most one run in so many rows of the segment, else as a bitmap."""

_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
"""Bits set in each byte."""

_NUMBERS = "biuf"  # kinds of dtype; what is none of them is text

_GROUP_KEY = 2**64 - 1  # a window number that no draw of rows reaches

_STREAM_BITS = 32  # above the numbers of all streams, for how many splits went before

Ints = NDArray[np.int64]
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
        fresh = np.diff(word, prepend=-1) != 0
        touched = word[fresh]
        bits = self.bits[touched].reshape(-1, _LANE // 8)
        first_row = (self.first_row[touched][:, None] + np.arange(0, _WORD, _LANE)).reshape(-1)
        # once more in lanes of the touched words: only what is near the wanted bits is worth unpacking
        ends = np.cumsum(_ONES[bits].sum(axis=1, dtype=np.int64))
        # `ranks` counts all bits, `ends` those of the touched words
        skipped = self.before[touched] - np.append(0, ends[_WORD // _LANE - 1 :: _WORD // _LANE][:-1])
        ranks = ranks - skipped[np.cumsum(fresh) - 1]
        lane = np.searchsorted(ends, ranks, side="right")
        new = np.diff(lane, prepend=-1) != 0
        near = lane[new]
        ones = np.flatnonzero(np.unpackbits(bits[near], axis=1).view(np.bool_))
        counts = np.diff(ends, prepend=0)[near]
        group = np.cumsum(new) - 1
        inside = ones[(np.cumsum(counts) - counts)[group] + ranks - (ends[lane] - counts[group])]
        rows: Positions = first_row[lane] + inside - group * _LANE
        return rows


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
    splits : int
        How many splits, one of a part of the other, led to it: the next draws from words of its own.

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
    splits: int = 0

    @classmethod
    def all(cls, segment_rows: ArrayLike) -> Selection:
        """Every row of a store with the given numbers of rows in its segments."""
        starts = _starts(np.asarray(segment_rows, np.int64))
        return _assemble(starts, ([_Piece(a, b)] for a, b in pairwise(starts.tolist())), splits=0)

    @property
    def n_rows(self) -> int:
        """Rows of the view."""
        return int(self._at[-1])

    @property
    def in_order(self) -> bool:
        """Whether rows come in the order of the store, so that what was stored of neighbours holds for the view."""
        return self._explicit is None

    @property
    def is_contiguous(self) -> bool:
        """Whether rows that follow each other in the view nearly always do so in the store: no bitmap, no order."""
        return self._bitmap is None and self._explicit is None

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
        _check_bounds(positions, self.n_rows)
        if len(self._at) == 2 and self._bitmap is None and self._explicit is None:  # one run of rows
            return positions + self._first[0] if self._first[0] else positions
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
        arrays: list[Array] = [self.store_starts, self.segment_rows, self._at, self._first]
        arrays.append(self._in_bitmap.astype(np.int64))
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
            return self._in_order_of(self.rows(np.arange(start, stop, step, dtype=np.int64)))
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
        return Selection(self.store_starts, np.diff(ends), new_at, first, packed, bitmap, splits=self.splits)

    def take_mask(self, mask: Array) -> Selection:
        """The rows where a boolean array, one element a row of the view, is True.

        Raises
        ------
        IndexError
            If it is not boolean or has another length, in numpy's words.
        """
        if mask.dtype != np.bool_:
            raise IndexError(f"a mask must be of boolean type, found {mask.dtype}")
        if mask.shape != (self.n_rows,):
            raise IndexError(
                f"boolean index did not match indexed array along axis 0; size of axis is {self.n_rows} "
                f"but size of corresponding boolean axis is {len(mask) if mask.ndim == 1 else mask.shape}"
            )
        if self._explicit is not None:
            return self._in_order_of(self._explicit[mask])
        bounds = enumerate(pairwise(_starts(self.segment_rows).tolist()))
        pieces = (self._members(segment, a, mask[a:b]) for segment, (a, b) in bounds)
        return _assemble(self.store_starts, pieces, splits=self.splits)

    def take_ids(self, ids: ArrayLike) -> Selection:
        """The rows at the given positions, negative ones from the end; in that order, repeats allowed.

        Raises
        ------
        IndexError
            If they are not integers or one is out of bounds, in numpy's words.

        Examples
        --------
        >>> Selection.all([3, 2]).take_ids([4, 0, -1]).rows(np.arange(3))
        array([4, 0, 4])
        """
        given = np.asarray(ids)
        if given.size == 0:
            given = given.astype(np.int64)  # an empty list has no dtype of its own
        if given.dtype.kind not in "iu" or given.ndim != 1:
            raise IndexError(
                f"arrays used as indices must be of integer (or boolean) type and have 1 dimension, "
                f"found {given.dtype} and {given.ndim}"
            )
        _check_bounds(given, self.n_rows, lowest=-self.n_rows)
        positions = given.astype(np.int64)
        positions[positions < 0] += self.n_rows
        rows = self.rows(positions)
        if self._explicit is not None or (rows[1:] <= rows[:-1]).any():
            return self._in_order_of(rows)
        cuts = np.searchsorted(rows, self.store_starts)
        bounds = zip(pairwise(self.store_starts.tolist()), pairwise(cuts.tolist()), strict=True)
        pieces = (_pieces_of(a, b, rows[first:last]) for (a, b), (first, last) in bounds)
        return _assemble(self.store_starts, pieces, splits=self.splits)

    def _in_order_of(self, rows: Positions) -> Selection:
        """The given rows of the store, in their order."""
        size, none = np.array([len(rows)], np.int64), np.zeros(0, np.int64)
        return Selection(
            self.store_starts, size, _starts(size), none, none.astype(np.bool_), None, rows, splits=self.splits
        )

    def _members(self, segment: int, at: int, mask: Bools) -> list[_Piece]:
        """The view's rows of a segment, which begin at position `at`, where a mask over them is True."""
        start, stop = self.store_starts[segment : segment + 2].tolist()
        if len(mask) == stop - start:
            return _pieces_where(start, mask)
        in_store = np.zeros(stop - start, np.bool_)
        for done in range(0, len(mask), _CHUNK_ROWS):
            positions = np.flatnonzero(mask[done : done + _CHUNK_ROWS])
            in_store[self.rows(positions + (at + done)) - start] = True
        return _pieces_where(start, in_store)

    def _between(self, segment: int, at: int, first: int, last: int) -> list[_Piece]:
        """The view's rows of a segment, which begin at position `at`, from the first-th to before the last-th."""
        pieces = range(
            int(np.searchsorted(self._at, at + first, side="right")) - 1, int(np.searchsorted(self._at, at + last))
        )
        if self._in_bitmap[pieces.start : pieces.stop].any():
            mask = np.zeros(int(self.segment_rows[segment]), np.bool_)
            mask[first:last] = True
            return self._members(segment, at, mask)
        found = []
        for i in pieces:
            begin, end = max(int(self._at[i]), at + first), min(int(self._at[i + 1]), at + last)
            shift = int(self._first[i] - self._at[i])
            found.append(_Piece(begin + shift, end + shift))
        return found


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows start to stop of the store; those whose bit is set, where there are bits (the first is for `start`)."""

    start: int
    stop: int
    bits: NDArray[np.uint8] | None = None


def _pieces_where(start: int, mask: Bools) -> list[_Piece]:
    """The rows of a segment where a mask over it is True: as runs where they are few, else a bitmap."""
    n_runs = int(np.count_nonzero(mask[1:] > mask[:-1])) + bool(len(mask) and mask[0])
    if n_runs > 1 and n_runs * _RUN_ROWS > len(mask):
        return [_Piece(start, start + len(mask), np.packbits(mask))]
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)) + start
    return [_Piece(a, b) for a, b in edges.reshape(-1, 2).tolist()]


def _pieces_of(start: int, stop: int, rows: Positions) -> list[_Piece]:
    """Strictly ascending rows of a segment, without a mask over it where a few runs do."""
    breaks = np.flatnonzero(np.diff(rows) != 1)
    if len(breaks) and (len(breaks) + 1) * _RUN_ROWS > stop - start:
        mask = np.zeros(stop - start, np.bool_)
        mask[rows - start] = True
        return _pieces_where(start, mask)
    bounds = np.append(0, breaks + 1), np.append(breaks, len(rows) - 1)
    return [_Piece(a, b + 1) for a, b in zip(*(rows[at].tolist() for at in bounds), strict=True)] if len(rows) else []


def _assemble(store_starts: Positions, segments: Iterable[list[_Piece]], *, splits: int) -> Selection:
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
                count = int(_ONES[padded].sum(dtype=np.int64))
            if count:
                at.append(at[-1] + count)
                first.append(piece.start if piece.bits is None else n_set)
                in_bitmap.append(piece.bits is not None)
                n_set += count if piece.bits is not None else 0
        segment_rows.append(at[-1] - begin)
    bitmap = None
    if words:
        bits = np.concatenate(words)
        bitmap = _Bitmap(bits, _starts(_ONES[bits].sum(axis=1, dtype=np.int64)), np.concatenate(first_row))
    return Selection(
        store_starts,
        np.array(segment_rows, np.int64),
        np.array(at, np.int64),
        np.array(first, np.int64),
        np.array(in_bitmap, np.bool_),
        bitmap,
        splits=splits,
    )


def _starts(sizes: Positions) -> Positions:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _covering(bounds: Positions, at: Positions) -> Positions:
    """Which of the half-open ranges between ascending `bounds` covers each of the ascending numbers `at`."""
    if len(bounds) < len(at):  # look up the fewer in the more
        return np.repeat(np.arange(len(bounds) - 1, dtype=np.int64), np.diff(np.searchsorted(at, bounds)))
    return np.searchsorted(bounds, at, side="right") - 1


def split(
    selection: Selection,
    segment_starts: Positions,
    shuffled: ArrayLike,
    fractions: Mapping[str, float],
    seed: int,
    *,
    strata: Callable[[int], Array] | None = None,
    groups: Callable[[int], Array] | None = None,
) -> dict[str, Selection]:
    """Cut a view into parts at random; what part a row is in never changes when rows are appended to the store.

    Membership is decided a segment at a time from `seed` and the row at which the segment starts. Each part gets its
    fraction of every segment, to within a row (two in a segment of more than 65,536); which way a part of a
    row is rounded is drawn, so that many small segments add up to the fractions. A segment that was shuffled when it
    was written is cut into contiguous ranges, which read fast and cost nothing; of others, and under `strata`, rows
    are drawn, a bit each. With `groups`, the hash of a row's value decides, in every segment alike: a group is never
    in two parts, and parts have their fractions of the groups, on average. A part is split by words of its own:
    by the same ones it would fall into one part again.

    Parameters
    ----------
    selection : Selection
        The view, of s segments (one where it has explicit rows).
    segment_starts : (s,) int64 array
        Row of the store at which each segment starts.
    shuffled : (s,) bool array
        Whether a segment's rows were shuffled when they were written.
    fractions : mapping of str to float
        Each above 0; together at most 1. Rows beyond their sum are in no part.
    seed : int
        From 0 to 2**64 - 1.
    strata : callable, optional
        Gives for a segment number one label for each of the view's rows in it; each part gets its fraction of the
        rows of every label. Rows that are masked, or nan, have one label of their own.
    groups : callable, optional
        The same for groups: integers, floats, bools or strings. Rows that are masked, or nan, are one group.

    Returns
    -------
    dict of str to Selection

    Raises
    ------
    ValueError
        If the fractions do not make sense, if both `strata` and `groups` are given, or if they give another number of
        values than the view has rows.

    Examples
    --------
    >>> parts = split(Selection.all([10]), np.array([0]), [True], {"train": 0.8, "test": 0.2}, seed=0)
    >>> parts["test"].rows(np.arange(2))
    array([8, 9])
    """
    shuffle.check_seed(seed)
    cumulative = _cumulative(fractions)
    if strata is not None and groups is not None:
        raise ValueError("strata and groups were both given: a split goes by one of them")
    explicit = selection._explicit is not None
    stream = shuffle.SPLITS + (selection.splits << _STREAM_BITS)
    in_ranges = np.asarray(shuffled, np.bool_) & (strata is None and groups is None and not explicit)
    parts: list[list[list[_Piece]]] = [[] for _ in fractions]
    masks: list[Bools] = []
    for segment, (at, end) in enumerate(pairwise(_starts(selection.segment_rows).tolist())):
        n = end - at
        key = int(segment_starts[segment]) if not explicit else 0
        if not explicit and in_ranges[segment]:
            cuts = [0, *np.floor(cumulative * n + _uniform(seed, stream, key, 1)).astype(np.int64).tolist()]
            for pieces, (first, last) in zip(parts, pairwise(cuts), strict=True):
                pieces.append(selection._between(segment, at, first, last) if first < last else [])
            continue
        if groups is not None:
            hashes = _hash(_values(groups, segment, n), seed, stream)
            part: Array = np.searchsorted(cumulative, _fractional(hashes), side="right")
        else:
            labels = None if strata is None else _values(strata, segment, n)
            labels = None if labels is None else _told_apart(labels)
            part = _draw(labels, n, cumulative, seed, stream, key)
        masks = [part == i for i in range(len(parts))]
        if not explicit:
            for pieces, mask in zip(parts, masks, strict=True):
                pieces.append(selection._members(segment, at, mask))
    if explicit:
        selections = [selection.take_mask(mask) for mask in masks]
    else:
        selections = [_assemble(selection.store_starts, pieces, splits=selection.splits) for pieces in parts]
    splits = selection.splits + 1
    return {name: replace(part, splits=splits) for name, part in zip(fractions, selections, strict=True)}


def _cumulative(fractions: Mapping[str, float]) -> NDArray[np.float64]:
    """Where each part ends in [0, 1]."""
    if not fractions:
        raise ValueError("fractions is empty, expected at least one part, for example {'train': 0.9, 'val': 0.1}")
    for name, fraction in fractions.items():
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction of {name!r} is {fraction}, expected more than 0 and at most 1")
    total = float(sum(fractions.values()))
    if total > 1 + 1e-9:
        raise ValueError(f"fractions add up to {total:.6g}, expected at most 1: {dict(fractions)}")
    ends: NDArray[np.float64] = np.minimum(np.cumsum(list(fractions.values()), dtype=np.float64), 1.0)
    if total > 1 - 1e-9:
        ends[-1] = 1.0  # no row may get lost in a sum like 0.7 + 0.2 + 0.1
    return ends


def _uniform(seed: int, stream: int, key: int, n: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that decide which way the quotas of a segment are rounded."""
    return _fractional(shuffle.words(seed, stream, key, 0, n))


def _fractional(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return np.ldexp((words >> np.uint64(11)).astype(np.float64), -53)


def _values(of: Callable[[int], Array], segment: int, n: int) -> Array:
    values = np.asanyarray(of(segment))
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind == "f":
        values = values.filled(np.nan)  # which means missing, too
    if values.shape != (n,):
        raise ValueError(f"segment {segment} has values of shape {values.shape}, expected one for each of {n} rows")
    return values


def _coded(texts: Array) -> tuple[list[str], Ints]:
    """Texts without what is repeated (mostly), and which of them each one is.

    numpy's own text takes as much for every row as the longest needs. It has no NULs at its end, so that these never
    told texts apart: all splits by text depend on it.
    """
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    codes = np.fromiter(map(numbers.__getitem__, texts.tolist()), np.int64, len(texts))
    return [str(text).rstrip("\0") for text in numbers], codes


def _ranked(texts: Array) -> Ints:
    """Numbers in the place of texts, in the order of these."""
    distinct, codes = _coded(texts)
    ranks = {text: rank for rank, text in enumerate(sorted(set(distinct)))}
    return np.array([ranks[text] for text in distinct], np.int64)[codes]


def _told_apart(labels: Array) -> Array:
    """Labels as numbers in their order; behind them one for those that are masked."""
    values = np.ma.getdata(labels)
    if values.dtype.kind not in _NUMBERS:
        values = _ranked(values)
    mask = np.ma.getmaskarray(labels)
    if not mask.any():
        return values
    known = np.unique(values[~mask])
    return np.where(mask, len(known), np.searchsorted(known, values))


def _draw(labels: Array | None, n: int, cumulative: NDArray[np.float64], seed: int, stream: int, key: int) -> Array:
    """Number of the part of each row of a segment, ``len(cumulative)`` for none; each label gets its quotas."""
    classes = np.zeros(1) if labels is None else np.unique(labels)
    offset = _uniform(seed, stream, key, len(classes))
    part = np.empty(n, np.min_scalar_type(len(cumulative)))
    seen = np.zeros(len(classes), np.int64)
    given = np.zeros((len(cumulative), len(classes)), np.int64)  # rows of each label in this part and those before it
    for i, start in enumerate(range(0, n, _SPLIT_ROWS)):  # so that a segment of any size takes little memory
        stop = min(start + _SPLIT_ROWS, n)
        drawn = shuffle.order(seed, stream, key, i + 1, stop - start)
        codes = np.zeros(stop - start, np.int64)
        if labels is not None:
            codes = np.searchsorted(classes, labels[start:stop])
            drawn = drawn[np.argsort(codes[drawn], kind="stable")]
            codes = codes[drawn]
        counts = np.bincount(codes, minlength=len(classes))
        seen += counts
        # the ends of the parts may not fall behind one another where rounding would have it so
        ends = np.floor(cumulative[:, None] * seen + offset).astype(np.int64) - given
        ends = np.clip(np.maximum.accumulate(ends, axis=0), 0, counts)
        given += ends
        rank = np.arange(stop - start) - (np.cumsum(counts) - counts)[codes]
        number = np.zeros(stop - start, part.dtype)
        for end in ends:
            number += rank >= end[codes]
        part[start + drawn] = number
    return part


def _hash(values: Array, seed: int, stream: int) -> NDArray[np.uint64]:
    """A hash of each value and the seed, the same in every process and on every platform."""
    key = shuffle.words(seed, stream, 0, _GROUP_KEY, 1)
    mask = np.ma.getmaskarray(values)
    if mask.any():
        hashes = np.full(len(values), shuffle.mix(shuffle.mix(key))[0])
        hashes[~mask] = _hash(np.ma.getdata(values)[~mask], seed, stream)
        return hashes
    values = np.ma.getdata(values)
    if values.dtype.kind not in _NUMBERS:
        distinct, codes = _coded(values)
        secret = key.astype("<u8").tobytes()
        digests = [hashlib.blake2b(text.encode(), digest_size=8, key=secret).digest() for text in distinct]
        return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)[codes]
    if values.dtype.kind == "f":
        numbers = (values.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 is 0.0
        numbers[np.isnan(values)] = np.float64(np.nan).view(np.uint64)  # which has many bit patterns
    else:
        numbers = values.astype(np.uint64 if values.dtype.kind == "u" else np.int64).view(np.uint64)
    return shuffle.mix(shuffle.mix(numbers + key) + key)


def _check_bounds(ids: Array, n: int, *, lowest: int = 0) -> None:
    wrong = (ids >= n) | (ids < lowest)
    if wrong.any():
        raise IndexError(f"index {ids[np.argmax(wrong)]} is out of bounds for axis 0 with size {n}")
