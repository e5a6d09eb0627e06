"""Does a person earn more than 50,000 a year? Logistic regression on the census data a9a, from a store on disk.

Run from the repository root: python examples/a9a.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes about the machine

import keras

import sparsestore as ss

DATA = Path(__file__).parents[1] / "tests" / "data"
FEATURES = 123  # the test file alone would give 122
ACCURACY, AUC = 0.845, 0.895


def batches(store: ss.Store, batch_size: int, **options: Any) -> Any:
    """Batches with labels 0 and 1 instead of the file's -1 and 1."""
    return store.to_tf(batch_size, **options).map(lambda x, y: (x, (y + 1) / 2))


def main() -> None:
    train, test = (
        ss.convert(DATA / f"{name}.gz", f"demo/{name}.zarr", format="svmlight", n_features=FEATURES, overwrite=True)
        for name in ("a9a", "a9a.t")
    )
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((FEATURES,), sparse=True), keras.layers.Dense(1, "sigmoid")])
    metrics = ["accuracy", keras.metrics.AUC(num_thresholds=1000, name="auc")]
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=metrics)
    model.fit(batches(train, 128, shuffle=True, seed=0), epochs=5, verbose=2)
    found = model.evaluate(batches(test, 4096), verbose=0, return_dict=True)
    print(f"accuracy {found['accuracy']:.4f}, area under the curve {found['auc']:.4f}, on rows not trained on")
    if found["accuracy"] < ACCURACY or found["auc"] < AUC:
        sys.exit(f"error: expected at least {ACCURACY} and {AUC}")


if __name__ == "__main__":
    main()
