"""How much memory does a conversion take, format by format, of some data and of ten times as much?

Data: random rows of 20 entries among 5,000 features (dense formats: 50 columns, a tenth of them set), 20,000 rows and
ten times as many. Each file is converted in a process of its own with `max_bytes` of 64 MiB, after a small one of its
kind; the figure is anonymous memory beyond what was there then. A format that held its data would take ten times as
much.

    python bench/memory.py [--only csv parquet ...] [--rows 20000] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import parse
import stage
from scipy import sparse
from stage import Results

import sparsestore as ss
from sparsestore.export import export

WIDTH, PER_ROW, DENSE = 5_000, 20, 50
TRIPLES = {"row": "row", "feature": "feature", "value": "value"}


class Rows:
    """Random rows, as the writers of `parse` and the exports take them."""

    n_cols = WIDTH

    def __init__(self, folder: Path, n_rows: int) -> None:
        rng = np.random.default_rng(0)
        self.n_rows = n_rows
        indices = np.sort(rng.integers(0, WIDTH - PER_ROW, (n_rows, PER_ROW)), axis=1) + np.arange(PER_ROW)
        values = rng.integers(1, 1000, indices.size).astype(np.float32) / 8
        indptr = np.arange(0, indices.size + 1, PER_ROW)
        self.x = sparse.csr_array((values, indices.reshape(-1).astype(np.int32), indptr), shape=(n_rows, WIDTH))
        self.y = rng.integers(0, 2, n_rows)
        dense = rng.integers(1, 99, (n_rows, DENSE)).astype(np.float32)
        self.dense = np.where(rng.random(dense.shape) < 0.1, dense, 0)
        self.store = ss.convert(
            self.x, folder / f"{n_rows}.zarr", columns={"y": self.y}, overwrite=True, progress=False
        )

    def block(self, lo: int, hi: int) -> tuple[Any, Any, Any, Any]:
        part = self.x[lo:hi]
        return part.indptr, part.indices, part.data, self.y[lo:hi]

    def lines(self, entry: str) -> list[str]:
        """Entries of each row, in a form such as ``{i}:{v}``."""
        i, v = self.x.indices.tolist(), self.x.data.tolist()
        parts = [entry.format(i=i, v=v) for i, v in zip(i, v, strict=True)]
        return [" ".join(parts[k : k + PER_ROW]) for k in range(0, len(parts), PER_ROW)]


def _export(rows: Rows, path: Path, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(rows.store, path, overwrite=True, progress=False, **options)


def _text(before: str, entry: str) -> Callable[[Rows, Path], None]:
    def write(rows: Rows, path: Path) -> None:
        path.write_text("".join(f"{before}{line}\n" for line in rows.lines(entry)))

    return write


def _uci(rows: Rows, path: Path) -> None:
    coo = rows.x.tocoo()
    head = f"{rows.n_rows}\n{WIDTH}\n{coo.nnz}\n"
    entries = zip(*(part.tolist() for part in coo.coords), strict=True)
    path.write_text(head + "".join(f"{row + 1} {term + 1} 1\n" for row, term in entries))


def _wide(rows: Rows, path: Path) -> None:
    head = ",".join(f"f{k}" for k in range(DENSE))
    np.savetxt(path, rows.dense, fmt="%g", delimiter=",", header=head, comments="")


def _categories(rows: Rows, path: Path) -> None:
    codes = (rows.dense.astype(np.int64) * 7 + np.arange(DENSE))[:, :10]
    lines = (",".join(f"c{code}" for code in row) for row in codes.tolist())
    path.write_text(",".join(f"C{k}" for k in range(10)) + "\n" + "".join(f"{line}\n" for line in lines))


def _frame(rows: Rows) -> Any:
    import pyarrow as pa

    return pa.table({f"f{k}": rows.dense[:, k] for k in range(DENSE)})


def _wide_parquet(rows: Rows, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(_frame(rows), path)


def _arrow(rows: Rows, path: Path) -> None:
    import pyarrow as pa

    table = _frame(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10_000)


def _sqlite(rows: Rows, path: Path) -> None:
    coo = rows.x.tocoo()
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (row int, feature int, value real)")
        entries = zip(*(part.tolist() for part in (*coo.coords, coo.data)), strict=True)
        connection.executemany("insert into t values (?, ?, ?)", entries)
    connection.close()


def _hdf5(rows: Rows, path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=rows.dense, chunks=(min(1000, len(rows.dense)), DENSE), compression="gzip")


def _csc(rows: Rows, path: Path) -> None:
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata.AnnData(sparse.csc_matrix(rows.x)).write_h5ad(path)


def _records(rows: Rows, path: Path) -> None:
    parse.write_tfrecord(rows, path, 1e18)  # type: ignore[arg-type]


def _svmlight(rows: Rows, path: Path) -> None:
    parse.write_svmlight(rows, path, 1e18)  # type: ignore[arg-type]


def _arff(rows: Rows, path: Path) -> None:
    parse.write_arff(rows, path, 1e18)  # type: ignore[arg-type]


MAKERS: dict[str, tuple[str, Callable[[Rows, Path], None], dict[str, Any]]] = {
    "svmlight": ("x.svm", _svmlight, {}),
    "svmlight, shuffled": ("x.svm", _svmlight, {"shuffle": True, "seed": 0}),
    "svmlight.gz": ("x.svm.gz", _export, {}),
    "libffm": ("x.ffm", _text("1 ", "3:{i}:{v}"), {}),
    "vw": ("x.vw", _text("1 |a ", "w{i}:{v}"), {}),
    "lda_c": ("x.ldac", _text(f"{PER_ROW} ", "{i}:{v:.0f}"), {}),
    "uci": ("x.uci", _uci, {}),
    "matrix_market": ("x.mtx", _export, {}),
    "matrix_market, shuffled": ("x.mtx", _export, {"shuffle": True, "seed": 0}),
    "arff": ("x.arff", _arff, {"label": "y"}),
    "tfrecord": ("x.tfrecord", _records, {"indices": "i", "values": "v", "label": "y"}),
    "csv, wide": ("x.csv", _wide, {}),
    "csv, categories": ("x.csv", _categories, {"categorical": "C*"}),
    "csv, triples": ("x.csv", _export, TRIPLES),
    "csv, texts": ("x.csv", _export, {**TRIPLES, "feature": "feature:string"}),
    "npz": ("x.npz", _export, {}),
    "npy": ("x.npy", lambda rows, path: np.save(path, rows.dense), {}),
    "parquet, wide": ("x.parquet", _wide_parquet, {}),
    "parquet, triples": ("x.parquet", _export, TRIPLES),
    "parquet, lists": (
        "x.parquet",
        lambda rows, path: _export(rows, path, layout="lists"),
        {"indices": "indices", "values": "values", "label": "y"},
    ),
    "arrow": ("x.arrow", _arrow, {}),
    "sqlite": ("x.sqlite", _sqlite, {**TRIPLES, "sql": "select * from t"}),
    "hdf5": ("x.h5", _hdf5, {}),
    "h5ad": ("x.h5ad", _export, {"label": "y"}),
    "h5ad, CSC": ("x.h5ad", _csc, {}),
    "sparsestore": ("x.zarr", lambda rows, path: shutil.copytree(rows.store.path, path), {}),
}


def converting(small: str, path: str, folder: str, options: dict[str, Any]) -> Results:
    """One conversion, watched."""
    ss.convert(small, Path(folder) / "small.zarr", max_bytes="64MiB", progress=False, **options)
    with stage.PeakMemory() as memory:
        store = ss.convert(path, Path(folder) / "x.zarr", max_bytes="64MiB", progress=False, **options)
    return {"MiB": memory.beyond, "nnz": store.nnz}


def bench(given: argparse.Namespace) -> list[Results]:
    rows = []
    with stage.scratch(given.home) as folder:
        sizes = [Rows(folder, n) for n in (100, given.rows, 10 * given.rows)]
        for name in given.only or MAKERS:
            suffix, make, options = MAKERS[name]
            paths = []
            for size in sizes:
                paths.append(folder / f"{size.n_rows}{suffix[1:]}.d" / suffix)
                paths[-1].parent.mkdir()
                make(size, paths[-1])
            row: Results = {"format": name}
            for label, path in zip(("1x", "10x"), paths[1:], strict=True):
                with stage.scratch(folder) as made:
                    found = stage.in_child("converting", small=paths[0], path=path, folder=made, options=options)
                row[f"{label} MB"] = sum(f.stat().st_size for f in (path, *path.rglob("*")) if f.is_file()) / 1e6
                row[f"{label} peak MiB"] = found["MiB"]
                row["nnz"] = found["nnz"]
            rows.append(row)
            for path in paths:
                shutil.rmtree(path.parent)
            if not given.json:
                print(json.dumps(row), flush=True)
    return [{"title": "Memory", "rows": rows}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, rounds=1)
    parser.add_argument("--only", nargs="+", choices=MAKERS, help="formats")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the smaller files (20,000)")
    stage.run(parser, bench, {"converting": converting})
