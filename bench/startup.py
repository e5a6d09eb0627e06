"""How long until something happens: `import sparsestore`, `sparsestore info`, and from `open` to the first batch.

People run `info` by hand and in loops; both it and the import must feel instant whatever the size of the store. The
first batch is one of 4,096 shuffled rows in CSR, of stores shuffled once: a matrix of 1,000 rows, clicks (short rows),
cells (long ones) and text. The clock of a first batch starts after ``import sparsestore``: what the package imports and
loads only when it reads counts. Each figure is of fresh processes, with files in the page cache and compiled loops on
disk: the first run, which sees to both, is left out. Exits with 1 where a median is over its limit.

    python bench/startup.py [--data clicks cells text] [--scale 0.1] [--rounds 10] [--json]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse
import stage
from stage import Figure, Results, Source

import sparsestore as ss

LIMITS_S = {"import sparsestore": 0.35, "sparsestore info": 0.6, "open to first batch": 0.2}
FIRST_BATCH = """
import sys, time
import sparsestore as ss
start = time.perf_counter()
batch = next(iter(ss.open(sys.argv[1]).loader(4096, shuffle=True, seed=0)))
print(time.perf_counter() - start)
"""


def process_s(*arguments: object) -> float:
    """Wall seconds of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_batch_s(path: Path) -> float:
    """Seconds from open to the first batch, as a fresh process measures them."""
    return float(subprocess.run([sys.executable, "-c", FIRST_BATCH, path], check=True, capture_output=True).stdout)


def bench(given: argparse.Namespace) -> list[Results]:
    with stage.scratch(given.home) as folder:
        paths = {"1,000 rows": folder / "eye"}
        ss.convert(scipy.sparse.eye_array(1000, format="csr"), folder / "eye", columns={"y": np.arange(1000)})
        for name in given.data:
            source = Source(stage.data_set(given.home, name, given.scale))
            paths[source.path.name] = folder / name
            ss.convert(source.csr(), folder / name, columns={"y": source.labels}, shuffle=True, seed=0, progress=False)
            stage.measure.warm(folder / name)
        measured = {("import sparsestore", ""): lambda: process_s("-c", "import sparsestore")}
        for name, path in paths.items():
            measured["sparsestore info", name] = lambda path=path: process_s("-m", "sparsestore", "info", path)
        for name, path in paths.items():
            measured["open to first batch", name] = lambda path=path: first_batch_s(path)
        rows = []
        for (what, name), measure in measured.items():
            figure = Figure([measure() for _ in range(given.rounds + 1)][1:])
            rows.append({"what": what, "data": name, "s": figure, "limit s": LIMITS_S[what]})
    return [{"title": "Start-up", "rows": rows}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, rounds=10)
    parser.add_argument("--data", nargs="*", choices=("clicks", "cells", "text"), default=["clicks", "cells", "text"])
    tables = stage.run(parser, bench)
    if any(row["s"].median > row["limit s"] for row in tables[0]["rows"]):
        sys.exit(1)
