"""What do thousands of appends cost, and what does `optimize` give back?

Data: rows of clicks (39 ones each), appended 100 at a time, 2,000 times, each append a version. *Open* (to the last
row) and *epoch* (batches of 4,096, shuffled, in CSR) are of a fresh process, with files in the page cache and compiled
loops on disk; *optimize* is of one too, and every epoch is checked to have every row once.

    python bench/optimize.py [--appends 2000] [--rows 100] [--scale 0.1] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import scipy.sparse
import stage
from stage import Figure, Results, Source

import sparsestore as ss
from sparsestore import maintain


def reading(path: str) -> Results:
    """Seconds until a row of a store is there, and of an epoch after that."""
    start = time.perf_counter()
    store = ss.open(path)
    _ = store[len(store) - 1]
    opened = time.perf_counter()
    rows = np.zeros(len(store), np.int64)
    for batch in store.loader(4096, shuffle=True, seed=0):
        rows[batch.row_ids] += 1
    done = time.perf_counter()
    if not (rows == 1).all():
        raise RuntimeError("an epoch has not every row once")
    return {"open s": opened - start, "epoch s": done - opened}


def optimizing(path: str) -> Results:
    """Seconds and memory of merging all segments."""
    with stage.PeakMemory() as memory:
        start = time.perf_counter()
        maintain.optimize(path, progress=False)
        seconds = time.perf_counter() - start
    return {"s": seconds, "peak MB": memory.beyond}


def bench(given: argparse.Namespace) -> list[Results]:
    source = Source(stage.data_set(given.home, "clicks", given.scale))
    rows: list[Results] = []
    with stage.scratch(given.home) as folder:
        made = folder / "appended"
        indptr, indices, values, labels = source.block(0, given.appends * given.rows)
        x = scipy.sparse.csr_array((values, indices, indptr), shape=(len(labels), source.n_cols))
        start = time.perf_counter()
        with ss.create(made, n_features=source.n_cols, columns={"y": labels.dtype}):
            pass
        store = ss.open(made)
        for at in range(0, len(labels), given.rows):
            store = store.append(x[at : at + given.rows], y=labels[at : at + given.rows])
        appended = (time.perf_counter() - start) / given.appends * 1000
        states: dict[str, list[Results]] = {"appended": [], "optimized": []}
        costs = []
        for _ in range(given.rounds + 1):
            path = folder / "store"
            shutil.copytree(made, path)
            for state, found in states.items():
                if state == "optimized":
                    costs.append(stage.in_child("optimizing", path=path))
                stage.measure.warm(path)
                found.append({**stage.in_child("reading", path=path), "segments": segments(path)})
            shutil.rmtree(path)
        for state, found in states.items():
            rows.append({"store": state, **stage.figures(found[1:])})
        cost = stage.figures(costs[1:])
    title = f"{given.appends:,} appends of {given.rows:,} rows ({appended:.1f} ms each)"
    return [
        {"title": title, "rows": rows},
        {
            "title": "optimize",
            "rows": [{"s": cost["s"], "peak MB": cost["peak MB"], "ms a segment": per(cost["s"], given)}],
        },
    ]


def segments(path: Path) -> int:
    return len(ss.open(path)._reader.lines)


def per(seconds: Figure, given: argparse.Namespace) -> Figure:
    return Figure([value / given.appends * 1000 for value in seconds.values])


if __name__ == "__main__":
    parser = stage.arguments(__doc__, rounds=3)
    parser.add_argument("--appends", type=int, default=2000, help="how many (2000)")
    parser.add_argument("--rows", type=int, default=100, help="rows of each (100)")
    stage.run(parser, bench, {"reading": reading, "optimizing": optimizing})
