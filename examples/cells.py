"""Which blood cells have much of the marker ITGB2? From the counts of their other genes, in a store on disk.

Run from the repository root: python examples/cells.py (a number behind it is another seed)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes about the machine

import keras
import numpy as np
import tensorflow as tf

import sparsestore as ss
from sparsestore.keras import LazyAdam, SparseDense, SparseDropout

FILE = Path(__file__).parents[1] / "tests" / "data" / "tenx" / "filtered_feature_bc_matrix.h5"
MARKER = "ENSG00000160255"  # ITGB2, an integrin of white blood cells
AUC = 0.8


def batches(cells: Any, batch_size: int, **options: Any) -> Any:
    """Logarithms of the counts of all genes but the marker, and whether that is above its median."""

    def log(x: Any, y: Any) -> Any:
        return tf.sparse.map_values(tf.math.log1p, x), y

    return cells.to_tf(batch_size, **options).map(log)


def main() -> None:
    cells = ss.convert(FILE, "demo/cells.zarr", format="tenx", overwrite=True)
    marker = cells.select(features=[MARKER])[:].toarray()[:, 0]
    others = cells.select(features=[name for name in cells.feature_names if name != MARKER])
    much = (marker > np.median(marker)).astype("uint8")
    store = ss.convert(others, "demo/others.zarr", columns={"y": much}, overwrite=True)
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    train, test = store.split(0.75, seed=seed, stratify="y")
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((store.shape[1],), sparse=True)
    hidden = SparseDense(16, "relu")(SparseDropout(0.3, seed=seed)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(hidden))
    model.compile(LazyAdam(0.005), "binary_crossentropy", metrics=[keras.metrics.AUC(num_thresholds=1000, name="auc")])
    model.fit(batches(train, 32, shuffle=True, seed=seed), epochs=10, verbose=2)
    found = model.evaluate(batches(test, 512), verbose=0, return_dict=True)["auc"]
    print(f"area under the curve {found:.4f}, of {len(test)} cells not trained on")
    if found < AUC:
        sys.exit(f"error: expected at least {AUC}")


if __name__ == "__main__":
    main()
