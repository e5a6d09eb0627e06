"""How fast does a data set become a store, from where it usually is, and in how much memory?

Data: a tenth of text (83 entries a row with full-mantissa weights, the dearest to parse), written anew as scipy's .npz
(compressed, its default), as svmlight and as Matrix Market; "scipy" is the matrix in RAM. In the order of the source,
and with ``shuffle=True``, both profiles. Rates are of the matrix as CSR in RAM (int64, int32, float32), the same for
all sources, and of the file. Each conversion is a process of its own, with default settings; peak memory is anonymous
memory beyond what was there before: for "scipy" that is beyond the matrix. Stores go to the page cache.

    python bench/convert.py [--data text] [--scale 0.1] [--source npz mtx] [--max-bytes 1GiB] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse as sp
import stage
from stage import Results, Source

import sparsestore as ss

SOURCES = ("scipy", "npz", "svmlight", "mtx")
WAYS: dict[str, dict[str, Any]] = {
    "in order": {},
    "shuffled": {"shuffle": True, "seed": 0},
    "shuffled, compact": {"shuffle": True, "seed": 0, "profile": "compact"},
}


def write_file(source: Source, kind: str, folder: Path) -> Path:
    """The data set as people have it; the matrix in RAM is read from its own folder."""
    if kind == "scipy":
        return source.path
    path = folder / f"x.{'svm' if kind == 'svmlight' else kind}"
    if kind == "npz":
        sp.save_npz(path, source.csr(mmap_mode=None))
    elif kind == "mtx":
        scipy.io.mmwrite(path, source.csr(mmap_mode=None), field="real", symmetry="general")
    else:
        write_svmlight(source, path)
    return path


def write_svmlight(source: Source, path: Path) -> None:
    """Lines of ``label index:value ...``, indices from 1, values with the nine digits that float32 needs."""
    with path.open("w", encoding="ascii") as file:
        for lo in range(0, source.n_rows, 10_000):
            indptr, indices, values, labels = source.block(lo, min(lo + 10_000, source.n_rows))
            entries = [f"{i}:{v:.9g}" for i, v in zip((indices + 1).tolist(), values.tolist(), strict=True)]
            for row, label in enumerate(labels):
                file.write(f"{label} {' '.join(entries[indptr[row] : indptr[row + 1]])}\n")


def conversion(data: str, kind: str, path: str, way: str, max_bytes: str, folder: str) -> Results:
    """One conversion, timed and watched."""
    source = Source(data)
    options: dict[str, Any] = {"max_bytes": max_bytes, "progress": False, **WAYS[way]}
    if kind == "svmlight":
        options["n_features"] = source.n_cols  # the file itself tells only the last one used
    else:
        options["columns"] = {"y": np.array(source.labels)}
    matrix = source.csr(mmap_mode=None) if kind == "scipy" else path
    ss.convert(np.eye(8), Path(folder) / "tiny", progress=False)  # what is imported at first use
    with stage.PeakMemory() as memory:
        start, cpu = time.perf_counter(), time.process_time()
        store = ss.convert(matrix, Path(folder) / "store", **options)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if store.shape != (source.n_rows, source.n_cols) or store.nnz != source.nnz:
        raise RuntimeError(f"{kind} {way} gave {store.shape} with {store.nnz} entries")
    csr = 8 * (source.n_rows + 1) + 8 * source.nnz
    return {
        "s": seconds,
        "CPU s": cpu,
        "CSR MB/s": csr / stage.MIB / seconds,
        "file MB/s": 0 if kind == "scipy" else stage.measure.size_of(path) / stage.MIB / seconds,
        "peak MB": memory.beyond,
        "store MB": stage.measure.size_of(Path(folder) / "store") / stage.MIB,
    }


def bench(given: argparse.Namespace) -> list[Results]:
    rows = []
    source = Source(stage.data_set(given.home, given.data, given.scale))
    with stage.scratch(given.home) as folder:
        files = {kind: write_file(source, kind, folder) for kind in given.source}
        runs: dict[tuple[str, str], list[Results]] = {(kind, way): [] for kind in given.source for way in WAYS}
        for turn in range(given.rounds + 1):
            for (kind, way), found in runs.items():
                with stage.scratch(folder) as made:
                    stage.measure.warm(files[kind])
                    options = {"kind": kind, "path": files[kind], "way": way, "max_bytes": given.max_bytes}
                    result = stage.in_child("conversion", data=source.path, folder=made, **options)
                if turn:  # in the first turn numba may compile, once for an installation
                    found.append(result)
        for (kind, way), found in runs.items():
            size = stage.measure.size_of(files[kind]) / stage.MIB if kind != "scipy" else None
            figures = {key: figure if figure.median else None for key, figure in stage.figures(found).items()}
            rows.append({"source": kind, "file MB": size, "rows": way, **figures})
    note = f"{source.path.name}: {source.n_rows:,} rows, {source.nnz:,} entries; max_bytes {given.max_bytes}."
    return [{"title": "Conversion", "note": note, "rows": rows}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, scale=0.1, rounds=3)
    parser.add_argument("--data", choices=("clicks", "cells", "text"), default="text")
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=SOURCES, help=", ".join(SOURCES))
    parser.add_argument("--max-bytes", default="1GiB", help="memory that a conversion may use (1GiB)")
    stage.run(parser, bench, {"conversion": conversion})
