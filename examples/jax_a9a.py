"""Does a person earn more than 50,000 a year? Logistic regression in JAX, from a store on disk.

Run from the repository root: python examples/jax_a9a.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import sparsestore as ss

DATA = Path(__file__).parents[1] / "tests" / "data"
FEATURES = 123  # the test file alone would give 122
ACCURACY = 0.845


def loss(model: Any, x: Any, y: Any) -> Any:
    out = x @ model["kernel"] + model["bias"]
    return jnp.mean(jnp.logaddexp(0, out) - (y > 0) * out)  # the file's labels are -1 and 1


@jax.jit
def step(model: Any, speed: Any, x: Any, y: Any) -> Any:
    """One step of gradient descent with momentum; compiled once for all whole batches, which are padded alike."""
    value, gradient = jax.value_and_grad(loss)(model, x, y)
    speed = jax.tree.map(lambda v, g: 0.9 * v + g, speed, gradient)
    return jax.tree.map(lambda a, v: a - 0.05 * v, model, speed), speed, value


def main() -> None:
    train, test = (
        ss.convert(DATA / f"{name}.gz", f"demo/{name}.zarr", format="svmlight", n_features=FEATURES, overwrite=True)
        for name in ("a9a", "a9a.t")
    )
    model = {"kernel": jnp.zeros(FEATURES), "bias": jnp.zeros(())}
    speed = jax.tree.map(jnp.zeros_like, model)
    batches = train.to_jax(128, shuffle=True, seed=0, drop_remainder=True)
    for epoch in range(5):
        total = 0.0
        for x, y in batches:  # each time the next epoch, in a new order
            model, speed, value = step(model, speed, x, y)
            total += float(value)
        print(f"epoch {epoch}: loss {total / len(batches):.4f}")
    right = sum(int(((x @ model["kernel"] + model["bias"] > 0) == (y > 0)).sum()) for x, y in test.to_jax(4096))
    accuracy = right / len(test)
    print(f"accuracy {accuracy:.4f} on rows not trained on")
    if accuracy < ACCURACY:
        sys.exit(f"error: expected at least {ACCURACY}")


if __name__ == "__main__":
    main()
