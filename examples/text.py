"""Which news are about business? Logistic regression on words of Reuters (rcv1), from a store on disk.

Run from the repository root: python examples/text.py (a number behind it is another seed)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes about the machine

import keras

import sparsestore as ss
from sparsestore.keras import LazyAdam, SparseDense, SparseDropout, SparseScaling

DATA = Path(__file__).parents[1] / "tests" / "data" / "vw"
FEATURES = 47_237  # words have numbers in these files, from 1
ACCURACY = 0.86


def batches(store: ss.Store, batch_size: int, **options: Any) -> Any:
    """Batches with labels 0 and 1 instead of the file's -1 and 1."""
    return store.to_tf(batch_size, **options).map(lambda x, y: (x, (y + 1) / 2))


def main() -> None:
    train, test = (
        ss.convert(
            DATA / f"{name}.dat.gz",
            f"demo/{name}.zarr",
            format="vw",
            encode="number",
            n_features=FEATURES,
            overwrite=True,
        )
        for name in ("rcv1_small", "rcv1_small_test")
    )
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    keras.utils.set_random_seed(seed)
    scaling = SparseScaling("tf-idf")
    scaling.adapt(train)  # how many of the training rows have each word
    inputs = keras.Input((FEATURES,), sparse=True)
    hidden = SparseDense(1, "sigmoid", kernel_initializer="zeros")(SparseDropout(0.2, seed=seed)(scaling(inputs)))
    model = keras.Model(inputs, hidden)
    model.compile(LazyAdam(0.02), "binary_crossentropy", metrics=["accuracy"])
    model.fit(batches(train, 32, shuffle=True, seed=seed), epochs=5, verbose=2)
    accuracy = model.evaluate(batches(test, 500), verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy {accuracy:.4f} on articles not trained on")
    if accuracy < ACCURACY:
        sys.exit(f"error: expected at least {ACCURACY}")


if __name__ == "__main__":
    main()
