"""100,000,000 x 100 at a density of 1e-4: written, opened and trained on for one epoch, sparse and dense.

Makes triples with a planted signal and one random bit a row as label, writes a store, trains a logistic regression
through `model.fit`, and prints what each step took. Every step is a process of its own, watched from outside, so that
each has its own peak of anonymous memory (RssAnon; the page cache is not counted; Linux only).

    python bench/hundred_million_rows.py                     # about 1 GB of memory, 40 MB of disk
    python bench/hundred_million_rows.py --rows 1000000      # the same, smaller
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FEATURES = 100
DENSITY = 1e-4
BATCH_ROWS = 65_536
MIB = 2**20


def tell(**facts: Any) -> None:
    """Send facts to the watching process; `phase` starts a new peak of memory."""
    print(json.dumps(facts), flush=True)


def write(path: Path, rows: int) -> None:
    import numpy as np
    import scipy.sparse

    import sparsestore as ss
    from sparsestore.kernels import bucket, gather  # noqa: F401  numba belongs to the imports

    rng = np.random.default_rng(0)
    entries = int(rows * FEATURES * DENSITY)
    at = rng.integers(0, rows, entries, dtype=np.int32)
    feature = rng.integers(0, FEATURES, entries, dtype=np.int32)
    value = rng.random(entries, dtype=np.float32) + np.float32(0.5)
    y = np.unpackbits(np.frombuffer(rng.bytes(-(-rows // 8)), np.uint8), count=rows)
    y[at] = feature % 2  # the signal: an odd feature makes the label 1, an even one 0
    x = scipy.sparse.coo_array((value, (at, feature)), shape=(rows, FEATURES))
    tell(phase="convert")
    start = time.perf_counter()
    store = ss.convert(x, path, columns={"y": y}, overwrite=True)
    tell(phase="after", seconds=time.perf_counter() - start, entries=store.nnz)
    tell(bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
    for layout in ("sparse", "dense"):  # compiles the loops of reading, which then lie in numba's cache
        next(iter(store.loader(BATCH_ROWS, layout=layout, shuffle=True, seed=0)))


def compiled_model(layout: str) -> Any:
    import keras

    model = keras.Sequential([keras.Input((FEATURES,), sparse=layout == "sparse"), keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    return model


def bare(layout: str) -> None:
    """TensorFlow with the same model, and a constant batch instead of a store."""
    import numpy as np
    import tensorflow as tf

    x = tf.sparse.from_dense(np.eye(BATCH_ROWS, FEATURES, dtype=np.float32))
    x = x if layout == "sparse" else tf.sparse.to_dense(x)
    batch = tf.data.Dataset.from_tensors((x, np.zeros(BATCH_ROWS, np.uint8)))
    tell(phase="train")
    compiled_model(layout).fit(batch.repeat(20), verbose=0)


def train(path: Path, layout: str) -> None:
    import keras  # noqa: F401  the clock starts after the imports
    import numpy as np

    import sparsestore as ss
    from sparsestore.bridges import tensorflow  # noqa: F401
    from sparsestore.kernels import gather  # noqa: F401

    tell(phase="train")
    start = time.perf_counter()
    batches = ss.open(path).to_tf(BATCH_ROWS, layout=layout, shuffle=True, seed=0)
    next(iter(batches))
    first_batch = time.perf_counter() - start
    model = compiled_model(layout)
    start = time.perf_counter()
    loss = model.fit(batches, verbose=0).history["loss"][0]
    seconds = time.perf_counter() - start
    kernel = np.asarray(model.layers[0].kernel).ravel()
    right = int(np.sum((kernel > 0) == (np.arange(FEATURES) % 2 == 1)))
    tell(first_batch_s=first_batch, fit_s=seconds, loss=loss, right_signs=right)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def watched(step: str, path: Path, rows: int, layout: str = "sparse") -> dict[str, Any]:
    """Run a step in its own process; its facts, and for each phase the anonymous bytes at its start and its peak."""
    command = [sys.executable, __file__, "--step", step, "--dir", str(path), "--rows", str(rows), "--layout", layout]
    facts: dict[str, Any] = {}
    phase = "start"
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}) as child:
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        while True:
            now = anonymous_bytes(child.pid)
            facts[f"{phase}_peak"] = max(facts.get(f"{phase}_peak", 0), now)
            ended = child.poll() is not None
            for line in child.stdout.readlines():
                facts |= json.loads(line)
                if facts.get("phase", phase) != phase:
                    phase = facts["phase"]
                    facts[f"{phase}_before"] = anonymous_bytes(child.pid)
            if ended:
                break
            time.sleep(0.005)
    if child.returncode:
        sys.exit(f"error: step {step} failed with exit status {child.returncode}")
    return facts


def report(path: Path, rows: int, layouts: list[str]) -> None:
    wrote = watched("write", path, rows)
    print(f"rows {rows:,}, entries {wrote['entries']:,}, store {wrote['bytes'] / 1e6:.1f} MB")
    above = (wrote["convert_peak"] - wrote["convert_before"]) / MIB
    print(f"convert: {wrote['seconds']:.1f} s, peak {above:.0f} MiB of anonymous memory beyond the input arrays")
    for layout in layouts:
        alone = watched("bare", path, rows, layout)["train_peak"] / MIB
        trained = watched("train", path, rows, layout)
        peak = trained["train_peak"] / MIB
        print(
            f"{layout}: open to first batch {trained['first_batch_s']:.2f} s, epoch {trained['fit_s']:.1f} s = "
            f"{rows / trained['fit_s'] / 1e6:.2f} M rows/s, peak {peak:.0f} MiB anonymous ({peak - alone:.0f} above "
            f"TensorFlow alone), loss {trained['loss']:.5f}, signs right {trained['right_signs']} of {FEATURES}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="One epoch over a hundred million rows.")
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--dir", type=Path, help="where the store goes; a temporary folder by default")
    parser.add_argument(
        "--layout", choices=("sparse", "dense"), help="of the batches: both, one after the other, by default"
    )
    parser.add_argument("--step", choices=("write", "bare", "train"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    layouts = [given.layout] if given.layout else ["sparse", "dense"]
    if given.step == "write":
        write(given.dir, given.rows)
    elif given.step == "bare":
        bare(given.layout)
    elif given.step == "train":
        train(given.dir, given.layout)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report(given.dir or Path(folder) / "rows.zarr", given.rows, layouts)


if __name__ == "__main__":
    main()
