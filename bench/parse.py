"""How fast is text parsed, with one core and with all, and how fast does it become a store?

Data: a part of clicks (39 entries a row, all ones) and of text (83 a row, nine digits each), written as svmlight; a
wide CSV of 100 columns, of which 1 in 100 cells is set; and text once more as sparse ARFF and as TFRecord (lists of
indices and values, a label). *Parsed* is all that a source gives, read and dropped; *converted* is a store, by one
core and by all, and with ``--workers 2`` once more by so many processes, with the CPU time of both. Beside svmlight
scikit-learn's `load_svmlight_file` reads a tenth of the file, with one core, pandas the CSV, scikit-learn's copy of
liac-arff the ARFF, and tf.data with `parse_example` the whole TFRecord file, in batches of 4,096 and held to one core,
too. Everything is a process of its own, in turns, with files in the page cache, and what is
compiled once an installation compiled before. Peak memory is anonymous memory beyond what was there before.

    python bench/parse.py [--what clicks text csv arff tfrecord] [--mb 300] [--workers 2] [--rounds 3] [--json]
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

WHAT = ("clicks", "text", "csv", "arff", "tfrecord")
RIVALS = {"csv": "pandas", "arff": "liac-arff", "tfrecord": "tf.data"}
OPTIONS = {".arff": {"label": "y"}, ".tfrecord": {"indices": "i", "values": "v", "label": "y"}}
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


def write_arff(source: Source, path: Path, n_bytes: float) -> None:
    """Sparse rows, the label the last attribute, until the file is so long."""
    with path.open("w", encoding="ascii") as file:
        file.write("@relation text\n")
        file.writelines(f"@attribute f{k} numeric\n" for k in range(source.n_cols))
        file.write("@attribute y {0,1}\n@data\n")
        for lo in range(0, source.n_rows, 5_000):
            if file.tell() >= n_bytes:
                return
            indptr, indices, values, labels = source.block(lo, min(lo + 5_000, source.n_rows))
            entries = [f"{i} {v:.9g}" for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
            for row, label in enumerate(labels):
                cells = [*entries[indptr[row] : indptr[row + 1]], f"{source.n_cols} {int(label > 0)}"]
                file.write("{" + ",".join(cells) + "}\n")


def write_tfrecord(source: Source, path: Path, n_bytes: float) -> None:
    """Examples with indices, values and a label, written by TensorFlow, until the file is so long."""
    import tensorflow as tf

    made, written = tf.train, 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for lo in range(0, source.n_rows, 5_000):
            indptr, indices, values, labels = source.block(lo, min(lo + 5_000, source.n_rows))
            for row, label in enumerate(labels):
                entries = slice(indptr[row], indptr[row + 1])
                features = {
                    "i": made.Feature(int64_list=made.Int64List(value=indices[entries])),
                    "v": made.Feature(float_list=made.FloatList(value=values[entries])),
                    "y": made.Feature(float_list=made.FloatList(value=[label])),
                }
                record = made.Example(features=made.Features(feature=features)).SerializeToString()
                writer.write(record)
                written += len(record) + 16
            if written >= n_bytes:
                return


def head_of(path: Path, n_bytes: float, head: Path) -> Path:
    """The first lines, or records, of a file, and all of a header."""
    with path.open("rb") as file, head.open("wb") as out:
        if path.suffix == ".tfrecord":
            while out.tell() < n_bytes:
                start = file.read(12)
                out.write(start + file.read(int.from_bytes(start[:8], "little") + 4))
            return head
        begun = path.suffix != ".arff"
        for line in file:
            out.write(line)
            if begun and out.tell() >= n_bytes:
                break
            if not begun and line.startswith(b"@data"):
                begun, n_bytes = True, n_bytes + out.tell()
    return head


def reading(path: str, way: str, folder: str, workers: int = 1) -> Results:
    """One way to read a file, timed and watched."""
    size = Path(path).stat().st_size
    if way in ("one core", "converted by one", "tf.data"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tiny = head_of(Path(path), 20_000, Path(folder) / f"tiny{Path(path).suffix}")
    options = OPTIONS.get(Path(path).suffix, {})
    for _ in open_source(tiny, **options).blocks(READ_BYTES):  # compiles
        pass
    with stage.PeakMemory() as memory:
        start, before = time.perf_counter(), cpu_seconds()
        if way in ("one core", "all cores"):
            nnz = sum(block.x.nnz for block in open_source(path, **options).blocks(READ_BYTES))
        elif way in ("converted", "converted by one", "by workers"):
            store = ss.convert(path, Path(folder) / "store", progress=False, workers=workers, **options)
            nnz = store.nnz
        elif way == "scikit-learn":
            from sklearn.datasets import load_svmlight_file

            start = time.perf_counter()
            nnz = load_svmlight_file(path, dtype=np.float32)[0].nnz
        elif way == "liac-arff":
            from sklearn.externals import _arff

            start = time.perf_counter()
            with open(path) as file:  # noqa: PTH123
                nnz = len(_arff.load(file, return_type=_arff.COO)["data"][0])
        elif way == "tf.data":
            import tensorflow as tf

            width = 1 << 40  # TensorFlow wants to know one
            spec = {"x": tf.io.SparseFeature("i", "v", tf.float32, width), "y": tf.io.FixedLenFeature([], tf.float32)}
            start = time.perf_counter()
            parsed = tf.data.TFRecordDataset(path).batch(4096).map(lambda batch: tf.io.parse_example(batch, spec))
            nnz = sum(int(tf.size(batch["x"].values)) for batch in parsed)
        else:
            import pandas

            start = time.perf_counter()
            nnz = sum(int((part != 0).to_numpy().sum()) for part in pandas.read_csv(path, chunksize=100_000))
        seconds = time.perf_counter() - start
    return {"MB/s": size / 1e6 / seconds, "CPU s": cpu_seconds() - before, "peak MB": memory.beyond, "nnz": nnz}


def cpu_seconds() -> float:
    """Of this process and those that it has waited for."""
    return sum(os.times()[:4])


def bench(given: argparse.Namespace) -> list[Results]:
    rows = []
    with stage.scratch(given.home) as folder:
        for what in given.what:
            path = folder / f"{what}.{ {'csv': 'csv', 'arff': 'arff', 'tfrecord': 'tfrecord'}.get(what, 'svm') }"
            if what == "csv":
                write_csv(path, given.mb * 1e6)
            else:
                data = Source(stage.data_set(given.home, "clicks" if what == "clicks" else "text", given.scale))
                write = {"arff": write_arff, "tfrecord": write_tfrecord}.get(what, write_svmlight)
                write(data, path, given.mb * 1e6)
            rival = RIVALS.get(what, "scikit-learn")
            tenth = path if rival == "tf.data" else head_of(path, 1e5 * given.mb, path.with_name(f"head-{path.name}"))
            ways = dict.fromkeys(("one core", "all cores", "converted by one", "converted"), path) | {rival: tenth}
            if given.workers > 1:
                ways["by workers"] = path
            runs: dict[str, list[Results]] = {way: [] for way in ways}
            for turn in range(given.rounds + 1):
                for way, file in ways.items():
                    stage.measure.warm(file)
                    with stage.scratch(folder) as made:
                        workers = given.workers if way == "by workers" else 1
                        found = stage.in_child("reading", path=file, way=way, folder=made, workers=workers)
                    if turn:  # in the first turn what is compiled is kept
                        runs[way].append(found)
            if len({run["nnz"] for way in ways if way != rival for run in runs[way]}) != 1:
                raise RuntimeError(f"{what}: not all ways gave the same entries")
            figures: dict[str, Any] = {way: stage.figures(found) for way, found in runs.items()}
            row: Results = {"file": what, "MB": path.stat().st_size / 1e6}
            row |= {f"{way} MB/s": figures[way]["MB/s"] for way in ways if way not in (rival, "by workers")}
            row |= {"peak MB": figures["converted"]["peak MB"], "rival": rival, "its MB/s": figures[rival]["MB/s"]}
            if given.workers > 1:
                row |= {f"{given.workers} workers MB/s": figures["by workers"]["MB/s"]}
                row["workers / one"] = figures["by workers"]["MB/s"].over(figures["converted"]["MB/s"])
                row |= {"CPU s": figures["converted"]["CPU s"], "workers' CPU s": figures["by workers"]["CPU s"]}
            row["one core / rival"] = figures["one core"]["MB/s"].over(figures[rival]["MB/s"])
            rows.append(row)
    return [{"title": "Text", "rows": rows}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, rounds=3)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help=", ".join(WHAT))
    parser.add_argument("--workers", type=int, default=1, help="processes that convert, once more (1)")
    parser.add_argument("--mb", type=float, default=300, help="length of each file (300)")
    stage.run(parser, bench, {"reading": reading})
