"""How fast is text parsed, with one core and with all, and how fast does it become a store?

Data: a part of clicks (39 entries a row, all ones) and of text (83 a row, nine digits each), written as svmlight, and
a wide CSV of 100 columns, of which 1 in 100 cells is set. *Parsed* is all that a source gives, read and dropped;
*converted* is a store, by all cores. Beside svmlight scikit-learn's `load_svmlight_file` reads a tenth of the file,
with one core, and pandas the CSV. Everything is a process of its own, in turns, with files in the page cache, and what
is compiled once an installation compiled before. Peak memory is anonymous memory beyond what was there before.

    python bench/parse.py [--what clicks text csv] [--mb 300] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import stage
from stage import Results, Source

import sparsestore as ss
from sparsestore.sources.registry import open_source

WHAT = ("clicks", "text", "csv")
READ_BYTES = 64 << 20
"""Of a block that is parsed: as many as `convert` asks for."""


def write_svmlight(source: Source, path: Path, n_bytes: float) -> None:
    """Lines of ``label index:value ...``, indices from 1, until the file is so long."""
    with path.open("w", encoding="ascii") as file:
        for lo in range(0, source.n_rows, 5_000):
            if file.tell() >= n_bytes:
                return
            indptr, indices, values, labels = source.block(lo, min(lo + 5_000, source.n_rows))
            entries = [f"{i}:{v:.9g}" for i, v in zip((indices + 1).tolist(), values.tolist(), strict=True)]
            for row, label in enumerate(labels):
                file.write(f"{label} {' '.join(entries[indptr[row] : indptr[row + 1]])}\n")


def write_csv(path: Path, n_bytes: float) -> None:
    """A hundred columns, 1 in 100 cells set."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="ascii") as file:
        file.write(",".join(f"f{i}" for i in range(100)) + "\n")
        while file.tell() < n_bytes:
            cells = np.full((5_000, 100), "0", object)
            hit = rng.random(cells.shape) < 0.01
            cells[hit] = [f"{value:.4g}" for value in rng.random(np.count_nonzero(hit)) * 10]
            file.writelines(",".join(row) + "\n" for row in cells.tolist())


def head_of(path: Path, part: float) -> Path:
    """The first lines of a file."""
    head = path.with_name(f"head-{path.name}")
    with path.open("rb") as file:
        text = file.read(int(path.stat().st_size * part))
    head.write_bytes(text[: text.rfind(b"\n") + 1])
    return head


def reading(path: str, way: str, folder: str) -> Results:
    """One way to read a file, timed and watched."""
    size = Path(path).stat().st_size
    if way == "one core":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tiny = Path(folder) / f"tiny{Path(path).suffix}"
    with open(path, "rb") as file:  # noqa: PTH123 - a few lines of it
        tiny.write_bytes(b"".join(file.readline() for _ in range(50)))
    for _ in open_source(tiny).blocks(READ_BYTES):  # compiles
        pass
    with stage.PeakMemory() as memory:
        start = time.perf_counter()
        if way in ("one core", "all cores"):
            nnz = sum(block.x.nnz for block in open_source(path).blocks(READ_BYTES))
        elif way == "converted":
            nnz = ss.convert(path, Path(folder) / "store", progress=False).nnz
        elif way == "scikit-learn":
            from sklearn.datasets import load_svmlight_file

            start = time.perf_counter()
            nnz = load_svmlight_file(path, dtype=np.float32)[0].nnz
        else:
            import pandas

            start = time.perf_counter()
            nnz = sum(int((part != 0).to_numpy().sum()) for part in pandas.read_csv(path, chunksize=100_000))
        seconds = time.perf_counter() - start
    return {"MB/s": size / 1e6 / seconds, "peak MB": memory.beyond, "nnz": nnz}


def bench(given: argparse.Namespace) -> list[Results]:
    rows = []
    with stage.scratch(given.home) as folder:
        for what in given.what:
            path = folder / f"{what}.{'csv' if what == 'csv' else 'svm'}"
            if what == "csv":
                write_csv(path, given.mb * 1e6)
            else:
                write_svmlight(Source(stage.data_set(given.home, what, given.scale)), path, given.mb * 1e6)
            rival = "pandas" if what == "csv" else "scikit-learn"
            ways: dict[str, Path] = {"one core": path, "all cores": path, "converted": path, rival: head_of(path, 0.1)}
            runs: dict[str, list[Results]] = {way: [] for way in ways}
            for turn in range(given.rounds + 1):
                for way, file in ways.items():
                    stage.measure.warm(file)
                    with stage.scratch(folder) as made:
                        found = stage.in_child("reading", path=file, way=way, folder=made)
                    if turn:  # in the first turn what is compiled is kept
                        runs[way].append(found)
            if len({run["nnz"] for way in ("one core", "all cores", "converted") for run in runs[way]}) != 1:
                raise RuntimeError(f"{what}: not all ways gave the same entries")
            figures: dict[str, Any] = {way: stage.figures(found) for way, found in runs.items()}
            row: Results = {"file": what, "MB": path.stat().st_size / 1e6}
            row |= {f"{way} MB/s": figures[way]["MB/s"] for way in ("one core", "all cores", "converted")}
            row |= {"peak MB": figures["converted"]["peak MB"], "rival": rival, "its MB/s": figures[rival]["MB/s"]}
            row["one core / rival"] = figures["one core"]["MB/s"].over(figures[rival]["MB/s"])
            rows.append(row)
    return [{"title": "Text", "rows": rows}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, rounds=3)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help=", ".join(WHAT))
    parser.add_argument("--mb", type=float, default=300, help="length of each file (300)")
    stage.run(parser, bench, {"reading": reading})
