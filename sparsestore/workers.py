"""Several processes at work on parts of one thing: started anew, each does one part and tells how it goes.

They are started as plain commands, so that neither the program's own main module is run again in them, nor the threads
of this process are lost, as in a fork. They end when this process does, however it ends: at the end of the connection,
or where somebody else holds that open, once they have another parent.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NoReturn, TypeVar

from sparsestore import parallel
from sparsestore.errors import SparsestoreError, WorkerError

__all__ = ["Teller", "results", "serve"]

T = TypeVar("T")
R = TypeVar("R")

_COMMAND = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from sparsestore.workers import serve
serve(int(sys.argv[2]), int(sys.argv[3]))
"""
_EVERY_S = 0.1  # between two reports of how far a worker is
_LOOK_S = 1.0  # between two looks of a worker at its parent
_PATIENCE_S = 10.0  # for a process to end that has closed its connection


# ---------------------------------------------------------------------------------------------- in a worker


class Teller:
    """What a worker tells the process that started it."""

    def __init__(self, connection: Connection, parent: int) -> None:
        self._connection = connection
        self._parent = parent
        self._answers: SimpleQueue[None] = SimpleQueue()
        self._said = 0.0
        Thread(target=self._watch, name="sparsestore-watch", daemon=True).start()

    def note(self, kind: str, value: Any) -> None:
        """Have something written down; returns once it is."""
        self.send("note", kind, value)
        self._answers.get()

    def progress(self, position: int, *_: Any) -> None:
        """How far the part is, now and then."""
        now = time.monotonic()
        if now - self._said >= _EVERY_S:
            self._said = now
            self.send("progress", position)

    def send(self, *message: Any) -> None:
        """Send what is one of these, or the end; where nobody is there any more this process ends."""
        try:
            self._connection.send(message)
        except OSError:
            _leave()

    def _watch(self) -> None:
        """Take answers, and end this process where the other has ended: then nobody wants what it makes."""
        with suppress(EOFError, OSError):
            while os.getppid() == self._parent:
                if self._connection.poll(_LOOK_S):
                    self._answers.put(self._connection.recv())
        _leave()


def _leave() -> NoReturn:
    os._exit(1)


def serve(descriptor: int, parent: int) -> None:
    """Do the one thing that this process was started for."""
    os.dup2(2, 1)  # what a library prints is no fact of a command
    connection = Connection(descriptor)
    try:
        payload, n_cores = connection.recv()
    except EOFError:
        _leave()
    teller = Teller(connection, parent)
    parallel.limit_cores(n_cores)
    try:
        work, task = pickle.loads(payload)
        del payload
        teller.send("done", work(task, teller))
    except BaseException as error:
        error.add_note(f"In a worker:\n{traceback.format_exc()}")
        teller.send("failed", _portable(error))
    os._exit(0)  # whatever the interpreter would still clear away, threads included, goes with the process


def _portable(error: BaseException) -> bytes:
    """An error as bytes; where it can't be read back, another one with its words."""
    with suppress(Exception):
        payload = pickle.dumps(error)
        pickle.loads(payload)
        return payload
    return pickle.dumps(SparsestoreError(f"{type(error).__name__}: {error}"))


# --------------------------------------------------------------------------------- in the process that starts them


@dataclass(frozen=True, slots=True)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    connection: Connection

    @classmethod
    def start(cls, number: int, n_cores: int, inherited: Sequence[int]) -> _Worker:
        ours, theirs = Pipe()
        try:
            here = Path(__file__).parents[1]  # found by a relative path, maybe, from a folder that was left since
            search = json.dumps([*map(str, sys.path), str(here)])
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND, search, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *inherited],
                start_new_session=True,  # Ctrl-C is this process's to hear
                # numpy starts threads for linear algebra, which nothing here does: a seventh of a worker's start
                env={**os.environ, "BLOSC_NTHREADS": str(n_cores), "OPENBLAS_NUM_THREADS": "1"},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(number, process, ours)

    def died(self, n: int) -> WorkerError:
        """What is known of a process that ended before it was done."""
        try:
            status = self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            status = 0
        how = f"with status {status}"
        if status < 0:
            with suppress(ValueError):
                how = f"by {signal.Signals(-status).name}"
        advice = ": is memory short? Take fewer workers, or less max_bytes" if status == -signal.SIGKILL else ""
        return WorkerError(f"worker {self.number + 1} of {n} was ended {how} before it was done{advice}")


def results(
    work: Callable[[T, Teller], R],
    tasks: Sequence[T],
    *,
    note: Callable[[int, str, Any], None],
    progress: Callable[[int, int], None],
    inherited: Sequence[int] = (),
) -> list[R]:
    """Results of ``work(task, teller)`` for all tasks, each done by a process of its own, all at the same time.

    Parameters
    ----------
    work : callable
        A function of a module that can be imported; gets the task, and a `Teller`.
    tasks : sequence
        What can be pickled.
    note, progress : callable
        Called, in this thread, with the number of the task and what a worker tells.
    inherited : sequence of int
        Descriptors of files that workers hold open, too.

    Raises
    ------
    WorkerError
        Where a process was killed.
    BaseException
        What `work` raised: of several that are known, of the first task. The other processes are killed.

    Notes
    -----
    Each process uses its share of the cores. On the way out, whatever that is, none of them is left.
    """
    n_cores = max(1, parallel.n_cores() // max(1, len(tasks)))
    found: dict[int, R] = {}
    with _ended() as workers:
        for number in range(len(tasks)):
            workers.append(_Worker.start(number, n_cores, inherited))
        for worker, task in zip(workers, tasks, strict=True):
            payload = pickle.dumps((work, task))
            with suppress(BrokenPipeError, ConnectionResetError):  # it has ended: seen below
                worker.connection.send((payload, n_cores))
            del payload
        left = {worker.connection: worker for worker in workers}
        failures: dict[int, BaseException] = {}
        while left:
            ready = wait(list(left), 0 if failures else None)
            if not ready:
                break  # all that is known of other failures
            for connection in ready:
                worker = left[connection]  # type: ignore[index]
                try:
                    kind, *values = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    kind, values = "died", []
                if kind == "note":
                    note(worker.number, *values)
                    with suppress(BrokenPipeError, ConnectionResetError):
                        worker.connection.send(None)
                elif kind == "progress":
                    progress(worker.number, *values)
                elif kind == "done":
                    found[worker.number] = values[0]
                    del left[worker.connection]
                else:
                    error = worker.died(len(tasks)) if kind == "died" else pickle.loads(values[0])
                    failures[worker.number] = error
                    del left[worker.connection]
        if failures:
            raise min(failures.items(), key=lambda each: (isinstance(each[1], WorkerError), each[0]))[1]
    return [found[number] for number in range(len(tasks))]


@contextmanager
def _ended() -> Iterator[list[_Worker]]:
    """A list of processes, none of which is left at the end."""
    workers = list[_Worker]()
    try:
        yield workers
    finally:
        try:
            _end(workers)
        except BaseException:  # interrupted once more
            _end(workers)
            raise


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
        worker.connection.close()
