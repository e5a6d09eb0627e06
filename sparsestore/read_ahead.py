"""When to ask the system for the bytes of a window, and when to give them back: by what memory there is."""

from __future__ import annotations

from sparsestore import memory
from sparsestore.buffers import Buffers
from sparsestore.storage import Advice, DiskWatch
from sparsestore.window import STRIP_BYTES, Window

__all__ = ["ReadAhead"]

_ROW_BYTES = 80
"""Of a window, about, beside its entries."""


class ReadAhead:
    """How the windows of one iteration come from disk. Changes when bytes are read and by what way, never which.

    - What is in memory already is left alone, and a window that is not is asked for as soon as it is known.
    - Where memory holds less than three quarters of the store, the page cache is little more than a way through, and a
      dear one: windows are read around it, the next one while the present one is used, if two fit beside all else; one
      after the other where only one does.
    - Where not even one does, or memory holds most of the store, the page cache is told: a window is asked for one
      ahead of the consumer; where two do not fit, only when the one before is done with, since half of it would be
      dropped again before it is used. A window that is done with is given back: the system would keep it, as it was
      used often, and drop the next one, which was not used yet.

    Parameters
    ----------
    stored_bytes : int
        Of all entries of the store.
    batch_bytes : int
        Of a batch.
    window_rows : int
        Of a whole window: the first that is found may be a short one.
    in_turn : bool
        A window is not begun before the one before is done with, unless `loads_ahead`.

    Attributes
    ----------
    buffers : Buffers or None
        Where windows are to be copied, once the first was found; None: they stay in the page cache.
    """

    def __init__(self, stored_bytes: int, batch_bytes: int = 0, window_rows: int = 0, *, in_turn: bool = True) -> None:
        free = memory.free_bytes()
        self._free = free
        self._scarce = free is not None and stored_bytes > free * 3 // 4
        self._passing = free is not None and stored_bytes > free * 4 // 3
        self.strip_bytes = STRIP_BYTES if self.has_room_for(3 * STRIP_BYTES) else STRIP_BYTES // 4
        self._batch_bytes = batch_bytes
        self._window_rows = window_rows
        self._in_turn = in_turn
        self._disk = DiskWatch()
        self._early = True
        self._known = False
        self.buffers: Buffers | None = None
        self.loads_ahead = not self._scarce
        """Whether a window may be checked or copied before the one before it is done with."""

    def has_room_for(self, n_bytes: int) -> bool:
        """Whether so many bytes may be held only to be early: a quarter of memory at most."""
        return self._free is None or n_bytes <= self._free // 4

    def found(self, window: Window) -> Window:
        """A window was found; another may be in use."""
        if not self._known:
            self._known = True
            self._decide(window)
        if self.buffers is not None:
            return window
        if self._scarce and self._free is not None:
            self._early = window.stored_bytes * 2 <= self._free // 2
            window.advise(Advice.RANDOM)  # all of it is asked for: what lies around would only take room
        if self._early and (self._scarce or self._disk.stirred()):
            window.advise(Advice.SOON)
        return window

    def _decide(self, window: Window) -> None:
        """Whether windows like this one are copied, and whether ahead."""
        if not window.mapped:
            self.buffers, self.loads_ahead = Buffers(), True
        elif self._passing and self._free is not None:
            strip = max(self._batch_bytes, min(self.strip_bytes, window.stored_bytes))
            beside = strip * (3 if self.has_room_for(3 * strip) else 2)
            # a row that comes several times is copied once, and in the next window others may come
            a_window = window.stored_bytes + window.n_found * _ROW_BYTES
            if 0 < window.n_found < self._window_rows:
                a_window = a_window * self._window_rows // window.n_found
            fit = (self._free // 6 * 5 - beside) // a_window if a_window else 2
            if fit >= (1 if self._in_turn else 2):
                self.buffers, self.loads_ahead = Buffers(), fit >= 2

    def begin(self, window: Window) -> None:
        """A window is about to be used, and the one before is done with."""
        if not self._early:
            window.advise(Advice.SOON)
        self.load(window)

    def load(self, window: Window) -> None:
        """Check, decode or copy a window."""
        window.load(self.buffers, direct=self._passing)

    def done(self, window: Window) -> None:
        """All batches of a window were copied out."""
        if self.buffers is not None:
            window.forget()  # its memory is the next one's
        elif self._scarce:
            window.advise(Advice.DONE)
