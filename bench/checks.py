"""What do the checks of a reader cost: the default, `check="first"`, and "always", against "never"?

Data: clicks (short rows of 39 entries, all ones), cells (long rows, narrow dtypes) and text (floats), shuffled once at
conversion, profile raw and compact, all files in the page cache. An epoch of batches of 4,096 rows, sparse, with
default settings. "first epoch" opens the store and reads it once: with "first" it compares all checksums. "later
epoch" is each one after that, as in a training: with "first" there is nothing left to compare.

Each reading is a process of its own, as what pages the system gives a process makes it a few per cent slower or faster
for as long as it lives; it reads an epoch beforehand, without checks. Ratios are of the medians, of the clock's seconds
and of the processor's, which other work disturbs less. The second table has the checks alone: they are one pass over
what is mapped, which also has to be brought from memory where nothing is compared.

    python bench/checks.py [--data clicks cells text] [--scale 0.1] [--rounds 21] [--json]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import stage
from stage import Figure, Results, Source

import sparsestore as ss

CHECKS = ("never", "first", "always")
PARTS = ("first epoch", "later epoch")
LATER = 3
"""Later epochs of a round."""


def epochs(store: str, check: str, seed: int) -> Results:
    """Seconds, of the clock and of the processor, of the first epoch of a fresh open and of each later one."""
    with ss.open(store, check="never") as opened:
        for _ in opened.loader(4096, shuffle=True, seed=seed):
            pass
    found: Results = {"first epoch": [], "later epoch": []}
    start, cpu = time.perf_counter(), time.process_time()
    with ss.open(store, check=check) as opened:
        loader = opened.loader(4096, shuffle=True, seed=seed)
        for number in range(1 + LATER):
            rows = sum(len(batch.row_ids) for batch in loader)
            if rows != len(opened):
                raise RuntimeError(f"an epoch had {rows} rows, expected {len(opened)}")
            seconds = time.perf_counter() - start, time.process_time() - cpu
            found[PARTS[number > 0]].append(seconds)
            start, cpu = time.perf_counter(), time.process_time()
        return {**found, "rows": len(opened)}


def costs(name: str, profile: str, path: str, rounds: int) -> list[Results]:
    """A line for each check."""
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {(check, part): [] for check in CHECKS for part in PARTS}
    n_rows = 0
    for seed in range(rounds):
        # not always in the same order: who comes after whom is not to count
        for check in CHECKS[seed % 3 :] + CHECKS[: seed % 3]:
            found = stage.in_child("epochs", store=path, check=check, seed=seed)
            n_rows = found["rows"]
            for part in PARTS:
                runs[check, part] += found[part]
    rows = []
    for check in CHECKS:
        row: Results = {"data": name, "profile": profile, "check": check}
        for part in PARTS:
            clock, processor = (Figure([run[i] for run in runs[check, part]]) for i in (0, 1))
            base = [Figure([run[i] for run in runs["never", part]]) for i in (0, 1)]
            row[f"{part}, rows/s"] = Figure([n_rows / seconds for seconds in clock.values])
            row[f"{part}, time to never"] = clock.over(base[0])
            row[f"{part}, CPU to never"] = processor.over(base[1])
        rows.append(row)
    return rows


def checked(store: str, check: str) -> Results:
    """Milliseconds of the processor to check all feature numbers and values of a fresh open once, without reading them.

    "never" compares feature numbers with their number alone, which is always done before they are used.
    """
    with ss.open(store, check=check) as opened:
        segments = [opened._reader.segment(i) for i in range(len(opened._reader.lines))]
        cpu = time.process_time()
        for segment in segments:
            whole = np.zeros(1, np.uint64), np.array([segment.nnz])
            for array in filter(None, (segment.indices, segment.data)):
                array.mapped()
                array.verify(*whole)
        return {"ms": (time.process_time() - cpu) * 1e3}


def once(name: str, path: str, rounds: int) -> list[Results]:
    """A line for each check that is made once."""
    runs = {
        check: [stage.in_child("checked", store=path, check=check)["ms"] for _ in range(rounds)] for check in CHECKS[:2]
    }
    return [{"data": name, "check": check, "CPU ms": Figure(found)} for check, found in runs.items()]


def bench(given: argparse.Namespace) -> list[Results]:
    rows, alone = [], []
    for name in given.data:
        source = Source(stage.data_set(given.home, name, given.scale))
        for profile in ("raw", "compact"):
            with stage.scratch(given.home) as folder:
                path = folder / "store"
                options = {"shuffle": True, "seed": 0, "profile": profile, "progress": False}
                ss.convert(source.csr(), path, columns={"y": source.labels}, **options).close()
                stage.measure.warm(path)
                rows += costs(source.path.name, profile, str(path), given.rounds)
                if profile == "raw":
                    alone += once(source.path.name, str(path), given.rounds)
    return [
        {"title": "Checks, warm, batch 4096, sparse", "rows": rows},
        {"title": "All of a raw store checked once, nothing else done", "rows": alone},
    ]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, rounds=21)
    parser.add_argument("--data", nargs="+", choices=("clicks", "cells", "text"), default=["clicks", "cells", "text"])
    stage.run(parser, bench, {"epochs": epochs, "checked": checked})
