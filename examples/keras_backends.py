"""Edible or poisonous? The mushrooms of agaricus in Keras, on any back end, from a store on disk.

Run from the repository root: KERAS_BACKEND=jax python examples/keras_backends.py (or torch, or tensorflow)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes about the machine

import keras

import sparsestore as ss

DATA = Path(__file__).parents[1] / "tests" / "data"
FEATURES = 126
ACCURACY = 0.99
LAYOUT = "dense" if keras.config.backend() == "torch" else "sparse"  # Keras has no sparse inputs on PyTorch


def main() -> None:
    train, test = (
        ss.convert(
            DATA / f"agaricus.txt.{part}.gz",
            f"demo/agaricus.{part}.zarr",
            format="svmlight",
            n_features=FEATURES,
            overwrite=True,
        )
        for part in ("train", "test")
    )
    keras.utils.set_random_seed(0)
    inputs: Any = keras.Input((FEATURES,), sparse=LAYOUT == "sparse")
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(inputs))
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"])
    # the store shuffles, and Keras is told not to: it would only mix whole batches, and each had to be looked for
    model.fit(train.to_keras(64, layout=LAYOUT, shuffle=True, seed=0), epochs=3, shuffle=False, verbose=2)
    found = model.evaluate(test.to_keras(1024, layout=LAYOUT), verbose=0, return_dict=True)
    print(f"{keras.config.backend()}, {LAYOUT}: accuracy {found['accuracy']:.4f} on rows not trained on")
    if found["accuracy"] < ACCURACY:
        sys.exit(f"error: expected at least {ACCURACY}")


if __name__ == "__main__":
    main()
