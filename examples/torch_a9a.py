"""Does a person earn more than 50,000 a year? Logistic regression in PyTorch, from a store on disk.

Run from the repository root: python examples/torch_a9a.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import sparsestore as ss

DATA = Path(__file__).parents[1] / "tests" / "data"
FEATURES = 123  # the test file alone would give 122
ACCURACY = 0.845


def main() -> None:
    train, test = (
        ss.convert(DATA / f"{name}.gz", f"demo/{name}.zarr", format="svmlight", n_features=FEATURES, overwrite=True)
        for name in ("a9a", "a9a.t")
    )
    torch.manual_seed(0)
    model = torch.nn.Linear(FEATURES, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    loss_of = torch.nn.BCEWithLogitsLoss()
    batches = train.to_torch(128, shuffle=True, seed=0)  # or a DataLoader of it, with batch_size=None and workers
    for epoch in range(5):
        total = 0.0
        for x, y in batches:  # each time the next epoch, in a new order
            loss = loss_of(model(x).squeeze(1), (y > 0).float())  # the file's labels are -1 and 1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / len(batches):.4f}")
    with torch.no_grad():
        right = sum(int(((model(x).squeeze(1) > 0) == (y > 0)).sum()) for x, y in test.to_torch(4096))
    accuracy = right / len(test)
    print(f"accuracy {accuracy:.4f} on rows not trained on")
    if accuracy < ACCURACY:
        sys.exit(f"error: expected at least {ACCURACY}")


if __name__ == "__main__":
    main()
