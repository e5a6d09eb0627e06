"""Where the rows of a segment begin, for `verify`: what each block of offsets says, and what entries follow from it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels import survey
from sparsestore.statistics import COUNT_ROWS

__all__ = ["Blocks", "RowStarts"]

Array = NDArray[Any]
Ints = NDArray[np.int64]
Lengths = NDArray[np.unsignedinteger[Any]]

_NARROW = [(np.iinfo(dtype).max, dtype) for dtype in (np.uint8, np.uint16, np.uint32)]


class Blocks:
    """Lengths of rows, by block, that were found last, of all segments: threads look at entries that lie together.

    Methods may be called from several threads at once.

    Parameters
    ----------
    most_bytes : int
        Held at most, beside the block put last.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held = 0
        self._found: dict[tuple[object, int], Lengths] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple[object, int]) -> Lengths | None:
        """A block that is held."""
        with self._lock:
            return self._found.get(key)

    def put(self, key: tuple[object, int], block: Lengths) -> None:
        """Hold a block, and let go of those that came first."""
        with self._lock:
            while self._found and self._held > self._most:
                self._held -= self._found.pop(next(iter(self._found))).nbytes
            self._hold(key, block)

    def offer(self, key: tuple[object, int], block: Lengths) -> None:
        """Hold a block if there is room: it is wanted later, and those that came first are wanted before it."""
        with self._lock:
            if self._held <= self._most:
                self._hold(key, block)

    def clear(self) -> None:
        """Let go of all blocks."""
        with self._lock:
            self._found.clear()
            self._held = 0

    def _hold(self, key: tuple[object, int], block: Lengths) -> None:
        if key not in self._found:
            self._found[key] = block
            self._held += block.nbytes


