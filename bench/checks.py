"""What do the checks of a reader cost: the default, `check="first"`, and "always", against "never"?

Data: clicks (short rows of 39 entries, all ones), cells (long rows, narrow dtypes) and text (floats), shuffled once at
conversion, profile raw and compact, all files in the page cache. An epoch of batches of 4,096 rows, sparse, with
default settings. "first epoch" opens the store and reads it once: with "first" it compares all checksums. "later
epoch" is each one after that, as in a training: with "first" there is nothing left to compare.

Each check has a process of its own, which lives on and reads when its turn comes; the first round of a process is left
out. A ratio is the median, over the rounds, of a round's time to that of "never" in the same round.

    python bench/checks.py [--data clicks cells text] [--scale 0.1] [--rounds 11] [--json]
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack

import stage
from stage import Child, Figure, Results, Source

import sparsestore as ss

CHECKS = ("never", "first", "always")
PARTS = ("first epoch", "later epoch")
LATER = 3
"""Later epochs of a round; the quickest counts: what else the machine does is not what is asked."""


def epochs(store: str, check: str, seed: int) -> Results:
    """Seconds of the first epoch of a fresh open, and of a later one."""
    start = time.perf_counter()
    with ss.open(store, check=check) as opened:
        loader = opened.loader(4096, shuffle=True, seed=seed)
        seconds = []
        for _ in range(1 + LATER):
            rows = sum(len(batch.row_ids) for batch in loader)
            if rows != len(opened):
                raise RuntimeError(f"an epoch had {rows} rows, expected {len(opened)}")
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
        return {"first epoch": seconds[0], "later epoch": min(seconds[1:]), "rows": len(opened)}


def costs(name: str, profile: str, path: str, rounds: int) -> list[Results]:
    """A line for each check."""
    runs: dict[str, list[Results]] = {check: [] for check in CHECKS}
    with ExitStack() as processes:
        children = {check: processes.enter_context(Child("epochs", store=path, check=check)) for check in CHECKS}
        for seed in range(rounds + 1):
            # not always in the same order: who comes after whom is not to count
            for check in CHECKS[seed % 3 :] + CHECKS[: seed % 3]:
                found = children[check].ask(seed=seed)
                if seed:
                    runs[check].append(found)
    rows = []
    for check in CHECKS:
        row: Results = {"data": name, "profile": profile, "check": check}
        for part in PARTS:
            row[f"{part}, rows/s"] = Figure([run["rows"] / run[part] for run in runs[check]])
            paired = zip(runs[check], runs["never"], strict=True)
            row[f"{part}, time to never"] = Figure([run[part] / other[part] for run, other in paired])
        rows.append(row)
    return rows


def bench(given: argparse.Namespace) -> list[Results]:
    rows = []
    for name in given.data:
        source = Source(stage.data_set(given.home, name, given.scale))
        for profile in ("raw", "compact"):
            with stage.scratch(given.home) as folder:
                path = folder / "store"
                options = {"shuffle": True, "seed": 0, "profile": profile, "progress": False}
                ss.convert(source.csr(), path, columns={"y": source.labels}, **options).close()
                stage.measure.warm(path)
                rows += costs(source.path.name, profile, str(path), given.rounds)
    return [{"title": "Checks, warm, batch 4096, sparse", "rows": rows}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, rounds=11)
    parser.add_argument("--data", nargs="+", choices=("clicks", "cells", "text"), default=["clicks", "cells", "text"])
    stage.run(parser, bench, {"epochs": epochs})
