"""Unsorted triples in Parquet to a store: time and peak anonymous memory, beside DuckDB's sort of the same file.

A triple is (int32, int32, float32), of 10 million rows x 100,000 features where there are 100 million. DuckDB sorts by
row and feature with as much memory, and its batches are read to the end in order; nothing is written, which the store
is. `--check` compares every entry of the store with scipy's matrix of the same triples (which needs some 5 GB).

    python bench/triples.py [--millions 100] [--rounds 3] [--max-bytes 1GiB] [--check] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FEATURES = 100_000
STEP = 4_000_000

WATCH = """
import resource, sys, threading, time

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())

threading.Thread(target=watch, daemon=True).start()
"""

OURS = """
from sparsestore.convert import convert
path, dst, limit = sys.argv[1:4]
convert(path.replace("x.parquet", "small.parquet"), dst + "-small", row="r", feature="f", value="x", progress=False)
start = time.perf_counter()
convert(path, dst, row="r", feature="f", value="x", max_bytes=limit, progress=False)
print(time.perf_counter() - start, peak)
"""

DUCKDB = """
import duckdb
path, folder, limit = sys.argv[1:4]
con = duckdb.connect()
con.execute("set enable_progress_bar=false")
con.execute(f"set memory_limit='{limit}'")
con.execute(f"set temp_directory='{folder}'")
start = time.perf_counter()
n, last = 0, -1
for batch in con.sql(f"select r, f, x from '{path}' order by r, f").to_arrow_reader(1 << 20):
    rows = batch.column(0).to_numpy()
    assert rows[0] >= last and (rows[1:] >= rows[:-1]).all()
    last = rows[-1]
    n += len(rows)
print(time.perf_counter() - start, peak)
"""


def write(path: Path, millions: int) -> None:
    """Triples at random places, a row group of four million at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    n, n_rows = millions * 1_000_000, millions * 100_000
    schema = pa.schema([("r", pa.int32()), ("f", pa.int32()), ("x", pa.float32())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, n, STEP):
            k = min(STEP, n - start)
            arrays = rng.integers(0, n_rows, k, np.int32), rng.integers(0, FEATURES, k, np.int32)
            writer.write_batch(pa.record_batch([*arrays, rng.random(k, np.float32)], schema=schema))


def check(path: Path, store: Path) -> None:
    """Compare every entry with scipy's."""
    import pyarrow.parquet as pq
    from scipy import sparse

    import sparsestore as ss

    table = pq.read_table(path)
    rows, features, values = (table.column(name).to_numpy() for name in ("r", "f", "x"))
    opened = ss.open(store)
    wanted = sparse.coo_array((values.astype(np.float64), (rows, features)), shape=opened.shape).tocsr()
    for start in range(0, opened.shape[0], 1_000_000):
        found, part = opened[start : start + 1_000_000], wanted[start : start + 1_000_000]
        part.sort_indices()
        np.testing.assert_array_equal(found.indptr, part.indptr)
        np.testing.assert_array_equal(found.indices, part.indices)
        np.testing.assert_array_equal(found.data, part.data.astype(np.float32))


def tell(found: dict[str, list[list[float]]], millions: float, *, as_json: bool) -> None:
    """Print medians of the runs of each way: seconds, and bytes at the peak."""
    result = {
        what: {
            "seconds": statistics.median(run[0] for run in runs),
            "from_to": [min(run[0] for run in runs), max(run[0] for run in runs)],
            "peak_mb": max(run[1] for run in runs) / 1e6,
            "mtriples_per_s": millions / statistics.median(run[0] for run in runs),
        }
        for what, runs in found.items()
    }
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for what, r in result.items():
        low, high = r["from_to"]
        print(
            f"{what:12} {r['seconds']:6.1f} s ({low:.1f} to {high:.1f})  {r['mtriples_per_s']:5.2f} M triples/s  "
            f"peak {r['peak_mb']:,.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-bytes", default="1GiB")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        path = folder / "x.parquet"
        write(path, given.millions)
        write(folder / "small.parquet", 1)  # what is compiled once a process is not counted
        found: dict[str, list[list[float]]] = {"sparsestore": [], "duckdb": []}
        for _ in range(given.rounds):
            for what, code in (("sparsestore", OURS), ("duckdb", DUCKDB)):
                out = folder / what
                for each in (out, folder / f"{what}-small"):
                    shutil.rmtree(each, ignore_errors=True)
                command = [sys.executable, "-c", WATCH + code, path, out, given.max_bytes]
                done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
                found[what].append([float(word) for word in done.stdout.split()[-2:]])
                time.sleep(1)
        if given.check:
            check(path, folder / "sparsestore")
    tell(found, given.millions, as_json=given.json)
    if given.check and not given.json:
        print("every entry is scipy's")


if __name__ == "__main__":
    main()
