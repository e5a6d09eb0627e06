"""What a fork leaves to the child: locks that are free, and nothing half done. A leaf.

A forked child has all memory as it was at that moment, and of all threads only the one that forked. A lock that another
thread held stays taken in the child for ever; a module that another thread was importing stays half imported.
"""

from __future__ import annotations

import importlib
import logging  # noqa: F401 - see below
import os
import threading
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["Lock", "check_process", "imported", "undivided"]


class Lock:
    """A reentrant lock that is free in a forked child, whichever other thread held it when the process forked.

    For state that stays whole when the thread that changes it stops between two lines: what it had not finished is done
    again in the child. Called, it gives the lock of this process: ``with`` is to be used on that, as a Ctrl-C inside an
    ``__enter__`` written in Python would leave it taken.

    Examples
    --------
    >>> lock = Lock()
    >>> with lock(), lock():
    ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process = _process

    def __call__(self) -> AbstractContextManager[bool]:
        """The lock as it is in this process."""
        if self._process is not _process:
            self._renew()
        return self._lock

    def _renew(self) -> None:
        with _renewing:
            if self._process is _process:
                return
            if self._lock.acquire(blocking=False):  # free, or held by the thread that forked, which goes on holding it
                self._lock.release()
            else:
                self._lock = threading.RLock()
            self._process = _process


# not a set of all locks, renewed at once: what removes them from it would run when they die, and swallow a Ctrl-C
_process, _renewing = object(), threading.RLock()


def _begin() -> None:
    global _process, _renewing
    _process, _renewing = object(), threading.RLock()


undivided = threading.RLock()
"""Held while something is done that a fork must not cut in half. Forking waits for it."""

# What is registered last is asked first. So logging, which holds its own lock while it forks, has to be registered
# before this: a thread that holds `undivided` may import something that wants a logger.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=undivided.acquire, after_in_parent=undivided.release, after_in_child=undivided.release)
    os.register_at_fork(after_in_child=_begin)


_imported: dict[str, Any] = {}


def imported(name: str) -> Any:
    """A module that takes too long to be imported by all: imported when first asked for, and by no fork cut in half.

    Examples
    --------
    >>> imported("zlib").crc32(b"")
    0
    """
    if name not in _imported:
        with undivided:
            _imported[name] = importlib.import_module(name)
    return _imported[name]


def check_process(pid: int) -> None:
    """Raise RuntimeError where this is not the process `pid` that began an iterator."""
    here = os.getpid()
    if here != pid:
        raise RuntimeError(
            f"this iterator was begun in process {pid} and can not go on in its fork, process {here}: its threads were "
            f"not copied. Begin a new one here, with iter()"
        )
