"""Numbers for texts, in the order in which they first come: users, items, categories."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import ResourceError, SourceError

__all__ = ["MOST_LETTERS", "BadNameError", "Dictionary"]

Array = NDArray[Any]

MOST_LETTERS = 1_000
"""Bytes of a name: what `features.as_names` takes."""
_NAMES, _LETTERS = 1 << 10, 1 << 14


class Dictionary:
    """Texts and their numbers, which count from 0 in the order in which the texts first came.

    Kept are the text, 20 bytes a name for its place, hash and field, and 8 to 16 for a slot of the table; while it
    grows, by half each time, the old arrays beside the new ones.

    Parameters
    ----------
    name : str
        What messages call it: ``"train.csv: field 'user'"``.
    max_bytes : int, optional
        Most that it may take.
    letters : (int, int)
        Bytes that a text may have.
    """

    def __init__(self, name: str, max_bytes: int | None = None, letters: tuple[int, int] = (1, MOST_LETTERS)) -> None:
        from sparsestore.kernels import naming

        self.name = name
        self.max_bytes = max_bytes
        self._sizes = letters
        self._key = np.uint64(secrets.randbelow(2**61 - 3) + 1)
        self._n = 0
        self._slots = np.full(2 * _NAMES, naming.EMPTY, np.uint32)
        self._known = np.empty(_NAMES, np.uint64)
        self._fields = np.empty(_NAMES, np.int32)
        self._ends = np.zeros(_NAMES + 1, np.int64)
        self._letters = np.empty(_LETTERS, np.uint8)

    def __len__(self) -> int:
        return self._n

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken."""
        arrays = (self._slots, self._known, self._fields, self._ends, self._letters)
        return sum(array.nbytes for array in arrays)

    def codes(
        self,
        text: NDArray[np.uint8],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        fields: Any,
        *,
        add: bool = True,
    ) -> NDArray[np.int64]:
        """Numbers of spans of a text, new ones counted on.

        Parameters
        ----------
        text : (n,) uint8 array
        starts, stops : (k,) int64 arrays
        fields : int or (k,) int32 array
            The same text of two fields is two names.
        add : bool
            Otherwise what is not known is -1.

        Raises
        ------
        SourceError
            Where a new name is empty, no UTF-8 text, or longer than 1,000 bytes; `BadNameError.at` tells which.
        ResourceError
            Where all names take more than `max_bytes`.
        """
        from sparsestore.kernels import naming

        fields = np.broadcast_to(np.asarray(fields, np.int32), starts.shape)
        fields = np.ascontiguousarray(fields)
        hashed = np.empty(len(starts), np.uint64)
        naming.hashes(text, starts, stops, fields, self._key, hashed)
        codes = np.empty(len(starts), np.int64)
        before, at = self._n, 0
        while True:
            at, self._n = naming.look_up(
                text, starts, stops, fields, hashed, at, add, self._slots, self._known, self._fields, self._ends,
                self._letters, self._n, codes,
            )  # fmt: skip
            if at == len(starts):
                break
            self._grow(int(stops[at] - starts[at]))
        if self._n > before and (bad := self._bad(before)) is not None:
            raise BadNameError(bad[1], int(np.argmax(codes == bad[0])))
        return codes

    def add(self, names: Iterable[str], field: int = 0) -> None:
        """Names that are known beforehand, behind those that are there."""
        payload = [name.encode() for name in names]
        stops = np.cumsum([0, *map(len, payload)])
        text = np.frombuffer(b"".join(payload) or b"\0", np.uint8)
        self.codes(text, stops[:-1], stops[1:], field)

    def names(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Texts of the names start to stop."""
        stop = self._n if stop is None else stop
        ends = self._ends[start : stop + 1].tolist()
        first = ends[0]
        letters = self._letters[first : ends[-1]].tobytes()
        return [letters[a - first : b - first].decode() for a, b in pairwise(ends)]

    def of(self, codes: NDArray[np.int64]) -> list[str]:
        """Texts of some names, in any order."""
        low = int(codes.min(initial=0))
        if not len(codes) or int(codes.max()) - low > 4 * len(codes):
            return [self.names(code, code + 1)[0] for code in codes.tolist()]
        names = self.names(low, int(codes.max()) + 1)
        return [names[code] for code in (codes - low).tolist()]

    def fields(self) -> NDArray[np.int32]:
        """Field of each name."""
        return self._fields[: self._n]

    def prefixed(self, prefixes: Sequence[str]) -> Iterator[str]:
        """All names, each behind the prefix of its field."""
        for start in range(0, self._n, 1 << 16):
            stop = min(self._n, start + (1 << 16))
            for field, text in zip(self._fields[start:stop].tolist(), self.names(start, stop), strict=True):
                yield prefixes[field] + text

    def _bad(self, start: int) -> tuple[int, str] | None:
        """The first name from `start` on that can be none, and why."""
        ends = self._ends[start : self._n + 1]
        sizes = np.diff(ends)
        least, most = self._sizes
        bad = np.flatnonzero((sizes < least) | (sizes > most))
        if len(bad):
            size = int(sizes[bad[0]])
            return start + int(bad[0]), "is empty" if not size else f"has {size} bytes, expected at most {most}"
        letters = self._letters[ends[0] : ends[-1]]
        text = letters.tobytes()
        try:
            text.decode()
            begins = (ends[:-1] - ends[0])[sizes > 0]
            whole = (letters[begins] & 0xC0) != 0x80  # none begins in the middle of a letter
            at = -1 if whole.all() else int(np.flatnonzero(sizes)[np.argmin(whole)])
        except UnicodeDecodeError as error:
            at = int(np.searchsorted(ends, ends[0] + error.start, side="right")) - 1
        return None if at < 0 else (start + at, "is no UTF-8 text")

    def _grow(self, letters: int) -> None:
        """Make room for more names, the next of which has so many letters."""
        from sparsestore.kernels import naming

        room = len(self._known)
        if 2 * (self._n + 1) > len(self._slots):
            slots = np.full(2 * len(self._slots), naming.EMPTY, np.uint32)
            self._check(slots.nbytes)
            naming.refill(slots, self._known, self._n)
            self._slots = slots
        if self._n == room:
            self._check(20 * room // 2)
            more = room + room // 2
            self._known, self._fields = _longer(self._known, more), _longer(self._fields, more)
            self._ends = _longer(self._ends, more + 1)
        used = int(self._ends[self._n])
        if used + letters > len(self._letters):
            more = max(len(self._letters) // 2, letters)
            self._check(more)
            self._letters = _longer(self._letters, len(self._letters) + more)

    def _check(self, more: int) -> None:
        if self.max_bytes is not None and self.nbytes + more > self.max_bytes:
            raise ResourceError(
                f"{self.name}: its {self._n:,} different texts take {self.nbytes:,} bytes, and more are to come, "
                f"expected at most {self.max_bytes:,}: give a larger max_bytes, or number them before"
            )


class BadNameError(SourceError):
    """A text that can be no name.

    Attributes
    ----------
    at : int
        Number of the first span that has it.
    """

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at = at


def _longer(array: Array, n: int) -> Array:
    out = np.empty(n, array.dtype)
    out[: len(array)] = array
    return out
