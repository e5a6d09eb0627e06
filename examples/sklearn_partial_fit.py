"""Does a person earn more than 50,000 a year? scikit-learn's SGDClassifier on a9a, a batch at a time.

Run from the repository root: python examples/sklearn_partial_fit.py (a number behind it is another seed)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import SGDClassifier

import sparsestore as ss

DATA = Path(__file__).parents[1] / "tests" / "data"
FEATURES = 123  # the test file alone would give 122
ACCURACY, EPOCHS = 0.84, 5


def iter_csr(loader: Any) -> Iterator[tuple[Any, Any]]:
    """Batches of a loader as (scipy.sparse.csr_array, labels); called again it gives the next epoch."""
    for batch in loader:
        yield batch.x, batch.y


def main() -> None:
    train, test = (
        ss.convert(DATA / f"{name}.gz", f"demo/{name}.zarr", format="svmlight", n_features=FEATURES, overwrite=True)
        for name in ("a9a", "a9a.t")
    )
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    model = SGDClassifier(loss="log_loss", alpha=1e-5, learning_rate="constant", eta0=0.005, average=True)
    loader = train.loader(512, shuffle=True, seed=seed)  # partial_fit keeps the order it is given
    for _ in range(EPOCHS):
        for x, y in iter_csr(loader):
            model.partial_fit(x, y, classes=[-1, 1])
    right = sum(np.count_nonzero(model.predict(x) == y) for x, y in iter_csr(test.loader(4096)))
    accuracy = right / len(test)
    print(f"accuracy {accuracy:.4f} on rows not trained on")
    if accuracy < ACCURACY:
        sys.exit(f"error: expected at least {ACCURACY}")


if __name__ == "__main__":
    main()
