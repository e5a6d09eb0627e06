"""One epoch in a process of its own: takes a task as JSON, prints what it saw as JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from sparsestore import store
from sparsestore.batch import Batch
from sparsestore.bench.machine import disk_bytes
from sparsestore.bench.report import Run
from sparsestore.errors import CorruptStoreError

__all__ = ["Taken", "anonymous_bytes", "consume", "main", "run"]


@dataclass(slots=True)
class Taken:
    """What a consumer received and how long it waited for it; times in seconds."""

    rows: int = 0
    batches: int = 0
    nnz: int = 0
    x_bytes: int = 0
    first: float = 0.0
    last: float = 0.0
    waited: float = 0.0
    longest_wait: float = 0.0
    exhausted: bool = True


def consume(
    batches: Iterator[Batch],
    stop: float,
    step_s: float = 0.0,
    together: int = 1,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Taken:
    """Take batches until there are no more, or the clock says `stop`; after each, take `step_s` seconds over it.

    A step is slept through, as while an accelerator works: the cores are free for what comes next. Stops only after a
    multiple of `together` batches, those that are made together: of fewer, the first has paid for the others.
    """
    taken = Taken()
    while True:
        asked = clock()
        batch = next(batches, None)
        got = clock()
        if batch is None:
            return taken
        taken.rows += len(batch.row_ids)
        x = batch.x
        if isinstance(x, np.ndarray):
            taken.x_bytes += x.nbytes
        else:
            taken.x_bytes += x.indptr.nbytes + x.indices.nbytes + x.data.nbytes
            taken.nnz += x.nnz
        taken.last = got
        if taken.batches == 0:
            taken.first = got
        else:
            taken.waited += got - asked
            taken.longest_wait = max(taken.longest_wait, got - asked)
        taken.batches += 1
        if got >= stop and taken.batches % together == 0:
            taken.exhausted = False
            return taken
        if step_s:
            sleep(step_s)


def anonymous_bytes(process: int | str = "self") -> int | None:
    """Memory of a process that is no file's; None where the system does not tell, or the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), None)


def run(path: str, version: int, options: dict[str, Any], seconds: float, step_s: float) -> Run:
    """Open a store and read an epoch of it, or `seconds` of one; its peak of memory is what it holds at the end.

    Raises
    ------
    CorruptStoreError
        Where a whole epoch had not every row and every entry.
    """
    imports, read, cpu = anonymous_bytes(), disk_bytes(), _cpu_s()
    begin = time.perf_counter()
    opened = store.open(path, version=version)
    loader = opened.loader(**options)
    with closing(cast("Generator[Batch]", iter(loader))) as batches:
        # where steps take long a window may take minutes, and the rate is not asked for
        together = 1 if step_s else loader.plan.window_rows // loader.plan.batch_size
        taken = consume(batches, begin + seconds, step_s, together)
        cpu, held, after = _cpu_s() - cpu, anonymous_bytes(), disk_bytes()
    if options["layout"] == "dense":
        taken.nnz = round(opened.nnz * taken.rows / len(opened))
    if taken.exhausted and (taken.rows, taken.nnz) != (len(opened), opened.nnz):
        raise CorruptStoreError(
            f"{path}: an epoch gave {taken.rows} rows and {taken.nnz} entries, expected {len(opened)} and {opened.nnz}"
        )
    return Run(
        rows=taken.rows,
        batches=taken.batches,
        nnz=taken.nnz,
        x_bytes=taken.x_bytes,
        complete=taken.rows == len(opened),
        seconds=taken.last - begin,
        first_batch_s=taken.first - begin,
        waited_s=taken.waited,
        longest_wait_s=taken.longest_wait,
        cpu_s=cpu,
        read_bytes=None if read is None or after is None else after - read,
        import_anonymous_bytes=imports,
        peak_anonymous_bytes=held,
        # Linux counts in what was inherited from the process that started this one
        peak_resident_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if sys.platform == "darwin" else None,
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Do the task that the first argument holds; an error is printed as JSON too. Ends when standard input does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        document = asdict(run(**json.loads(sys.argv[1])))
    except Exception as error:
        document = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(document))


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)
