"""How fast is a CSC matrix of cells x genes turned into rows on disk, and in how much memory?

Data: an AnnData file of 1M cells x 20,000 genes, 5,000 counts a gene, 100M in all, float32 and int32, as AnnData writes
it: chunked, not compressed; with a label. *convert* is `sparsestore.convert`, which sorts the entries through bucket
files. Beside it what else could be done with the file: *copy* it, and *tocsr*, which reads all of it into RAM and has
scipy turn it there, writing nothing. Everything is a process of its own, in turns, with the file in the page cache, and
what is compiled once an installation compiled before. Peak memory is anonymous memory: of the whole process, and beyond
what was there once packages were imported. With a tenth of the entries memory is measured too: it should not grow.

    python bench/transpose.py [--scale 1] [--max-bytes 200MiB] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import stage
from stage import Results

import sparsestore as ss

N_ROWS, N_FEATURES, A_FEATURE = 1_000_000, 20_000, 5_000
WAYS = ("convert", "copy", "tocsr")


def write_h5ad(path: Path, n_rows: int, n_features: int, a_feature: int) -> None:
    """A CSC matrix with about `a_feature` counts a column, written column by column."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csc_matrix", "encoding-version": "0.1.0", "shape": [n_rows, n_features]})
        # as h5py cuts it for AnnData, which gives the whole array at once
        indices, data = (
            x.create_dataset(name, (n_features * a_feature,), dtype, maxshape=(None,))
            for name, dtype in (("indices", "i4"), ("data", "f4"))
        )
        bounds = [0]
        for first in range(0, n_features, 100):
            found = [
                np.unique(rng.integers(0, n_rows, a_feature, np.int32)) for _ in range(min(100, n_features - first))
            ]
            start = bounds[-1]
            bounds += (start + np.cumsum([len(rows) for rows in found])).tolist()
            indices[start : bounds[-1]] = np.concatenate(found)
            data[start : bounds[-1]] = rng.geometric(0.5, bounds[-1] - start).astype(np.float32)
        for array in (indices, data):
            array.resize((bounds[-1],))
        x.create_dataset("indptr", data=np.array(bounds, np.int64))
        for name, n in (("obs", n_rows), ("var", n_features)):
            frame = file.create_group(name)
            frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
            frame.attrs["column-order"] = np.array(["y"] if name == "obs" else [], h5py.string_dtype())
            frame.create_dataset("_index", data=[f"{name}{i}" for i in range(n)], dtype=h5py.string_dtype())
        file["obs"]["y"] = rng.integers(0, 50, n_rows, np.int8)


def turn(path: Path, way: str, folder: Path, warm: Path, max_bytes: str) -> Results:
    """Turn a file, or do something else with it, in this process."""
    import h5py
    import scipy.sparse

    out = Path(folder) / "out"
    with stage.PeakMemory() as start:
        if way == "convert":
            ss.convert(warm, Path(folder) / "warm", label="y", max_bytes="24MiB", progress=False)  # compiles
    del start
    with stage.PeakMemory() as memory:
        began, worked = time.perf_counter(), time.process_time()
        if way == "convert":
            nnz = ss.convert(path, out, label="y", max_bytes=max_bytes, progress=False).nnz
        elif way == "copy":
            shutil.copyfile(path, out)
            nnz = 0
        else:
            with h5py.File(path) as file:
                x = file["X"]
                arrays = (x["data"][:], x["indices"][:], x["indptr"][:])
                nnz = scipy.sparse.csc_array(arrays, shape=tuple(x.attrs["shape"])).tocsr().nnz
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
    return {
        "s": seconds,
        "CPU s": worked,
        "peak MB": memory.peak * 1.048576,
        "beyond MB": memory.beyond * 1.048576,
        "nnz": nnz,
    }


def check(path: Path, store: Any) -> None:
    """Some rows of the store are those of the file."""
    import h5py

    with h5py.File(path) as file:
        x = file["X"]
        indptr = x["indptr"][:]
        for column in np.linspace(0, len(indptr) - 2, 5).astype(int).tolist():
            rows = x["indices"][indptr[column] : indptr[column + 1]]
            found = store.select(features=[column])[rows[:200]]
            if not np.array_equal(found.toarray()[:, 0], x["data"][indptr[column] : indptr[column] + len(rows[:200])]):
                raise RuntimeError(f"feature {column} of the store is not that of the file")


def bench(given: argparse.Namespace) -> list[Results]:
    rows = []
    with stage.scratch(given.home) as folder:
        write_h5ad(folder / "warm.h5ad", 2_000, 200, 2_000)
        for share in (0.1, 1.0):
            path = folder / f"{share:g}.h5ad"
            a_feature = max(1, round(A_FEATURE * share))
            write_h5ad(path, round(N_ROWS * given.scale), round(N_FEATURES * given.scale) or 1, a_feature)
            ways = WAYS if share == 1 else WAYS[:1]
            runs: dict[str, list[Results]] = {way: [] for way in ways}
            for turns in range(given.rounds + 1):
                for way in ways:
                    stage.measure.warm(path)
                    with stage.scratch(folder) as made:
                        common = {"path": path, "warm": folder / "warm.h5ad", "max_bytes": given.max_bytes}
                        found = stage.in_child("turn", way=way, folder=made, **common)
                        if way == "convert" and not turns:
                            check(path, ss.open(made / "out"))
                    if turns:  # in the first turn what is compiled is kept
                        runs[way].append(found)
            figures: dict[str, Any] = {way: stage.figures(found) for way, found in runs.items()}
            for way in ways:
                found = figures[way]
                row: Results = {"entries": runs["convert"][0]["nnz"], "MB": path.stat().st_size / 1e6, "way": way}
                row |= {key: found[key] for key in ("s", "CPU s", "peak MB", "beyond MB")}
                row["convert / it"] = figures["convert"]["s"].over(found["s"])
                rows.append(row)
    return [{"title": "CSC to CSR", "rows": rows, "note": f"max_bytes={given.max_bytes}"}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, rounds=3)
    parser.add_argument("--max-bytes", default="200MiB", help="what convert may hold (200MiB)")
    stage.run(parser, bench, {"turn": turn})