class RowStarts:
    """Offsets of a segment's rows: a few numbers of each block, which is read again when it is needed.

    Filled by `take`, from several threads at once, each block once; then `finish`; then asked, by any thread.

    Parameters
    ----------
    rows, nnz : int
        Of the segment.
    length : int
        Offsets of a block.
    read : callable (start, stop) -> (stop - start,) int64 array or None
        Offsets of a block; None where they can not be read.
    blocks : Blocks
        Where the lengths of rows are held, which take an eighth of the memory of offsets where rows are short.

    Attributes
    ----------
    marks : (n + 1,) int64 array
        Offset of every 256th row, and the end.
    """

    def __init__(
        self, rows: int, nnz: int, length: int, read: Callable[[int, int], Ints | None], blocks: Blocks
    ) -> None:
        self._n = rows + 1
        self._nnz = nnz
        self._length = length
        self._read = read
        n = -(-self._n // length)
        self._firsts, self._lasts = np.zeros((2, n), np.int64)
        self._longest = np.zeros(n, np.int64)
        self._sound = np.zeros(n, bool)
        self.marks = np.full(-(-rows // COUNT_ROWS) + 1, nnz, np.int64)
        self._blocks = blocks
        self._token = object()  # unlike a number, it can not be another's later

    @property
    def all_sound(self) -> bool:
        """Whether all offsets are."""
        return bool(self._sound.all())

    def take(self, first: int, offsets: Ints) -> list[tuple[int, str]]:
        """Look at offsets from number `first` on: which are none, and why. Blocks that are not whole stay unknown."""
        faults = []
        last = first + len(offsets)
        for block in range(-(-first // self._length), -(-last // self._length)):
            start, stop = block * self._length, min((block + 1) * self._length, self._n)
            if stop > last:
                break
            part = offsets[start - first : stop - first]
            lengths, longest = _lengths_of(part)
            problem = self._problem(part, longest, start, stop)
            if problem:
                faults.append(problem)
                continue
            self._blocks.offer((self._token, block), lengths)
            self._firsts[block], self._lasts[block] = part[0], part[-1]
            self._longest[block] = longest
            at = -(-start // COUNT_ROWS)
            # the end is no begin of rows, also where it is the offset of a 256th one
            marked = part[-start % COUNT_ROWS :: COUNT_ROWS][: len(self.marks) - 1 - at]
            self.marks[at : at + len(marked)] = marked
            self._sound[block] = True
        return faults

    def _problem(self, part: Ints, longest: int, start: int, stop: int) -> tuple[int, str] | None:
        if start == 0 and part[0] != 0:
            return 0, f"the offsets begin with {int(part[0])}, expected 0"
        if not 0 <= longest <= self._nnz:
            at = int(np.argmax(np.diff(part).view(np.uint64) > self._nnz))
            found, before = int(part[at + 1]), int(part[at])
            most = "" if found < before else f" and at most {self._nnz}"
            return start + at + 1, f"offset {found} follows {before}, expected no less{most}"
        if part[0] < 0 or part[-1] > self._nnz:
            return stop - 1, f"offsets {int(part[0])} to {int(part[-1])}, expected 0 to {self._nnz}"
        if stop == self._n and part[-1] != self._nnz:
            return stop - 1, f"the offsets end with {int(part[-1])}, expected {self._nnz}, the number of entries"
        return None

    def finish(self) -> list[tuple[int, str]]:
        """All blocks were taken: compare neighbours. Which rows end before they begin, and why one thinks so."""
        faults = []
        sound = self._sound
        steps = self._firsts[1:] - self._lasts[:-1]
        for block in np.flatnonzero(sound[1:] & sound[:-1] & (steps < 0)).tolist():
            found, before = int(self._firsts[block + 1]), int(self._lasts[block])
            faults.append(((block + 1) * self._length - 1, f"offset {found} follows {before}, expected no less"))
            sound[block + 1] = False
        self._longest[1:] = np.maximum(self._longest[1:], steps)
        # what is unknown is made to hold all entries between what is known: then a search finds it there
        known = np.flatnonzero(sound)
        for block in np.flatnonzero(~sound).tolist():
            at = int(np.searchsorted(known, block))
            self._firsts[block] = self._lasts[known[at - 1]] if at else 0
            self._lasts[block] = self._firsts[known[at]] if at < len(known) else self._nnz
        return faults

    @property
    def longest(self) -> int | None:
        """Entries of the longest row; None where offsets are unknown."""
        return int(self._longest.max()) if self.all_sound else None

    def bytes_before(self, entries: Ints) -> Ints:
        """Bytes of offsets of the rows that begin before each of some entries, about."""
        return np.searchsorted(self._firsts, entries).astype(np.int64) * self._length * 8

    def _lengths(self, number: int) -> Lengths | None:
        """Entries of the rows of a block, but its last, read again if need be; None where they are unknown."""
        if not self._sound[number]:
            return None
        found = self._blocks.get((self._token, number))
        if found is None:
            start = number * self._length
            offsets = self._read(start, min(start + self._length, self._n))
            if offsets is not None:
                found, _ = _lengths_of(offsets)
                self._blocks.put((self._token, number), found)
        return found

    def _block(self, number: int) -> Ints | None:
        """Offsets of a block; None where they are unknown."""
        lengths = self._lengths(number)
        if lengths is None:
            return None
        return int(self._firsts[number]) + np.append(0, np.cumsum(lengths, dtype=np.int64))

    def lengths(self, first: int, n: int) -> tuple[NDArray[np.uint32], int] | None:
        """Lengths of rows among which are all that begin within `n` entries from `first` on, and where they begin.

        That is counted from `first`. Entries of the last row are left out.

        None where offsets are unknown, or a row has more than 2^32 entries.
        """
        low = int(np.searchsorted(self._lasts, first, side="left"))
        high = int(np.searchsorted(self._firsts, first + n, side="left"))
        parts: list[Array] = []
        begin = n
        for number in range(low, high):
            lengths = self._lengths(number)
            if lengths is None or int(self._longest[number]) > _NARROW[-1][0]:
                return None
            start = number * self._length
            low_mark, high_mark = -(-start // COUNT_ROWS), -(-(start + len(lengths) + 1) // COUNT_ROWS)
            marks = self.marks[low_mark : min(high_mark, len(self.marks) - 1)]
            skipped, wanted = 0, len(lengths)
            after = int(np.searchsorted(marks, first + n))
            if after < len(marks):
                wanted = (low_mark + after) * COUNT_ROWS - start
            if parts:
                parts.append(self._firsts[number : number + 1] - self._lasts[number - 1])
            else:
                begin = int(self._firsts[number]) - first
                before = int(np.searchsorted(marks, first)) - 1
                if before >= 0:
                    skipped, begin = (low_mark + before) * COUNT_ROWS - start, int(marks[before]) - first
            parts.append(lengths[skipped:wanted])
        if not parts:
            return np.empty(0, np.uint32), n
        return np.concatenate(parts, dtype=np.uint32, casting="unsafe"), begin

    def turns(self, values: Array, first: int) -> tuple[bool | None, int]:
        """Whether a row begins with entry `first`, and how many that begin later have a number not above that before.

        None, and -1, where offsets are unknown.
        """
        low = int(np.searchsorted(self._lasts, first, side="left"))
        high = int(np.searchsorted(self._firsts, first + len(values), side="left"))
        seen = np.zeros(3, np.int64)
        for number in range(low, high):
            lengths = self._lengths(number)
            if lengths is None:
                begins = bool(seen[1])
                return (begins or None) if number == low else begins, -1
            survey.row_turns(values, lengths, int(self._firsts[number]) - first, seen)
        return bool(seen[1]), int(seen[0])

    def inside(self, entries: Ints) -> Ints:
        """Those of some entries, ascending, that are known not to begin a row."""
        kept = []
        blocks = np.minimum(np.searchsorted(self._lasts, entries, side="left"), len(self._lasts) - 1)
        for number in np.unique(blocks).tolist():
            some = entries[blocks == number]
            offsets = self._block(number)
            if offsets is None:
                continue
            if number and not self._sound[number - 1]:
                some = some[some > self._firsts[number]]
            at = np.minimum(np.searchsorted(offsets, some), len(offsets) - 1)
            kept.append(some[offsets[at] != some])
        return np.concatenate(kept) if kept else np.empty(0, np.int64)

    def rows_of(self, first: int, last: int) -> tuple[int, int]:
        """Rows that entries belong to; as narrow as sound offsets tell."""
        return self._row_of(first)[0], self._row_of(max(last - 1, first))[1]

    def _row_of(self, entry: int) -> tuple[int, int]:
        """The row of an entry, or the rows of a block of which no more is known."""
        number = max(int(np.searchsorted(self._firsts, entry, side="right")) - 1, 0)
        offsets = self._block(number)
        first = number * self._length
        if offsets is not None:
            row = first + int(np.searchsorted(offsets, entry, side="right")) - 1
            row = min(max(row, 0), self._n - 2)
            return row, row + 1
        while first and not self._sound[first // self._length - 1]:
            first -= self._length
        return max(first - 1, 0), min((number + 1) * self._length, self._n - 1)


def _lengths_of(offsets: Ints) -> tuple[Lengths, int]:
    """Differences of neighbours, in few bytes each, and the largest; that is negative where an offset descends."""
    lengths: Lengths
    for most, dtype in _NARROW:
        lengths = np.empty(max(len(offsets) - 1, 0), dtype)
        longest = survey.row_lengths(offsets, lengths)
        if 0 <= longest <= most:
            return lengths, longest
    lengths = np.empty(max(len(offsets) - 1, 0), np.uint64)
    return lengths, survey.row_lengths(offsets, lengths)
