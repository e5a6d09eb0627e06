"""The conduct of a measurement: what is run in which order, with the page cache in which state."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsestore import memory, store
from sparsestore.bench import machine
from sparsestore.bench.process import run_apart
from sparsestore.bench.report import STATES, Rates, Report, Run, Waiting, spread, summary
from sparsestore.manifest import read_manifest
from sparsestore.progress import Progress, shown
from sparsestore.reader import Reader
from sparsestore.storage import open_storage

__all__ = ["measure"]

COPY_BYTES = 256 << 20
COPIES = 7
SAMPLE_BYTES = 1 << 30
"""How much of a store is read to learn how fast the machine reads."""
WARM_SHARE = 0.8
"""Of free memory, what an epoch may read if the page cache is to keep all of it."""
COLD_SHARE = 0.9
"""Of what is read after the page cache was emptied, the least that must have come from the disk."""


def measure(
    path: str | os.PathLike[str],
    *,
    batch_size: int = 4096,
    layout: str = "sparse",
    shuffle: bool = True,
    seed: int = 0,
    repeat: int = 3,
    seconds: float = 10.0,
    step_ms: Sequence[float] = (1.0, 5.0, 20.0),
    version: int | None = None,
    progress: Progress | bool | None = None,
) -> Report:
    """Measure how fast a store gives batches on this machine, beside what the machine does by itself.

    Every epoch is read by a process of its own, first with all it needs in the page cache, then with nothing of it.

    Parameters
    ----------
    path : str or path-like
        Of the store. Its files are read, and dropped from the page cache; nothing is written.
    batch_size : int
    layout : {"sparse", "dense"}
    shuffle : bool
    seed : int
    repeat : int
        Epochs in each state of the page cache.
    seconds : float
        An epoch is cut short after this time.
    step_ms : sequence of float
        Lengths of a training step: for each, one more epoch tells how long a model that takes this long over a batch
        waits for data.
    version : int, optional
        Of the store; the newest by default.
    progress : callable, bool or None
        None shows a bar on a terminal and logs lines elsewhere, False shows nothing; a callable is called with the
        runs done, how many there are, and "runs".

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError, ValueError, MemoryError
        As `open` and `loader` do.

    Notes
    -----
    "Cold" means this system's page cache. Below it others may keep what was read before: the host of a virtual
    machine, the controller of a disk.

    Examples
    --------
    >>> import numpy as np, tempfile, sparsestore as ss
    >>> from sparsestore.bench import measure
    >>> path = tempfile.mkdtemp() + "/eye.zarr"
    >>> store = ss.convert(np.eye(100), path)
    >>> report = measure(path, batch_size=10, repeat=1, step_ms=())
    >>> warm = report.epochs["warm"]
    >>> warm.complete, warm.runs[0].rows, warm.rows_per_s.median > 0
    (True, 100, True)
    """
    for name, value in (("repeat", repeat), ("seconds", seconds), *(("step_ms", step) for step in step_ms)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, expected more than 0")
    options = {"batch_size": batch_size, "layout": layout, "shuffle": shuffle, "seed": seed}
    stored, planned, files = _stored(path, version, options)
    host = machine.facts()  # first, as it tells how busy the machine is with other things
    free = memory.free_bytes() or SAMPLE_BYTES
    with shown("measuring", progress) as report:
        stages = _Stages(report, 4 + 2 * (repeat + len(step_ms)))
        stages.begin()
        memcpy = spread(machine.copy_rates(min(COPY_BYTES, free // 8), COPIES))
        stages.begin()
        sample = min(SAMPLE_BYTES, free // 4, stored["epoch_bytes"])
        cold, reason = _cold_rates(files, sample, repeat)
        stages.begin()
        machine.read_files(files, sample)
        warm = [_read_rate(files, sample)[0] for _ in range(repeat)]
        rates = Rates(memcpy, {"warm": spread(warm), **({"cold": spread(cold)} if cold else {})}, sample)
        not_measured: dict[str, str] = {}
        if stored["epoch_bytes"] > WARM_SHARE * free:
            not_measured["warm"] = f"an epoch reads {stored['epoch_bytes']:,} bytes and {free:,} of memory are free"
        if reason is not None:
            not_measured["cold"] = reason
        stages.total -= len(not_measured) * (repeat + len(step_ms))
        task = {"path": stored["path"], "version": stored["version"], "options": options}
        stages.begin()
        run_apart(**task, seconds=0.0, step_s=0.0)  # compiles what is compiled once an installation

        def epoch(state: str, step: float = 0.0) -> Run:
            stages.begin()
            if state == "warm":
                machine.read_files(files)
            else:
                machine.drop(files)
            return run_apart(**task, seconds=seconds, step_s=step / 1e3)

        states = [state for state in STATES if state not in not_measured]
        runs: dict[str, list[Run]] = {state: [] for state in states}
        for _ in range(repeat):  # by turns, so that what else the machine does meets all states alike
            for state in states:
                runs[state].append(epoch(state))
        waiting = []
        for step in step_ms:
            for state in states:
                run = epoch(state, step)
                waiting.append(Waiting(state, step, run.waiting_share, run.longest_wait_s * 1e3, run.complete))
    bytes_a_row = stored["epoch_bytes"] / stored["rows"]
    epochs = {
        state: summary(found, bytes_a_row, memcpy.median, rates.sequential_read_bytes_per_s[state].median)
        for state, found in runs.items()
    }
    settings = {
        **options,
        **planned,
        "repeat": repeat,
        "seconds": seconds,
        "step_ms": [float(step) for step in step_ms],
    }
    return Report(stored, settings, host, rates, epochs, tuple(waiting), not_measured)


def _stored(
    path: str | os.PathLike[str], version: int | None, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
    """Facts of the store, what the loader planned, and the files that an epoch reads, largest first.

    Raises whatever an epoch would be refused with. No file is left mapped: the page cache would keep it.
    """
    with store.open(path, version=version) as opened:
        loader = opened.loader(**options)
        planned: dict[str, Any] = {
            "columns": list(loader.columns),
            "dtype": str(loader.dtype),
            "n_batches": len(loader),
            "block_rows": loader.plan.block_rows,
            "window_rows": loader.plan.window_rows,
        }
        storage = open_storage(path)
        manifest = read_manifest(storage, opened.version)
        reader = Reader(storage, manifest)
        total, entries = 0, []
        for number, line in enumerate(reader.lines):
            prefix = f"segments/{line.id}/"
            for entry in reader.objects(number):
                total += entry.length
                if _is_read(entry.key.removeprefix(prefix), planned["columns"]):
                    entries.append(entry)
        entries.sort(key=lambda entry: -entry.length)
        facts = {
            "path": os.fspath(path),
            "version": opened.version,
            "rows": opened.shape[0],
            "features": opened.shape[1],
            "nnz": opened.nnz,
            "dtype": str(opened.dtype),
            "profile": manifest.profile,
            "shuffled": bool(reader.shuffled.all()),
            "bytes": total,
            "epoch_bytes": sum(entry.length for entry in entries),
        }
        return facts, planned, [storage.path(entry.key) for entry in entries]


def _is_read(key: str, columns: Sequence[str]) -> bool:
    """Whether an epoch reads an object of a segment."""
    key = key.removeprefix("checksums/")
    arrays = [f"columns/{name}{suffix}" for name in columns for suffix in ("", ".mask")]
    return key.startswith(("X/", *(f"{array}/" for array in arrays)))


def _cold_rates(files: list[Path], max_bytes: int, repeat: int) -> tuple[list[float], str | None]:
    """Bytes a second of sequential reads from the disk; none, and the reason, where they do not come from there."""
    if not machine.can_drop():
        return [], "this system does not let a process empty the page cache of a file"
    rates = []
    for _ in range(repeat):
        machine.drop(files)
        before = machine.disk_bytes()
        rate, found = _read_rate(files, max_bytes)
        after = machine.disk_bytes()
        if before is None or after is None:
            return [], "this system does not tell what is read from the disk"
        if after - before < COLD_SHARE * found:
            return [], (
                f"the page cache could not be emptied: of {found:,} bytes read after that, {after - before:,} came "
                f"from the disk (another process has the store open, or its file system keeps a cache of its own)"
            )
        rates.append(rate)
    return rates, None


def _read_rate(files: list[Path], max_bytes: int) -> tuple[float, int]:
    """Bytes a second of a sequential read, and the bytes."""
    begin = time.perf_counter()
    found = machine.read_files(files, max_bytes)
    return found / (time.perf_counter() - begin), found


class _Stages:
    """Tells a progress how many of the runs are done."""

    def __init__(self, report: Progress, total: int) -> None:
        self.total = total
        self._report = report
        self._begun = 0

    def begin(self) -> None:
        self._report(self._begun, self.total, "runs")
        self._begun += 1
