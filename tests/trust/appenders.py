"""Many processes append to one store at once: every version acknowledged is there, every row once.

A case is one store. One more process opens version after version and reads it, and, in every other case, one collects
garbage.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

import sparsestore as ss
from trust.campaign import Campaign, Tally

PROCESSES = 8
ROWS = 2
WIDTH = 11


def rows_of(writer: int, commit: int) -> tuple[sp.csr_array, np.ndarray]:
    """What a writer appends: rows that tell whose they are, and their numbers."""
    y = (writer * 1_000_000 + commit) * ROWS + np.arange(ROWS)
    x = np.zeros((ROWS, WIDTH), np.float32)
    x[np.arange(ROWS), y % WIDTH] = y % 1000 + 1
    return sp.csr_array(x), y


def append_all(path: str, writer: int, commits: int) -> list[int]:
    """What one process does; the versions that it was told of."""
    found = []
    store = ss.open(path)
    for commit in range(commits):
        x, y = rows_of(writer, commit)
        store = store.append(x, y=y)
        found.append(store.version)
    return found


def check(store: ss.Store) -> str:
    """What is wrong with the rows of a version; nothing where they are right."""
    n = store.shape[0]
    y = store.column("y")[:]
    if len(np.unique(y)) != n:
        return f"version {store.version}: {n - len(np.unique(y))} of {n} rows are there twice"
    x = store[:]
    rows = np.arange(n)
    right = x.nnz == n and np.array_equal(x.indices, y % WIDTH) and np.array_equal(x.data, y % 1000 + 1)
    if not right or not np.array_equal(x.indptr, np.append(rows, n)):
        return f"version {store.version}: entries are not those of their rows"
    # a commit is whole or not there: its rows stand together, in their order
    if n % ROWS or (y[::ROWS] % ROWS).any() or (np.diff(y.reshape(-1, ROWS), axis=1) != 1).any():
        return f"version {store.version}: a commit is there in part"
    return ""


def read_all(path: str) -> list[str]:
    """Open versions until standard input ends; what was wrong."""
    import select

    wrong, seen, rows = [], 0, 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        store = ss.open(path)
        if store.version < seen or store.shape[0] < rows:
            wrong.append(f"version {store.version} of {store.shape[0]} rows after {seen} of {rows}")
        seen, rows = store.version, store.shape[0]
        try:
            if problem := check(store):
                wrong.append(problem)
        except ss.CorruptStoreError as error:
            if store.version in store.versions or "gc" not in str(error):
                wrong.append(str(error))
        store.close()
    return wrong


def collect_all(path: str) -> list[str]:
    """Collect garbage until standard input ends."""
    import select

    from sparsestore.maintain import gc

    while not select.select([sys.stdin], [], [], 0.05)[0]:
        gc(path, keep_versions=3, older_than=0)
    return []


def child(what: str, *arguments: Any) -> subprocess.Popen[str]:
    """Run a function of this module in a process of its own, which prints what it gives."""
    command = [sys.executable, "-m", "trust.appenders", what, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], faults: list[str]) -> list[Any]:
    """What a process printed, when it has ended."""
    out, errors = process.communicate()
    if process.returncode:
        faults.append(f"a process ended with {process.returncode}: {errors[-500:]}")
        return []
    found: list[Any] = json.loads(out)
    return found


def race(number: int, folder: Path, commits: int) -> tuple[list[str], float]:
    """One store, and so many commits of each process: what was wrong, and commits a second."""
    path = folder / f"{number}.zarr"
    ss.create(path, n_features=WIDTH, columns={"y": "int64"}, dtype="float32").publish()
    faults: list[str] = []
    beside = [child("read", path)]
    if number % 2:
        beside.append(child("gc", path))
    began = time.perf_counter()
    writers = [child("append", path, writer, commits) for writer in range(PROCESSES)]
    told = [ended(process, faults) for process in writers]
    seconds = time.perf_counter() - began
    for process in beside:
        faults += ended(process, faults)
    versions = [version for one in told for version in one]
    total = PROCESSES * commits
    if sorted(versions) != list(range(2, total + 2)):
        last = max(versions, default=0)
        faults.append(f"{len(set(versions))} distinct versions acknowledged of {total}, the last {last}")
    if any(sorted(one) != one for one in told):
        faults.append("a process was told of a lower version after a higher one")
    store = ss.open(path)
    if problem := check(store):
        faults.append(problem)
    expected = np.sort(np.concatenate([rows_of(w, c)[1] for w in range(PROCESSES) for c in range(commits)]))
    if not np.array_equal(np.sort(store.column("y")[:]), expected):
        faults.append(f"{store.shape[0]} rows, expected {len(expected)}")
    if not np.array_equal(store.column("row_id")[:], np.arange(store.shape[0])):
        faults.append("row_id does not count the rows")
    faults += store.verify(deep=True)[:3]
    store.close()
    return faults, total / seconds


def races(commits: int) -> Callable[[Sequence[int], Path], Tally]:
    """Run cases of so many commits."""

    def run(cases: Sequence[int], folder: Path) -> Tally:
        tally = Tally()
        for number in cases:
            faults, rate = race(number, folder, commits)
            for fault in faults:
                tally.fault(number, fault)
            tally.outcomes["rows lost or doubled" if faults else f"every row once, {rate:.0f} commits/s"] += 1
        return tally

    return run


ABOUT = "8 processes append at once while others read and, every other time, collect garbage"
CAMPAIGN = Campaign(
    "appenders", f"{ABOUT}: 25 commits each", total=8, sample=2, few=0, unit=1, run=races(25), alone=True
)


def main() -> None:
    what, path, *numbers = sys.argv[1:]
    found: list[Any] = (
        append_all(path, *map(int, numbers))
        if what == "append"
        else read_all(path)
        if what == "read"
        else collect_all(path)
    )
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
