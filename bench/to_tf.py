"""What does `to_tf` cost a batch, and what is it worth to the model that it feeds?

Three parts; name those to run.

alone (the default): clicks (39 entries a row, 1M columns), shuffled, files in the page cache. The consumer is in the
graph, as in training: ``for x, y in ds`` inside a `tf.function` adds up the sizes of values and labels, so that no
batch passes through Python (``ds.reduce`` in its place costs 10 to 30 us a batch more). The clock runs over a whole
epoch: its iterator and first window count, opening and tracing don't. "floor" is ``range(n).map(constant batch)``
through the same consumer with the options and prefetch of `to_tf`; "loader" is the same epoch without TensorFlow. Wall
time and CPU of the process.

fit: `model.fit` of Dense(1) on clicks at batch 32, 256 and 4096, each run a process: from `to_tf`; "keras-cached", the
bound, is the same batches already in RAM as SparseTensors; "keras-fit-csr" hands the scipy matrix to fit. The runs are
those of the action keras of `peers/`, with a batch size more, all in this Python.

seed: 100M rows x 100, one entry in 10,000: shuffled dense batches of 65,536, whose consumer sums each, against the
generator of the question that started this project (``X[idx].toarray()`` with X in RAM, through ``from_generator``).
Each run is a process, and takes the first `--batches`: the ratio is of what comes after the first batch, so that
neither reading X nor permuting 100M rows counts against the generator; the time to the first batch stands beside it.

    python bench/to_tf.py [alone] [fit] [seed] [--scale 1] [--batch 32 256 4096] [--rounds 5] [--cap 4] [--json]
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stage
from adapters import sparsestore_
from stage import Results, Source

import sparsestore as ss

BATCHES = (32, 256, 4096)
FITS = {"keras-cached": "keras_cached", "to_tf": "sparsestore_", "keras-fit-csr": "keras_fit_csr"}
SEED_BATCH = 65_536
SEEDS = {"generator": "scipy_ram", "to_tf": "sparsestore_"}


def convert(data: str, folder: Path) -> Path:
    """A store shuffled once, as the adapter of the comparison makes it; the folder that its functions take."""
    folder.mkdir()
    stage.in_child("make", data=data, folder=folder)
    stage.measure.warm(folder)
    return folder


def make(data: str, folder: str) -> Results:
    return sparsestore_.convert(Source(data), Path(folder))


# -------------------------------------------------------------------------------------------------- alone


def consumer() -> Callable[[Any], tuple[int, int]]:
    """A function that reads a dataset to its end without Python seeing a batch; gives the entries and rows it held."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def consume(ds: Any) -> Any:
        entries = rows = tf.zeros([], tf.int64)
        for x, y in ds:
            entries += tf.size(x.values, tf.int64)
            rows += tf.size(y, tf.int64)
        return entries, rows

    def read(ds: Any) -> tuple[int, int]:
        entries, rows = consume(ds)
        return int(entries), int(rows)

    return read


def floor_of(ds: Any, n_batches: int) -> Any:
    """As many batches of the same kind as `ds` gives, all the same one: what tf.data costs by itself."""
    import tensorflow as tf

    batch = next(iter(ds))
    plain = tf.autograph.experimental.do_not_convert(lambda _: batch)
    return tf.data.Dataset.range(n_batches).map(plain).prefetch(2).with_options(ds.options())


