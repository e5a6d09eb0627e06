"""What are the layers and optimizers of `sparsestore.keras` worth, in time and in what is learned?

Parts; name those to run.

step (the default): milliseconds of a training step of one hidden layer of `--units` on clicks (1M features, 39 a row),
fed with batches that are in memory already: Dense and SparseDense, each with the optimizers of Keras and the lazy ones.
Each case is a process; the first steps trace and touch memory, and don't count.

ways: rows a second of `model.fit` from stores of 100 to 100,000 features, 39 entries a row, the two ways of
docs/keras.md: dense batches, Dense and Adam; sparse ones, with Dense and Adam, and with SparseDense and LazyAdam.

fit: rows a second and peak anonymous memory of a whole `model.fit`: from a store with SparseDense and LazyAdam, and of
the scipy matrix in RAM with Dense and Adam. The clock starts at the end of the second batch.

quality: loss on rows that were not trained on, of Adam and LazyAdam, for five seeds, with the same layers otherwise: on
a9a and rcv1_small, and on clicks whose labels come from a planted model. Mean and 95 % interval (Student's t).

gpu: rows a second of `fit` at 10,000 features where the batch is made dense by the loader, and where `ToDense` makes it
dense on the GPU from its entries. Left out, with a note, where TensorFlow finds no GPU.

leak: anonymous memory in 50 epochs of fit, from the third to the last.

    python bench/train.py [PART ...] [--units 64] [--batch 256] [--scale 0.1] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stage
from adapters import sparsestore_
from stage import Results, Source

import sparsestore as ss

PAIRS = {
    "SGD": ("SGD", "SGD"),
    "momentum": ("momentum", "LazyMomentum"),
    "Adagrad": ("Adagrad", "LazyAdagrad"),
    "Adam": ("Adam", "LazyAdam"),
    "FTRL": ("Ftrl", "LazyFTRL"),
}
STEPS, WARM = 40, 10
FIT_S = 10.0
SEEDS = 5
STUDENT_95 = 2.776  # of four degrees of freedom
TESTS = Path(__file__).parents[1] / "tests" / "data"


def optimizer(name: str, rate: float = 0.001) -> Any:
    import keras

    from sparsestore import keras as ours

    if name == "momentum":
        return keras.optimizers.SGD(rate, momentum=0.9)
    return getattr(ours if name.startswith("Lazy") else keras.optimizers, name)(rate)


def model_of(layer: str, units: int, n_features: int, optimizer: Any, *, sparse: bool = True) -> Any:
    import keras

    from sparsestore.keras import SparseDense

    first = {"Dense": keras.layers.Dense, "SparseDense": SparseDense}[layer]
    layers = [first(units, "relu"), keras.layers.Dense(1, "sigmoid")] if units > 1 else [first(1, "sigmoid")]
    found = keras.Sequential([keras.Input((n_features,), sparse=sparse), *layers])
    found.compile(optimizer, "binary_crossentropy")
    return found


def binary(x: Any, y: Any) -> tuple[Any, Any]:
    import tensorflow as tf

    return x, tf.cast(y > 0, tf.float32)


def step(layer: str, optimizer_name: str, store: str, batch: int, units: int) -> Results:
    opened = ss.open(Path(store) / "store")
    ds = opened.to_tf(batch, shuffle=True, seed=0, drop_remainder=True).map(binary).take(STEPS).cache()
    model = model_of(layer, units, opened.shape[1], optimizer(optimizer_name))
    model.make_train_function()
    batches = iter(ds.repeat())
    times = []
    for _ in range(STEPS + WARM):
        start = time.perf_counter()
        model.train_function(batches)
        times.append(time.perf_counter() - start)
    return {"ms": float(np.median(times[WARM:])) * 1e3, "least ms": min(times[WARM:]) * 1e3}


def step_tables(given: argparse.Namespace, folder: Path) -> list[Results]:
    store = convert(given, folder / "step")
    cases = {
        (layer, name): []
        for pair in PAIRS.values()
        for layer in ("Dense", "SparseDense")
        for name in dict.fromkeys(pair)
        if not (layer == "Dense" and name.startswith("Lazy") and name != "LazyAdam")
    }
    tables = []
    for batch in given.batch:
        runs: dict[tuple[str, str], list[Results]] = {case: [] for case in cases}
        for _ in range(given.rounds):
            for layer, name in cases:
                options = {"store": store, "batch": batch, "units": given.units}
                runs[layer, name].append(stage.in_child("step", layer=layer, optimizer_name=name, **options))
        figures = {case: stage.figures(found)["ms"] for case, found in runs.items()}
        rows = []
        for theirs, ours in PAIRS.values():
            base = figures["Dense", theirs]
            rows.append({"layer": "Dense", "optimizer": theirs, "ms a step": base, "times as fast": 1.0})
            rows += [
                {"layer": layer, "optimizer": name, "ms a step": found, "times as fast": base.over(found)}
                for (layer, name), found in figures.items()
                if name in (theirs, ours) and (layer, name) != ("Dense", theirs)
            ]
        tables.append({"title": f"A step, clicks, batch {batch}, {given.units} units", "rows": rows})
    return tables


def convert(given: argparse.Namespace, folder: Path) -> Path:
    data = stage.data_set(given.home, "clicks", given.scale)
    folder.mkdir()
    stage.in_child("make", data=data, folder=folder)
    stage.measure.warm(folder)
    return folder


def make(data: str, folder: str) -> Results:
    return sparsestore_.convert(Source(data), Path(folder))


# ---------------------------------------------------------------------------------------------------- fit


def fit(way: str, data: str, store: str, batch: int, units: int) -> Results:
    if way == "store":
        return ways(str(Path(store) / "store"), "sparse", "SparseDense", "LazyAdam", batch, units)
    from scipy import sparse

    source = Source(data)
    indptr, indices, values, y = source.block(0, source.n_rows)
    x = sparse.csr_matrix((values, indices, indptr), shape=(source.n_rows, source.n_cols))
    model = model_of("Dense", units, source.n_cols, optimizer("Adam"))
    clock = clock_of(batch)
    model.fit(x, (y > 0).astype("float32"), batch_size=batch, verbose=0, callbacks=[clock])
    return {"rows/s": clock.rows / clock.seconds}


def clock_of(batch: int) -> Any:
    """Counts rows from the end of the second batch on, for some seconds."""
    import keras

    class Clock(keras.callbacks.Callback):
        rows = 0
        begun = seconds = 0.0

        def on_train_batch_end(self, batch_number: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras names it
            now = time.perf_counter()
            if not self.begun:
                if batch_number == 1:
                    self.begun = now
                return
            self.rows += batch
            self.seconds = now - self.begun
            self.model.stop_training = self.seconds > FIT_S

    return Clock()


def fit_tables(given: argparse.Namespace, folder: Path) -> list[Results]:
    data = stage.data_set(given.home, "clicks", given.scale)
    store = convert(given, folder / "fit")
    stage.measure.warm(data)
    rows = []
    for batch in given.batch:
        runs: dict[str, list[Results]] = {"fit(csr), Dense, Adam": [], "store, SparseDense, LazyAdam": []}
        for _ in range(given.rounds):
            for name, found in runs.items():
                way = name.partition(",")[0]
                options = {"data": data, "store": store, "batch": batch, "units": given.units}
                found.append(stage.in_child("fit", watch=True, way=way, **options))
        figures = {name: stage.figures(found) for name, found in runs.items()}
        base = figures["fit(csr), Dense, Adam"]
        for name, figure in figures.items():
            rows.append(
                {
                    "batch": batch,
                    "way": name,
                    **figure,
                    "rows/s to fit(csr)": figure["rows/s"].over(base["rows/s"]),
                    "memory to fit(csr)": figure["peak anon MB"].over(base["peak anon MB"]),
                }
            )
    return [{"title": f"A whole fit, {data.name}, {given.units} units", "rows": rows}]


# --------------------------------------------------------------------------------------------------- ways

WAYS = (("dense", "Dense", "Adam"), ("sparse", "Dense", "Adam"), ("sparse", "SparseDense", "LazyAdam"))
WIDTHS = (100, 1_000, 10_000, 100_000)
DENSE_BYTES = 1 << 30  # of a batch: more is not tried


def ways(store: str, layout: str, layer: str, optimizer_name: str, batch: int, units: int) -> Results:
    opened = ss.open(store)
    model = model_of(layer, units, opened.shape[1], optimizer(optimizer_name), sparse=layout == "sparse")
    ds = opened.to_tf(batch, shuffle=True, seed=0, layout=layout, drop_remainder=True).map(binary)
    clock = clock_of(batch)
    model.fit(ds, epochs=100, verbose=0, callbacks=[clock])
    return {"rows/s": clock.rows / clock.seconds}


def spread(given: argparse.Namespace, folder: Path, widths: Sequence[int]) -> dict[int, Path]:
    """Stores of 50,000 rows of clicks, whose features are spread over fewer, as a hash would do; by width."""
    from scipy import sparse

    source = Source(stage.data_set(given.home, "clicks", given.scale))
    n = min(source.n_rows, 50_000)
    indptr, indices, _, y = source.block(0, n)
    found = {width: folder / f"{width}.zarr" for width in widths}
    for width, path in found.items():
        x = sparse.csr_array((np.ones(len(indices), np.float32), indices % width, indptr), shape=(n, width))
        ss.convert(x, path, columns={"y": y}, progress=False)
    return found


def ways_tables(given: argparse.Namespace, folder: Path) -> list[Results]:
    (folder / "ways").mkdir()
    stores = spread(given, folder / "ways", WIDTHS)
    tables = []
    for batch in given.batch:
        rows = []
        for width, store in stores.items():
            runs: dict[tuple[str, str, str], list[Results]] = {
                way: [] for way in WAYS if way[0] == "sparse" or 4 * batch * width <= DENSE_BYTES
            }
            for _ in range(given.rounds):
                for (layout, layer, name), found in runs.items():
                    options = {"store": store, "layout": layout, "layer": layer, "optimizer_name": name}
                    found.append(stage.in_child("ways", batch=batch, units=given.units, **options))
            figures = {way: stage.figures(found)["rows/s"] for way, found in runs.items()}
            base = figures.get(WAYS[0])
            rows += [
                {
                    "features": width,
                    "batches": layout,
                    "layer": layer,
                    "optimizer": name,
                    "rows/s": figure,
                    "to dense": figure.over(base) if base else "",
                }
                for (layout, layer, name), figure in figures.items()
            ]
        tables.append({"title": f"Both ways, batch {batch}, {given.units} units", "rows": rows})
    return tables


# ---------------------------------------------------------------------------------------------------- gpu

GPU_WIDTH = 10_000


def gpu(store: str, where: str, batch: int, units: int) -> Results:
    import keras
    import tensorflow as tf

    from sparsestore.keras import ToDense

    if not tf.config.list_physical_devices("GPU"):
        return {}
    opened = ss.open(store)
    inputs = keras.Input((opened.shape[1],), sparse=where == "GPU")
    x = ToDense()(inputs) if where == "GPU" else inputs
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(keras.layers.Dense(units, "relu")(x)))
    model.compile(optimizer("Adam"), "binary_crossentropy")
    layout = "sparse" if where == "GPU" else "dense"
    ds = opened.to_tf(batch, shuffle=True, seed=0, layout=layout, drop_remainder=True).map(binary)
    clock = clock_of(batch)
    model.fit(ds, epochs=1_000, verbose=0, callbacks=[clock])
    return {"rows/s": clock.rows / clock.seconds}


def gpu_tables(given: argparse.Namespace, folder: Path) -> list[Results]:
    (folder / "gpu").mkdir()
    (store,) = spread(given, folder / "gpu", (GPU_WIDTH,)).values()
    title = f"Made dense by the processor or by the GPU, {GPU_WIDTH} features, {given.units} units"
    rows = []
    for batch in given.batch:
        for where in ("processor", "GPU"):
            options = {"store": store, "where": where, "batch": batch, "units": given.units}
            runs = [stage.in_child("gpu", **options) for _ in range(given.rounds)]
            if not all(runs):
                return [{"title": title, "note": "TensorFlow finds no GPU here.", "rows": []}]
            rows.append({"batch": batch, "made dense by": where, **stage.figures(runs)})
    return [{"title": title, "rows": rows}]


# ------------------------------------------------------------------------------------------------ quality


def quality(name: str, train: str, test: str, units: int, epochs: int, batch: int) -> Results:
    import keras

    stores = [ss.open(path) for path in (train, test)]
    found: Results = {}
    for rate in (0.001, 0.003, 0.01):
        losses = []
        for seed in range(SEEDS):
            keras.utils.set_random_seed(seed)
            model = model_of("SparseDense", units, stores[0].shape[1], optimizer(name, rate))
            model.fit(stores[0].to_tf(batch, shuffle=True, seed=seed).map(binary), epochs=epochs, verbose=0)
            losses.append(float(model.evaluate(stores[1].to_tf(4096).map(binary), verbose=0)))
        half = STUDENT_95 * np.std(losses, ddof=1) / np.sqrt(SEEDS)
        found[f"rate {rate:g}"] = f"{np.mean(losses):.4f} +- {half:.4f}"
    return found


def quality_tables(given: argparse.Namespace, folder: Path) -> list[Results]:
    rows = []
    for data, (train, test, epochs, batch) in quality_data(given, folder).items():
        for name in ("Adam", "LazyAdam"):
            for units in (1, 16):
                options = {"train": train, "test": test, "units": units, "epochs": epochs, "batch": batch}
                found = stage.in_child("quality", name=name, **options)
                rows.append({"data": data, "units": units, "optimizer": name, **found})
    note = f"Binary cross-entropy of held-out rows, mean of {SEEDS} seeds and its 95 % interval."
    return [{"title": "What is learned", "note": note, "rows": rows}]


def quality_data(given: argparse.Namespace, folder: Path) -> dict[str, tuple[Path, Path, int, int]]:
    """Stores of rows to train on and to judge by, epochs and batch size, by name."""
    paths: dict[str, tuple[Path, Path, int, int]] = {}
    for name, files, epochs, options in (
        ("a9a", ("a9a.gz", "a9a.t.gz"), 5, {"format": "svmlight", "n_features": 123}),
        (
            "rcv1_small",
            ("vw/rcv1_small.dat.gz", "vw/rcv1_small_test.dat.gz"),
            20,
            {"format": "vw", "encode": "hash", "n_features": 1 << 18},
        ),
    ):
        made = [folder / f"{name}-{part}.zarr" for part in ("train", "test")]
        for file, path in zip(files, made, strict=True):
            ss.convert(TESTS / file, path, progress=False, **options)
        paths[name] = (made[0], made[1], epochs, 256)
    source = Source(stage.data_set(given.home, "clicks", given.scale))
    n = min(source.n_rows, 200_000)
    indptr, indices, values, _ = source.block(0, n)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=source.n_cols) * 0.5
    score = np.add.reduceat(weights[indices] * values, indptr[:-1]) - 1
    y = (rng.random(n) < 1 / (1 + np.exp(-score))).astype(np.int8)
    from scipy import sparse

    x = sparse.csr_array((values, indices, indptr), shape=(n, source.n_cols))
    cut, made = n * 9 // 10, [folder / f"planted-{part}.zarr" for part in ("train", "test")]
    for path, rows in zip(made, (slice(0, cut), slice(cut, n)), strict=True):
        ss.convert(x[rows], path, columns={"y": y[rows]}, progress=False)
    return {**paths, "clicks, planted": (made[0], made[1], 2, 1024)}


# --------------------------------------------------------------------------------------------------- leak


def leak(store: str) -> Results:
    import keras

    opened = ss.open(Path(store) / "store").select(rows=slice(0, 20_000))
    model = model_of("SparseDense", 4, opened.shape[1], optimizer("LazyAdam"))
    sizes: list[float] = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras names it
            sizes.append(stage.anonymous_mib())

    model.fit(opened.to_tf(256, shuffle=True, seed=0).map(binary), epochs=50, verbose=0, callbacks=[Watch()])
    return {"after 3 epochs MiB": sizes[2], "after 50 epochs MiB": sizes[-1], "growth MiB": sizes[-1] - sizes[2]}


def leak_tables(given: argparse.Namespace, folder: Path) -> list[Results]:
    store = convert(given, folder / "leak")
    runs = [stage.in_child("leak", store=store) for _ in range(given.rounds)]
    return [{"title": "50 epochs of 20,000 rows", "rows": [dict(stage.figures(runs))]}]


PARTS = {
    "step": step_tables,
    "ways": ways_tables,
    "fit": fit_tables,
    "gpu": gpu_tables,
    "quality": quality_tables,
    "leak": leak_tables,
}


def bench(given: argparse.Namespace) -> list[Results]:
    parts = given.part or ["step"]
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"error: no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    with stage.scratch(given.home) as folder:
        return [table for part in parts for table in PARTS[part](given, folder)]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, scale=0.1, rounds=3)
    parser.add_argument("part", nargs="*", metavar="PART", help="step (the default), ways, fit, gpu, quality, leak")
    parser.add_argument("--batch", nargs="+", type=int, default=[256], help="rows in a batch (256)")
    parser.add_argument("--units", type=int, default=64, help="of the hidden layer (64)")
    steps = {"make": make, "step": step, "ways": ways, "fit": fit, "gpu": gpu, "quality": quality, "leak": leak}
    stage.run(parser, bench, steps)
