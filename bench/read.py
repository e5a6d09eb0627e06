"""How fast are shuffled batches read from a store, against scipy over a memory map of the same rows?

Data: clicks (39 ones a row of 1M columns: short rows), cells (1,100 small counts: long rows, narrow dtypes) and text
(83 full-mantissa floats: nothing to narrow), whose labels lie sorted in 50 runs, the worst order there is; all files in
the page cache. Each reader gives whole shuffled epochs, checked to hold every row once, with default settings; the
clock includes opening.

Each reader has a process of its own, which lives on, as a training does, and reads an epoch when its turn comes, so
that a slow spell of the machine falls on all. They share no process: the pages that one reader has let go would be
another's, and scipy over cells was twice as fast beside a reader of large windows as alone. The first epoch of a
process is left out. (`peers/` takes a new process for each epoch, whose first-touched memory and start-up then count.)

Readers: "scipy-mmap" is ``X[idx]`` with a full permutation over mapped .npy files, or ``X[idx].toarray()``. "raw" was
shuffled once at conversion, "compact" too; "as stored" was not, so that ``block_rows="auto"`` keeps S <= 2 with short
blocks. "raw, 2nd epoch" is what each later epoch of a training costs: the store is open and its checksums compared.
Anonymous memory is measured in a process of its own and held against three windows and 1.2 bytes a row.

    python bench/read.py [--data clicks cells text] [--scale 0.1] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import stage
from adapters import scipy_mmap
from stage import Child, Results, Source

import sparsestore as ss

READERS = ("scipy-mmap", "raw", "raw, 2nd epoch", "compact", "as stored")
CASES = {  # form, batch size, readers, and the data sets it is for
    "sparse, batch 4096": ("sparse", 4096, READERS, ("clicks", "cells", "text")),
    "sparse, batch 256": ("sparse", 256, READERS[:3], ("clicks", "cells", "text")),
    "dense, batch 4096": ("dense", 4096, READERS[:3], ("cells",)),  # else a batch would take gigabytes
}


def make_stores(source: Source, folder: Path) -> dict[str, Path]:
    """The same rows shuffled once, shuffled once and compressed, and in their own order."""
    options: dict[str, dict[str, Any]] = {
        "raw": {"shuffle": True, "seed": 0},
        "compact": {"shuffle": True, "seed": 0, "profile": "compact"},
        "as stored": {},
    }
    stores = {name: folder / name.replace(" ", "-") for name in options}
    for name, path in stores.items():
        ss.convert(source.csr(), path, columns={"y": source.labels}, progress=False, **options[name])
        stage.measure.warm(path)
    stage.measure.warm(source.path)
    return stores


def timed(batches: Iterable[tuple[Any, Any]], source: Source, form: str, start: float, cpu: float) -> dict[str, float]:
    """Read an epoch whose clock runs since `start`; every row once, or it raises."""
    rows = entries = labels = 0
    first = None
    for x, y in batches:
        first = first or time.perf_counter() - start
        rows += len(y)
        labels += int(y.sum(dtype=np.int64))
        entries += x.nnz if form == "sparse" else 0
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    wanted = (source.n_rows, int(source.labels.sum(dtype=np.int64)), source.nnz if form == "sparse" else 0)
    if (rows, labels, entries) != wanted:
        raise RuntimeError(f"the epoch had {(rows, labels, entries)} rows, labels and entries, expected {wanted}")
    return {
        "rows/s": rows / seconds,
        "CPU s/Mrow": cpu / rows * 1e6,
        "first batch ms": (first or 0) * 1e3,
    }


def epochs(reader: str, store: str, data: str, form: str, batch: int, seed: int) -> Results:
    """One epoch of a reader; of "raw" also the one after it."""
    source = Source(data)
    start, cpu = time.perf_counter(), time.process_time()
    if reader == "scipy-mmap":
        return {reader: timed(scipy_mmap.batches(None, source, batch, form, seed), source, form, start, cpu)}
    with ss.open(store) as opened:
        loader = opened.loader(batch, layout=form, shuffle=True, seed=seed)
        found = {reader: timed(((b.x, b.y) for b in loader), source, form, start, cpu)}
        if reader == "raw":
            start, cpu = time.perf_counter(), time.process_time()
            found["raw, 2nd epoch"] = timed(((b.x, b.y) for b in loader), source, form, start, cpu)
    return found


def memory(tiny: str, path: str, batch: int) -> Results:
    """Anonymous memory of an epoch, in MiB: with the package imported, when it has read a batch, and the peak above."""
    imported = stage.anonymous_mib()
    next(iter(ss.open(tiny).loader(1, shuffle=True, seed=0)))  # what is imported and loaded at first use
    with stage.PeakMemory() as memory:
        store = ss.open(path)
        for _ in store.loader(batch, shuffle=True, seed=0):
            pass
    window = store.plan(batch, seed=0).window_bytes * min(1.0, len(store) / store.plan(batch, seed=0).window_rows)
    bound = (3 * window + 1.2 * len(store)) / stage.MIB
    return {
        "after import": imported,
        "after a first batch": memory.before,
        "epoch, beyond that": memory.beyond,
        "beyond import": memory.peak - imported,
        "window": window / stage.MIB,
        "3 windows + 1.2 B/row": bound,
        "share of the bound": (memory.peak - imported) / bound,
    }


def speeds(name: str, source: Source, stores: dict[str, Path], rounds: int) -> list[Results]:
    """Every case of one data set, a line a reader."""
    rows = []
    for case, (form, batch, readers, names) in CASES.items():
        if name not in names:
            continue
        runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
        with ExitStack() as processes:
            fixed = {"data": source.path, "form": form, "batch": batch}
            children = {
                reader: processes.enter_context(Child("epochs", reader=reader, store=stores.get(reader), **fixed))
                for reader in readers
                if reader != "raw, 2nd epoch"  # which comes with "raw"
            }
            for seed in range(rounds + 1):
                for child in children.values():
                    for key, found in child.ask(seed=seed).items():
                        if seed:  # the first round loads compiled loops and fills the allocator's lists
                            runs[key].append(found)
        figures = {reader: stage.figures(repeated) for reader, repeated in runs.items()}
        base = figures["scipy-mmap"]
        for reader, figure in figures.items():
            rows.append(
                {
                    "data": source.path.name,
                    "case": case,
                    "reader": reader,
                    "rows/s": figure["rows/s"],
                    "to scipy-mmap": figure["rows/s"].over(base["rows/s"]),
                    "CPU s/Mrow": figure["CPU s/Mrow"],
                    "CPU to scipy-mmap": figure["CPU s/Mrow"].over(base["CPU s/Mrow"]),
                    "first batch ms": figure["first batch ms"],
                }
            )
    return rows


def facts(name: str, source: Source, path: Path) -> Results:
    """Size of a store, and how it would be shuffled."""
    plan = ss.open(path).plan(4096, seed=0)
    raw = sum(array.nbytes for array in (source.indptr, source.indices, source.data))
    size = stage.measure.size_of(path)
    return {
        "data": source.path.name,
        "store": name,
        "MB": size / stage.MIB,
        "to CSR in RAM": size / raw,
        "block rows": plan.block_rows,
        "window rows": plan.window_rows,
        "drift S": plan.quality.drift,
    }


def bench(given: argparse.Namespace) -> list[Results]:
    speed, stored, anonymous = [], [], []
    for name in given.data:
        source = Source(stage.data_set(given.home, name, given.scale))
        with stage.scratch(given.home) as folder:
            stores = make_stores(source, folder)
            speed += speeds(name, source, stores, given.rounds)
            tiny = folder / "tiny"
            ss.convert(np.eye(8), tiny, columns={"y": np.arange(8)}, progress=False)
            for reader, path in stores.items():
                stored.append(facts(reader, source, path))
                runs = [stage.in_child("memory", tiny=tiny, path=path, batch=4096) for _ in range(min(given.rounds, 3))]
                anonymous.append({"data": source.path.name, "store": reader, **stage.figures(runs)})
    return [
        {"title": "Warm, shuffled", "rows": speed},
        {"title": "The stores, batch 4096", "rows": stored},
        {"title": "Anonymous memory in MB, sparse, batch 4096", "rows": anonymous},
    ]


if __name__ == "__main__":
    parser = stage.arguments(__doc__)
    parser.add_argument("--data", nargs="+", choices=("clicks", "cells", "text"), default=["clicks", "cells", "text"])
    stage.run(parser, bench, {"epochs": epochs, "memory": memory})
