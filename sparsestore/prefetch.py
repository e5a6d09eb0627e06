"""A bounded background iterator: the next items are made while the present one is used."""

from __future__ import annotations

import os
from _thread import LockType, allocate_lock, start_new_thread
from collections.abc import Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any, TypeVar

from sparsestore.errors import ResourceError
from sparsestore.forking import check_process

__all__ = ["prefetch"]

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 1) -> Generator[T, None, None]:
    """Yield the items in their order while a background thread makes the next ones.

    Parameters
    ----------
    items : iterable
        Iterated, and closed where it is a generator, in one background thread only.
    depth : int
        How many items at most are ahead of the consumer, the one being made included. With the item that the
        consumer holds, ``depth + 1`` are alive.

    Yields
    ------
    object
        The items themselves; nothing here keeps or reuses one that was handed out.

    Raises
    ------
    ValueError
        If `depth` is below 1.
    ResourceError
        Where no thread can be started.
    RuntimeError
        Where the process is a fork of the one that began: the thread was not copied.
    BaseException
        Whatever `items` raises, after the items before it, with the traceback of the background thread.

    Notes
    -----
    The thread starts at the first ``next`` and has ended when the generator is exhausted, raises, is closed or is
    garbage collected: closing waits for the item being made, no longer. One consumer at a time, as any generator.

    Examples
    --------
    >>> list(prefetch(n * n for n in range(4)))
    [0, 1, 4, 9]
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}, expected at least 1")
    return _consume(items, depth)


def _consume(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    # SimpleQueue, because its put is reentrant: a generator that dies in a reference cycle may be closed by a
    # collection that starts in either thread, in the middle of any call, and a lock held there would never open.
    # No Event and no Condition either: a Ctrl-C in the middle of their methods, which are Python, leaves them locked.
    wanted: SimpleQueue[None] = SimpleQueue()
    made: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    stopped: list[bool] = []
    ended = allocate_lock()
    thread = Thread(
        target=_produce, args=(iter(items), wanted, made, stopped, ended), name="sparsestore-prefetch", daemon=True
    )
    process, started = os.getpid(), False
    try:
        for _ in range(depth):
            wanted.put(None)
        ended.acquire()
        started = True
        # by way of another thread, since Thread.start waits in a Condition, and only the main one is interrupted
        try:
            start_new_thread(_start, (thread, made, ended))
        except RuntimeError as error:
            started = False
            raise _exhausted(error) from None
        while True:
            check_process(process)
            try:
                message = made.get(timeout=_PATIENCE_S)
            except Empty:
                if not thread.is_alive() and made.empty():  # it had not even the memory to tell of it
                    raise ResourceError("a thread ended at once: there is no memory for it (ulimit -v)") from None
                continue
            if message is None:
                break
            if isinstance(message, BaseException):
                try:
                    raise message
                finally:
                    del message  # else error -> traceback -> this frame -> error keeps the rows of every frame alive
            wanted.put(None)
            yield message[0]
    finally:
        if started:
            try:
                _stop(thread, wanted, stopped, ended)
            except BaseException:  # interrupted meanwhile
                _stop(thread, wanted, stopped, ended)
                raise


_PATIENCE_S = 5.0


def _exhausted(error: RuntimeError) -> ResourceError:
    return ResourceError(f"{error}: there is no memory for one (ulimit -v), or there are too many (ulimit -u)")


def _start(thread: Thread, made: SimpleQueue[Any], ended: LockType) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        ended.release()
        made.put(_exhausted(error))


def _stop(thread: Thread, wanted: SimpleQueue[None], stopped: list[bool], ended: LockType) -> None:
    stopped.append(True)
    wanted.put(None)
    # it is not alive in a fork either, nor where `start` was interrupted: then it ends as soon as it begins
    if current_thread() is not thread and thread.is_alive():
        while not ended.acquire(timeout=_PATIENCE_S):
            if not thread.is_alive():
                return
        ended.release()
        thread.join()


def _produce(
    items: Iterator[T],
    wanted: SimpleQueue[None],
    made: SimpleQueue[tuple[T] | BaseException | None],
    stopped: list[bool],
    ended: LockType,
) -> None:
    try:
        while True:
            wanted.get()
            if stopped:
                break
            try:
                message = (next(items),)
            except StopIteration:
                break
            made.put(message)
            del message  # the consumer's now
        if isinstance(items, Generator):
            items.close()
        made.put(None)
    except BaseException as error:  # KeyboardInterrupt and SystemExit too belong to the consumer
        made.put(error)
    finally:
        ended.release()
