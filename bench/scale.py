"""Does a row cost the same among a hundred million as among a million?

Data: 100 columns at a density of 1e-4, so that nearly all rows are empty and what is paid for is the row itself: its
offset, its place in the order, its label. Labels are random. Each size is a store of its own. Measured is what a
training does: open, plan, and an epoch of shuffled batches of 4,096 in CSR, with default settings, each time in a
process of its own, the sizes in turns, files in the page cache. The ratio is of the dearest row to the cheapest over
the sizes, of the medians: over the whole, and over what comes after the first batch, since start-up weighs on a million
rows that take a tenth of a second. Memory is anonymous memory beyond that of a process which has read a batch before.

    python bench/scale.py [--rows 1000000 10000000 100000000] [--batch 4096] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import stage
from stage import Results

import sparsestore as ss

FEATURES, DENSITY = 100, 1e-4


def make(path: str, rows: int) -> Results:
    """Write a store of `rows` rows."""
    rng = np.random.default_rng(0)
    at = np.unique(rng.integers(0, rows * FEATURES, int(rows * FEATURES * DENSITY)))
    indptr = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(at // FEATURES, minlength=rows), out=indptr[1:])
    values = rng.random(len(at), np.float32) + np.float32(0.5)
    x = sp.csr_array((values, (at % FEATURES).astype(np.int32), indptr), shape=(rows, FEATURES))
    y = rng.integers(0, 50, rows, dtype=np.int8)
    start = time.perf_counter()
    store = ss.convert(x, path, columns={"y": y}, progress=False)
    return {"s": time.perf_counter() - start, "entries": store.nnz, "labels": int(y.sum(dtype=np.int64))}


def epoch(tiny: str, path: str, batch: int, entries: int, labels: int, rows: int) -> Results:
    """Open, plan and read an epoch, each timed."""
    next(iter(ss.open(tiny).loader(1, shuffle=True, seed=0)))  # what is imported and loaded at first use
    found = [0, 0, 0]
    with stage.PeakMemory(every_s=0.01) as memory:
        times = [time.perf_counter()]
        store = ss.open(path)
        times.append(time.perf_counter())
        plan = store.plan(batch, seed=0)
        times.append(time.perf_counter())
        first, cpu = None, time.process_time()
        for b in store.loader(batch, shuffle=True, seed=0):
            first = first or time.perf_counter()
            found = [found[0] + len(b.y), found[1] + b.x.nnz, found[2] + int(b.y.sum(dtype=np.int64))]
        times.append(time.perf_counter())
        cpu = time.process_time() - cpu
    if found != [rows, entries, labels] or first is None:
        raise RuntimeError(f"the epoch had {found} rows, entries and labels, expected {[rows, entries, labels]}")
    opened, planned, read = np.diff(times).tolist()
    window = plan.window_bytes * min(1.0, rows / plan.window_rows)
    return {
        "open ms": opened * 1e3,
        "plan ms": planned * 1e3,
        "first batch ms": (first - times[2]) * 1e3,
        "epoch s": read,
        "ns/row": (opened + planned + read) / rows * 1e9,
        "ns/row after first batch": (times[3] - first) / max(rows - min(batch, rows), 1) * 1e9,
        "CPU ns/row": cpu / rows * 1e9,
        "peak MB": memory.beyond,
        "3 windows + 1.2 B/row, MB": (3 * window + 1.2 * rows) / stage.MIB,
    }


def bench(given: argparse.Namespace) -> list[Results]:
    sizes = [max(int(rows * given.scale), 1) for rows in given.rows]
    table: list[Results] = []
    with stage.scratch(given.home) as folder:
        tiny = folder / "tiny"
        ss.convert(np.eye(8), tiny, columns={"y": np.arange(8)}, progress=False)
        stores: dict[int, Path] = {rows: folder / f"{rows}" for rows in sizes}
        made = {rows: stage.in_child("make", path=path, rows=rows) for rows, path in stores.items()}
        runs: dict[int, list[Results]] = {rows: [] for rows in sizes}
        for turn in range(given.rounds + 1):
            for rows, path in stores.items():
                if not turn and rows != min(sizes):
                    continue  # the first turn loads compiled loops, for which the smallest will do
                stage.measure.warm(path)
                facts = {"entries": made[rows]["entries"], "labels": made[rows]["labels"], "rows": rows}
                result = stage.in_child("epoch", tiny=tiny, path=path, batch=given.batch, **facts)
                if turn:
                    runs[rows].append(result)
        figures = {rows: stage.figures(found) for rows, found in runs.items()}
        for rows, found in figures.items():
            size = stage.measure.size_of(stores[rows]) / stage.MIB
            table.append({"rows": rows, "store MB": size, "convert s": made[rows]["s"], **found})
    costs = {
        name: [found[name].median for found in figures.values()] for name in ("ns/row", "ns/row after first batch")
    }
    ratios = [{"cost": name, "dearest to cheapest": max(values) / min(values)} for name, values in costs.items()]
    note = f"{FEATURES} columns, density {DENSITY:g}, batches of {given.batch:,}, CSR."
    return [{"title": "Cost of a row", "note": note, "rows": table}, {"title": "Ratio over the sizes", "rows": ratios}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[10**6, 10**7, 10**8], help="sizes (1, 10, 100 million)")
    parser.add_argument("--batch", type=int, default=4096, help="rows a batch (4096)")
    stage.run(parser, bench, {"make": make, "epoch": epoch})
