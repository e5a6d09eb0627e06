"""Edible or poisonous? Logistic regression on the mushrooms of agaricus, from a store on disk, sparse and dense.

Run from the repository root: python examples/agaricus.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes about the machine

import keras

import sparsestore as ss

DATA = Path(__file__).parents[1] / "tests" / "data"
FEATURES = 126
ACCURACY = 0.99


def accuracy(layout: str, train: ss.Store, test: ss.Store) -> float:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((FEATURES,), sparse=layout == "sparse"), keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"])
    model.fit(train.to_tf(64, layout=layout, shuffle=True, seed=0), epochs=3, verbose=2)
    return float(model.evaluate(test.to_tf(1024, layout=layout), verbose=0, return_dict=True)["accuracy"])


def main() -> None:
    stores = [
        ss.convert(
            DATA / f"agaricus.txt.{part}.gz",
            f"demo/agaricus.{part}.zarr",
            format="svmlight",
            n_features=FEATURES,
            overwrite=True,
        )
        for part in ("train", "test")
    ]
    for store in stores:
        print(store)
    found = {layout: accuracy(layout, *stores) for layout in ("sparse", "dense")}
    for layout, value in found.items():
        print(f"{layout}: accuracy {value:.4f} on rows not trained on")
    if min(found.values()) < ACCURACY:
        sys.exit(f"error: expected an accuracy of at least {ACCURACY}")


if __name__ == "__main__":
    main()
