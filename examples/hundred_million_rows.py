"""100,000,000 rows x 100 features, one entry in 10,000 set: into a store, then an epoch of `fit`, in little memory.

Labels are random bits, but those of rows with an entry are 1 where its feature is odd. So the sign of each weight tells
whether it was learned. `bench/hundred_million_rows.py` measures each step, and its memory, in a process of its own.

Run from the repository root: python examples/hundred_million_rows.py (or with fewer rows: ... 1000000)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes about the machine

import keras
import numpy as np
from scipy import sparse

import sparsestore as ss

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000_000
FEATURES, BLOCK_ROWS, BATCH_ROWS, RIGHT = 100, 1 << 20, 65_536, 70


def blocks() -> Iterator[tuple[sparse.coo_array, np.ndarray]]:
    rng = np.random.default_rng(0)
    for start in range(0, ROWS, BLOCK_ROWS):
        n = min(BLOCK_ROWS, ROWS - start)
        rows, features = rng.integers(0, n, n // 100), rng.integers(0, FEATURES, n // 100)
        y = rng.integers(0, 2, n, np.uint8)
        y[rows] = features % 2
        yield sparse.coo_array((np.ones(n // 100, np.float32), (rows, features)), shape=(n, FEATURES)), y


def main() -> None:
    start = time.perf_counter()
    store = ss.convert(blocks(), "demo/hundred_million.zarr", n_features=FEATURES, overwrite=True)
    print(f"{store.shape[0]:,} rows, {store.nnz:,} entries, converted in {time.perf_counter() - start:.1f} s")
    model = keras.Sequential([keras.Input((FEATURES,), sparse=True), keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    start = time.perf_counter()
    model.fit(store.to_tf(BATCH_ROWS, shuffle=True, seed=0), verbose=0)
    seconds = time.perf_counter() - start
    learned = np.asarray(model.layers[0].kernel)[:, 0] > 0
    right = int((learned == (np.arange(FEATURES) % 2 == 1)).sum())
    print(f"an epoch in {seconds:.1f} s, {ROWS / seconds / 1e6:.1f}M rows/s; signs right {right} of {FEATURES}")
    if right < RIGHT:
        sys.exit(f"error: expected at least {RIGHT}")


if __name__ == "__main__":
    main()
