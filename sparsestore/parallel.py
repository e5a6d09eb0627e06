"""Work over many rows, cut for the cores of the machine. A leaf."""

from __future__ import annotations

import os
import time
from _thread import LockType, allocate_lock, start_new_thread
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["ahead", "as_done", "limit_cores", "mapped", "n_cores", "over_ranges", "over_rows"]

T = TypeVar("T")
R = TypeVar("R")

LEAST_ENTRIES = 1 << 17
"""Entries for which a thread is worth starting: they take longer to copy than the tenth of a millisecond it costs."""


_limit: int | None = None


def n_cores() -> int:
    """Cores that this process may use, and was told to."""
    try:
        found = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not tell
        found = os.cpu_count() or 1
    return found if _limit is None else min(found, _limit)


def limit_cores(n: int) -> None:
    """Let this process use no more than so many cores from now on: others are at work beside it."""
    global _limit
    _limit = n


def over_rows(work: Callable[[int, int], None], ends: NDArray[np.int64], n_threads: int | None = None) -> None:
    """Call ``work(start, stop)`` on ranges of rows that together are all rows, in threads, and wait for all of them.

    Parameters
    ----------
    work : callable
        Releases the GIL for most of its time, and may run on several ranges at once.
    ends : (n,) int64 array
        Running sum of the rows' entries: ranges get equal shares of these.
    n_threads : int, optional
        One a core by default, and one for few entries.

    Raises
    ------
    BaseException
        Whatever `work` raised first.

    Notes
    -----
    Threads live for the call alone. A pool would be lost in a forked child, and would keep the process from ending.
    """
    total = int(ends[-1]) if len(ends) else 0
    wanted = min(n_threads or n_cores(), max(total // LEAST_ENTRIES, 1))
    shares = np.arange(1, wanted) * (total / wanted)
    _over(work, [0, *np.searchsorted(ends, shares, side="right").tolist(), len(ends)])


def over_ranges(work: Callable[[int, int], None], n: int, least: int, n_threads: int | None = None) -> None:
    """As `over_rows`, for n things that cost the same: each thread gets `least` of them or more."""
    wanted = min(n_threads or n_cores(), max(n // least, 1))
    _over(work, [n * share // wanted for share in range(wanted + 1)])


def _over(work: Callable[[int, int], None], cuts: list[int]) -> None:
    """Call `work` on the ranges between neighbouring cuts, in as many threads, this one among them."""
    todo = list(pairwise(cuts))
    errors: list[BaseException] = []

    def run() -> None:
        while True:
            try:
                start, stop = todo.pop(0)
            except IndexError:
                return
            try:
                work(start, stop)
            except BaseException as error:
                errors.append(error)

    def help_out(busy: LockType) -> None:
        with busy:
            run()

    # A thread may be let wait for milliseconds where other processes are at work. So nobody waits for it to start (as
    # threading.Thread does): whoever is there first takes its range, and a late one finds nothing left to do.
    helpers: list[LockType] = []
    for _ in todo[1:]:
        busy = allocate_lock()
        try:
            start_new_thread(help_out, (busy,))
        except RuntimeError:  # no memory for a stack, or too many threads: this one does it all
            break
        helpers.append(busy)
    run()
    _wait(helpers)
    if errors:
        raise errors.pop(0)  # a name for it would be held by its own traceback, and with it all that was copied


def as_done(work: Callable[[T], R], tasks: Sequence[T], n_threads: int | None = None) -> Generator[R, None, None]:
    """Results of ``work(task)`` for each task, in threads, as they come; in the order of the tasks where one works.

    Parameters
    ----------
    work : callable
        Releases the GIL for most of its time, and may run on several tasks at once.
    tasks : sequence
        Begun in order.
    n_threads : int, optional
        One a core by default. With one, or one task, it is the caller's.

    Raises
    ------
    BaseException
        Whatever `work` raised first.

    Notes
    -----
    No task is begun after an error, or after the iterator was closed or left by an exception, such as an interrupt;
    those that run are waited for. The caller is free to be interrupted while it waits.
    """
    wanted = min(n_threads or n_cores(), len(tasks))
    if wanted <= 1:
        yield from map(work, tasks)
        return
    todo = deque(tasks)
    stopped: list[bool] = []
    done: SimpleQueue[tuple[R | None, BaseException | None]] = SimpleQueue()

    ended: SimpleQueue[None] = SimpleQueue()

    # Locks of C and atomic calls alone: a Ctrl-C in the middle of those that are Python would leave them locked. The
    # caller takes none that is waited for, not even for a moment: it may be interrupted while it has it.
    def run(busy: LockType) -> None:
        with busy:
            while not stopped:
                try:
                    task = todo.popleft()
                except IndexError:
                    break
                try:
                    done.put((work(task), None))
                except BaseException as error:
                    done.put((None, error))
                    break
            ended.put(None)

    helpers: list[LockType] = []
    try:
        for _ in range(wanted):
            helpers.append(allocate_lock())
            try:
                start_new_thread(run, (helpers[-1],))
            except RuntimeError:  # no memory for a stack, or too many threads: fewer do it, or this one
                helpers.pop()
                break
        left, since = len(tasks), time.monotonic()
        while left:
            try:
                result, error = done.get_nowait()
            except Empty:
                with suppress(Empty):
                    if helpers:
                        ended.get(timeout=_GLANCE_S)
                        continue
                late = not helpers or time.monotonic() - since > _PATIENCE_S
                if not (late and todo and done.empty()) or any(busy.locked() for busy in helpers):
                    continue
                result, error = work(todo.popleft()), None  # the threads had not the memory to begin
            if error is not None:
                raise error
            left, since = left - 1, time.monotonic()
            yield result  # type: ignore[misc]
    finally:
        stopped.append(True)
        try:
            _wait(helpers)
        except BaseException:  # interrupted once more
            _wait(helpers)
            raise


def ahead(work: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """As `mapped`, in one thread, which makes the next result while one is used; with a single core in the caller's."""
    return mapped(work, items, 1, n_ahead=1 if n_cores() > 1 else None)


def mapped(
    work: Callable[[T], R], items: Iterable[T], n_threads: int | None = None, *, n_ahead: int | None = None
) -> Generator[R, None, None]:
    """Results of ``work(item)`` for each item, in the order of the items, made in threads while the next items come.

    Parameters
    ----------
    work : callable
        Releases the GIL for most of its time, and may run on several items at once.
    items : iterable
        Iterated by the caller alone. With n threads at most ``n + 1`` are ahead of the result that is used.
    n_threads : int, optional
        One a core by default. With one it is the caller's, unless `n_ahead` is given.
    n_ahead : int, optional
        Items that are at work, or done, when a result is waited for; by default as many as threads, and one more.

    Raises
    ------
    BaseException
        Whatever `work` raised of the first such item, after the results before it, or `items`.

    Notes
    -----
    The threads end by themselves once the iterator is exhausted, closed or left, after what they are at: nobody waits
    for them, as a generator may be closed by the collection of garbage, in any thread.

    Examples
    --------
    >>> list(mapped(str.upper, ["a", "b", "c"]))
    ['A', 'B', 'C']
    """
    wanted = n_threads or n_cores()
    if wanted <= 1 and not n_ahead:
        yield from map(work, items)
        return
    jobs: SimpleQueue[tuple[T, SimpleQueue[tuple[R | None, BaseException | None]]] | None] = SimpleQueue()
    pending: deque[SimpleQueue[tuple[R | None, BaseException | None]]] = deque()
    helpers: list[LockType] = []
    stopped: list[bool] = []

    def do(job: tuple[T, SimpleQueue[tuple[R | None, BaseException | None]]]) -> None:
        item, slot = job
        try:
            slot.put((work(item), None))
        except BaseException as error:
            slot.put((None, error))

    def run(busy: LockType) -> None:
        with busy:
            while (job := jobs.get()) is not None and not stopped:
                do(job)
                del job

    def first() -> R:
        slot = pending.popleft()
        while True:
            try:
                result, error = slot.get(timeout=_PATIENCE_S if helpers else 0)
                break
            except Empty:  # a thread may have ended before it began: it had not the memory to
                if not any(busy.locked() for busy in helpers):
                    with suppress(Empty):
                        job = jobs.get_nowait()
                        if job is not None:
                            do(job)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    try:
        for item in items:
            slot: SimpleQueue[tuple[R | None, BaseException | None]] = SimpleQueue()
            jobs.put((item, slot))
            pending.append(slot)
            del item, slot
            if len(helpers) < min(wanted, len(pending)):
                helpers.append(allocate_lock())
                try:
                    start_new_thread(run, (helpers[-1],))
                except RuntimeError:  # no memory for a stack, or too many threads: fewer do it, or this one
                    helpers.pop()
            if len(pending) > (n_ahead or wanted):
                yield first()
        while pending:
            yield first()
    finally:
        stopped.append(True)
        for _ in helpers:
            jobs.put(None)


_PATIENCE_S = 1.0
_GLANCE_S = 0.03
"""Between two looks of the caller at what is done: to wake it for each result costs the working threads a tenth."""


def _wait(helpers: Sequence[LockType]) -> None:
    """Until none of those that have begun works any more."""
    for busy in helpers:
        with busy:
            pass
