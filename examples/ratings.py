"""How many stars would a user give a film? A factorization machine on MovieLens 100k, from a store on disk.

A rating is a row with two features of value 1: its user and its film. The machine of Rendle ("Factorization machines",
ICDM 2010) adds to a linear model the products of embeddings, which for such rows is half the squared length of their
sum: what else that length has belongs to one feature alone, and the linear part makes up for it.

Run from the repository root: python examples/ratings.py (a number behind it is another seed)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes about the machine

import keras

import sparsestore as ss
from sparsestore.keras import SparseDense, SparseEmbeddingBag

FILE = Path(__file__).parents[1] / "tests" / "data" / "ml100k" / "ml-100k.inter.gz"
RMSE = 0.93  # the mean of all gives 1.13


def main() -> None:
    store = ss.convert(
        FILE,
        "demo/ratings.zarr",
        format="csv",
        delimiter="tab",
        categorical=["user_id:token", "item_id:token"],
        label="rating:float",
        drop=["timestamp:float"],
        shuffle=True,
        seed=0,
        overwrite=True,
    )
    train, test = store.split(0.9, seed=0)
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((store.shape[1],), sparse=True)
    weak = keras.regularizers.L2(1e-4)
    both = SparseEmbeddingBag(16, embeddings_initializer="random_normal", embeddings_regularizer=weak)(inputs)
    half = keras.ops.sum(keras.ops.square(both), axis=1, keepdims=True) / 2
    linear = SparseDense(1, kernel_initializer="zeros", kernel_regularizer=weak)(inputs) + 3.5
    model = keras.Model(inputs, linear + half)
    # Adam, as a regulariser goes over the whole table at each step: LazyAdam is for large ones without
    model.compile(keras.optimizers.Adam(0.005), "mse", metrics=[keras.metrics.RootMeanSquaredError(name="rmse")])
    model.fit(train.to_tf(256, shuffle=True, seed=seed), epochs=4, verbose=2)
    found = model.evaluate(test.to_tf(4096), verbose=0, return_dict=True)["rmse"]
    print(f"root of the mean squared error {found:.4f} stars, on ratings not trained on")
    if found > RMSE:
        sys.exit(f"error: expected at most {RMSE}")


if __name__ == "__main__":
    main()
