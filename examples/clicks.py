"""Who clicks? Logistic regression with a million hashed features on rows of Criteo, from a store on disk.

FTRL with a penalty that keeps rare features at 0 (McMahan et al., "Ad click prediction", KDD 2013). 200 rows are a
taste of the data set, and no more: each fifth of them is predicted by a model of the others.

Run from the repository root: python examples/clicks.py (a number behind it is another seed)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes about the machine

import keras
import numpy as np

import sparsestore as ss
from sparsestore.keras import LazyFTRL, SparseDense

FILE = Path(__file__).parents[1] / "tests" / "data" / "criteo" / "criteo_sample.csv.gz"
FEATURES, PARTS = 1 << 20, 5
AUC = 0.55  # chance gives 0.5; of so few rows, seeds differ by 0.09


def main() -> None:
    store = ss.convert(
        FILE,
        "demo/clicks.zarr",
        format="csv",
        label="label",
        categorical="C*",
        encode="hash",
        n_features=FEATURES,
        bucket="I*:log2",
        missing="zero",
        overwrite=True,
    )
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    predicted, part = np.zeros(len(store)), np.random.default_rng(seed).integers(PARTS, size=len(store))
    for k in range(PARTS):
        train, test = store.select(rows=part != k), store.select(rows=part == k)
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((FEATURES,), sparse=True)
        model = keras.Model(inputs, SparseDense(1, "sigmoid", kernel_initializer="zeros")(inputs))
        model.compile(LazyFTRL(0.1, l1_regularization_strength=0.3), "binary_crossentropy")
        model.fit(train.to_tf(16, shuffle=True, seed=seed), epochs=8, verbose=0)
        predicted[part == k] = model.predict(test.to_tf(64), verbose=0)[:, 0]  # in the order of the rows
    found = float(keras.metrics.AUC(num_thresholds=1000)(store.column("y")[:], predicted))
    print(f"area under the curve {found:.4f}, of {len(store)} rows not trained on")
    if found < AUC:
        sys.exit(f"error: expected at least {AUC}")


if __name__ == "__main__":
    main()
