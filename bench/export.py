"""How fast is a store exported, format by format, and in how much memory?

Data: a part of clicks (39 entries a row, all ones) and of text (83 a row, nine digits each), each a store. A rate is
of the file's bytes; beside it entries a second, which compare formats. Every export is a process of its own, with the
store in the page cache, what is compiled once an installation compiled before, and the file written to the same disk,
synced. Peak memory is anonymous memory beyond what was there before. Beside svmlight scikit-learn's
`dump_svmlight_file` writes a tenth of the rows, beside Matrix Market scipy's `mmwrite`, from memory.

    python bench/export.py [--data clicks text] [--formats x.svm x.mtx ...] [--scale 0.1] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import stage
from stage import Results, Source

import sparsestore as ss
from sparsestore.export import export

FILES = ("x.svm", "x.svm.gz", "x.svm.zst", "x.mtx", "x.csv", "x.npz", "x.parquet", "x.h5ad")
RIVALS = {"x.svm": "scikit-learn", "x.mtx": "scipy"}


def writing(store: str, path: str, way: str) -> Results:
    """One export, timed and watched."""
    warnings.simplefilter("ignore")
    opened = ss.open(store)
    n = len(opened) if way == "sparsestore" else len(opened) // 10
    some = opened.select(rows=slice(n))
    file = Path(path)
    export(opened.select(rows=slice(100)), file, progress=False)  # compiles
    if way != "sparsestore":
        x, y = some[:], some.column("y")[:]
    with stage.PeakMemory() as memory:
        start = time.perf_counter()
        if way == "sparsestore":
            export(some, file, overwrite=True, progress=False)
        elif way == "scikit-learn":
            from sklearn.datasets import dump_svmlight_file

            dump_svmlight_file(x, y, path, zero_based=False)
        else:
            from scipy.io import mmwrite

            mmwrite(path, x)
        seconds = time.perf_counter() - start
    size = os.stat(path).st_size  # noqa: PTH116
    file.unlink()
    return {"MB/s": size / 1e6 / seconds, "entries/s": some.nnz / seconds, "MB": size / 1e6, "peak MB": memory.beyond}


def bench(given: argparse.Namespace) -> list[Results]:
    rows = []
    with stage.scratch(given.home) as folder:
        for name in given.data:
            source = Source(stage.data_set(given.home, name, given.scale))
            store = folder / name
            ss.convert(source.csr(), store, columns={"y": source.labels}, progress=False)
            stage.measure.warm(store)
            for file in given.formats:
                ways = ["sparsestore", *([RIVALS[file]] if file in RIVALS else [])]
                runs: dict[str, list[Results]] = {way: [] for way in ways}
                for _ in range(given.rounds):
                    for way, found in runs.items():
                        found.append(stage.in_child("writing", store=store, path=folder / file, way=way))
                figures = {way: stage.figures(found) for way, found in runs.items()}
                row: Results = {"data": source.path.name, "file": file, **figures["sparsestore"]}
                row["rival"] = ways[-1] if len(ways) > 1 else ""
                row["to rival"] = (
                    figures["sparsestore"]["entries/s"].over(figures[ways[-1]]["entries/s"]) if len(ways) > 1 else ""
                )
                rows.append(row)
    return [{"title": "Export", "rows": rows}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, scale=0.1, rounds=3)
    parser.add_argument("--data", nargs="+", choices=("clicks", "text"), default=["clicks", "text"])
    parser.add_argument("--formats", nargs="+", choices=FILES, default=FILES, help=", ".join(FILES))
    stage.run(parser, bench, {"writing": writing})