def timed(work: Callable[[], Any], wanted: Any, n_batches: int) -> Results:
    """Microseconds a batch of wall time and CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    found = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if wanted is not None and found != wanted:
        raise RuntimeError(f"the epoch had {found} entries and rows, expected {wanted}")
    return {"us": seconds / n_batches * 1e6, "CPU us": cpu / n_batches * 1e6}


def alone(data: str, folder: str, batch: int, rounds: int) -> Results:
    """Runs of one batch size, in turns; the first turn traces and loads compiled loops."""
    source, path = Source(data), Path(folder) / "store"
    options: dict[str, Any] = {"batch_size": batch, "shuffle": True, "seed": 0}
    ds, loader, consume = ss.open(path).to_tf(**options), ss.open(path).loader(**options), consumer()
    wanted, n_batches = (source.nnz, source.n_rows), len(loader)
    floor = floor_of(ds, n_batches)

    def load() -> tuple[int, int]:
        sizes = [(b.x.nnz, len(b.y)) for b in loader]
        return sum(nnz for nnz, _ in sizes), sum(rows for _, rows in sizes)

    work = {
        "floor": (lambda: consume(floor), None),
        "to_tf": (lambda: consume(ds), wanted),
        "loader": (load, wanted),
    }
    runs: dict[str, list[Results]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, (epoch, expected) in work.items():
            found = timed(epoch, expected, n_batches)
            if turn:
                runs[name].append(found)
    return {"runs": runs, "entries a batch": source.nnz / n_batches}


def alone_tables(given: argparse.Namespace, folder: Path) -> list[Results]:
    data = stage.data_set(given.home, "clicks", given.scale)
    store = convert(str(data), folder / "clicks")
    rows = []
    for batch in given.batch:
        found = stage.in_child("alone", data=data, folder=store, batch=batch, rounds=given.rounds)
        figures = {name: stage.figures(runs) for name, runs in found["runs"].items()}
        for name, figure in figures.items():
            entries = found["entries a batch"]
            rows.append(
                {
                    "batch": batch,
                    "feed": name,
                    "us a batch": figure["us"],
                    "CPU us": figure["CPU us"],
                    "ns an entry": figure["us"].median * 1e3 / entries if name != "floor" else None,
                    "CPU ns an entry": figure["CPU us"].median * 1e3 / entries if name != "floor" else None,
                }
            )
    return [{"title": f"to_tf alone, {data.name}, consumer in the graph", "rows": rows}]


# ------------------------------------------------------------------------------------- fit and the seed's case


def fit_tables(given: argparse.Namespace, folder: Path) -> list[Results]:
    data = stage.data_set(given.home, "clicks", given.scale)
    store = convert(str(data), folder / "clicks-fit")
    stage.measure.warm(data)
    rows = []
    for batch in given.batch:
        runs: dict[str, list[Results]] = {name: [] for name in FITS}
        for _ in range(given.rounds):
            for name, module in FITS.items():
                spec = {
                    "kind": "keras",
                    "module": module,
                    "data": data,
                    "store": store,
                    "batch": batch,
                    "cap": given.cap,
                }
                found = stage.python(stage.PEERS / "worker.py", json.dumps(spec, default=str), watch=True)
                keys = ("rows_per_s", "rows_per_s_after_first", "ms_per_batch", "first_batch_s", "peak anon MB")
                runs[name].append({key: found[key] for key in keys})
        figures = {name: stage.figures(found) for name, found in runs.items()}
        for name, figure in figures.items():
            row = {"batch": batch, "feed": name, "rows/s": figure["rows_per_s"]}
            for base in ("keras-cached", "keras-fit-csr"):
                row[f"to {base}"] = figure["rows_per_s"].over(figures[base]["rows_per_s"])
            row["after first batch, to keras-cached"] = figure["rows_per_s_after_first"].over(
                figures["keras-cached"]["rows_per_s_after_first"]
            )
            row |= {"ms a batch": figure["ms_per_batch"], "first batch s": figure["first_batch_s"]}
            rows.append({**row, "peak anon MB": figure["peak anon MB"]})
    note = f"Dense(1) on a sparse input, SGD; epochs end after {given.cap:g} s."
    return [{"title": f"model.fit, {data.name}", "note": note, "rows": rows}]


def summed(module: str, data: str, folder: str, batches: int) -> Results:
    """Take dense batches through tf.data, and sum each."""
    import tensorflow as tf

    source = Source(data)
    start, cpu = time.perf_counter(), time.process_time()
    ds = importlib.import_module(f"adapters.{module}").tf_dataset(folder, source, SEED_BATCH, "dense", 1)
    total, rows, first = 0.0, 0, None
    for x, _ in ds.take(batches):
        total += float(tf.reduce_sum(x))
        rows += x.shape[0]
        first = first or (time.perf_counter(), x.shape[0])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    wanted = float(source.data.sum(dtype="float64"))
    if first is None or (rows == source.n_rows and abs(total - wanted) > 1e-4 * wanted):
        raise RuntimeError(f"a whole epoch adds up to {total}, expected {wanted}")
    first_s = first[0] - start
    found = {"s": seconds, "rows": rows, "first batch s": first_s, "rows/s": rows / seconds}
    if rows > first[1]:
        found["rows/s after first batch"] = (rows - first[1]) / (seconds - first_s)
    return {**found, "CPU s/Mrow": cpu / rows * 1e6}


def seed_tables(given: argparse.Namespace, folder: Path) -> list[Results]:
    data = stage.data_set(given.home, "seed", given.scale)
    store = convert(str(data), folder / "seed")
    stage.measure.warm(data)
    runs: dict[str, list[Results]] = {name: [] for name in SEEDS}
    n_batches = given.batches or -(-Source(data).n_rows // SEED_BATCH)
    for _ in range(given.rounds):
        for name, module in SEEDS.items():
            options = {"module": module, "data": data, "folder": store, "batches": n_batches}
            runs[name].append(stage.in_child("summed", watch=True, **options))
    figures = {name: stage.figures(found) for name, found in runs.items()}
    rows = []
    for name, figure in figures.items():
        ratios = {
            f"{key}, to generator": figure[key].over(figures["generator"][key])
            for key in ("rows/s after first batch", "rows/s")
            if key in figure
        }
        rows.append({"feed": name, **figure, **ratios})
    note = f"{n_batches} of the batches of {SEED_BATCH:,} rows of an epoch."
    return [{"title": f"Seed, dense, {data.name}", "note": note, "rows": rows}]


PARTS = {"alone": alone_tables, "fit": fit_tables, "seed": seed_tables}


def bench(given: argparse.Namespace) -> list[Results]:
    parts = given.part or ["alone"]
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"error: no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    with stage.scratch(given.home) as folder:
        return [table for part in parts for table in PARTS[part](given, folder)]


if __name__ == "__main__":
    parser = stage.arguments(__doc__)
    parser.add_argument("part", nargs="*", metavar="PART", help="alone (the default), fit, seed")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="sizes for alone and fit (32 256 4096)")
    parser.add_argument("--cap", type=float, default=4, help="seconds after which an epoch of fit ends (4)")
    parser.add_argument("--batches", type=int, default=200, help="of the seed's data; 0 takes the whole epoch (200)")
    stage.run(parser, bench, {"make": make, "alone": alone, "summed": summed})
