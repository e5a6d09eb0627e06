"""When to ask the system for the bytes of a window, and when to give them back: by what memory there is."""

from __future__ import annotations

from sparsestore import memory
from sparsestore.storage import Advice, DiskWatch
from sparsestore.window import Window

__all__ = ["ReadAhead"]


class ReadAhead:
    """Advice to the page cache along one iteration. Changes when bytes are read, never which or in what order.

    - What is in memory already is left alone.
    - A window is asked for as soon as it is known, one ahead of the consumer; where two windows do not fit into memory,
      only when the one before is done with: half of it would be dropped again before it is used.
    - Where the store does not fit into memory, a window that is done with is given back. The system would keep it,
      as it was used often, and drop the next one, which was not used yet.

    Parameters
    ----------
    stored_bytes : int
        Of all entries of the store.
    """

    def __init__(self, stored_bytes: int) -> None:
        free = memory.free_bytes()
        self._free = free
        self._scarce = free is not None and stored_bytes > free * 3 // 4
        self.ample = not self._scarce
        self._disk = DiskWatch()
        self._early = True

    def has_room_for(self, n_bytes: int) -> bool:
        """Whether so many bytes may be held only to be early: a quarter of memory at most."""
        return self._free is None or n_bytes <= self._free // 4

    def found(self, window: Window) -> Window:
        """A window was found; another may be in use."""
        if self._scarce and self._free is not None:
            self._early = window.stored_bytes * 2 <= self._free // 2
            window.advise(Advice.RANDOM)  # all of it is asked for: what lies around would only take room
        if self._early and (self._scarce or self._disk.stirred()):
            window.advise(Advice.SOON)
        return window

    def begin(self, window: Window) -> None:
        """A window is about to be checked or decoded, and the one before is done with."""
        if not self._early:
            window.advise(Advice.SOON)

    def done(self, window: Window) -> None:
        """All batches of a window were copied out."""
        if self._scarce:
            window.advise(Advice.DONE)
