"""Does training from the store, shuffled by default settings, end where a full permutation in RAM ends?

Data: 600,000 training and 30,000 test rows, 50,000 columns, 20 entries a row; 200 topics with a vocabulary each; 20
classes from a planted linear model, a bias of the topic and noise; stored sorted by (class, topic). That is the worst
order there is: neighbours share label and words. Model: softmax regression, plain SGD, batch 256, constant rate 20,
three epochs: no decay or momentum hides what a poor order costs.

Orders: "full" permutes all rows in RAM anew each epoch. "as stored" and "shuffled once" read the store with
``loader(256, shuffle=True)`` and nothing else set; the second was converted with ``shuffle=True``. "none" (one seed)
shows that the order matters here. The difference to "full" comes with its 95 % interval (Welch) over the seeds.

    python bench/shuffle.py [--rows 600000] [--seeds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import scipy.stats
from numba import njit

import sparsestore as ss

BATCH, EPOCHS, RATE = 256, 3, 20.0
N_FEATURES, N_TOPICS, N_CLASSES, ENTRIES = 50_000, 200, 20, 20
TEST_ROWS = 30_000


def make(n: int, seed: int = 0) -> tuple[sp.csr_array, np.ndarray, np.ndarray]:
    """Rows, classes and topics, in random order."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array([rng.permutation(N_FEATURES)[:2000] for _ in range(N_TOPICS)])
    weight = rng.normal(size=(N_FEATURES, N_CLASSES)).astype(np.float32)
    bias = rng.normal(scale=1.5, size=(N_TOPICS, N_CLASSES))
    topic = rng.integers(0, N_TOPICS, n)
    rank = np.minimum(rng.pareto(0.8, (n, ENTRIES)) * 20, 1999).astype(np.int64)
    words = vocabulary[topic[:, None], rank]
    common = rng.random((n, ENTRIES)) < 0.2
    words[common] = np.minimum(rng.pareto(0.8, int(common.sum())) * 50, N_FEATURES - 1).astype(np.int64)
    x = sp.csr_array((np.ones(words.size, np.float32), words.reshape(-1), np.arange(0, words.size + 1, ENTRIES)))
    x.resize(n, N_FEATURES)
    x.sum_duplicates()
    x.data /= np.float32(np.sqrt(ENTRIES))
    score = x @ weight + bias[topic] + rng.gumbel(size=(n, N_CLASSES))
    return x, score.argmax(axis=1), topic


@njit(cache=True)
def step(weight, bias, indptr, indices, data, y, rate):  # type: ignore[no-untyped-def]
    """One step of SGD on the mean loss of a batch."""
    n, k = len(y), weight.shape[1]
    gradient = np.empty((n, k), np.float32)
    for i in range(n):
        score = bias.copy()
        for j in range(indptr[i], indptr[i + 1]):
            score += data[j] * weight[indices[j]]
        score = np.exp(score - score.max())
        gradient[i] = score / score.sum()
        gradient[i, y[i]] -= 1
    gradient *= rate / n
    for i in range(n):
        for j in range(indptr[i], indptr[i + 1]):
            weight[indices[j]] -= data[j] * gradient[i]
        bias -= gradient[i]


def loss_after(epochs: Iterator[Iterator[tuple]], test: sp.csr_array, y_test: np.ndarray) -> float:
    """Mean log loss on the test rows of a model trained on these batches."""
    weight, bias = np.zeros((N_FEATURES, N_CLASSES), np.float32), np.zeros(N_CLASSES, np.float32)
    for batches in epochs:
        for x, y in batches:
            step(weight, bias, x.indptr, x.indices, x.data, y, np.float32(RATE))
    score = test @ weight + bias
    score -= score.max(axis=1, keepdims=True)
    chosen = score[np.arange(len(y_test)), y_test]
    return float((np.log(np.exp(score).sum(axis=1)) - chosen).mean())


def permuted(x: sp.csr_array, y: np.ndarray, seed: int) -> Iterator[Iterator[tuple]]:
    """Every epoch another permutation of all rows."""
    rng = np.random.default_rng([seed, 1])
    for _ in range(EPOCHS):
        order = rng.permutation(len(y))
        yield ((x[order[i : i + BATCH]], y[order[i : i + BATCH]]) for i in range(0, len(y), BATCH))


def loaded(store: ss.Store, seed: int, shuffle: bool = True) -> Iterator[Iterator[tuple]]:
    """Every epoch another order of the store's loader."""
    loader = store.loader(BATCH, shuffle=shuffle, seed=seed)
    for _ in range(EPOCHS):
        yield ((batch.x, batch.y) for batch in loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    x, y, topic = make(arguments.rows + TEST_ROWS)
    test, y_test = x[:TEST_ROWS], y[:TEST_ROWS]
    x, y, topic = x[TEST_ROWS:], y[TEST_ROWS:], topic[TEST_ROWS:]
    order = np.lexsort((topic, y))
    x, y = x[order], y[order]
    with tempfile.TemporaryDirectory() as folder:
        stored = ss.convert(x, Path(folder, "stored"), columns={"y": y})
        once = ss.convert(x, Path(folder, "once"), columns={"y": y}, shuffle=True, seed=0)
        losses: dict[str, list[float]] = {"full": [], "as stored": [], "shuffled once": []}
        seconds = dict.fromkeys(losses, 0.0)
        for seed in range(arguments.seeds):
            orders = {
                "full": permuted(x, y, seed),
                "as stored": loaded(stored, seed),
                "shuffled once": loaded(once, seed),
            }
            for name, epochs in orders.items():
                start = time.perf_counter()
                losses[name].append(loss_after(epochs, test, y_test))
                seconds[name] += time.perf_counter() - start
        none = loss_after(loaded(stored, 0, shuffle=False), test, y_test)
        plans = {"as stored": stored.plan(BATCH, seed=0), "shuffled once": once.plan(BATCH, seed=0)}
    full = np.array(losses["full"])
    results = {"none": {"loss": none}}
    for name, found in losses.items():
        result = {"loss": float(np.mean(found)), "sd": float(np.std(found, ddof=1)), "seconds": seconds[name]}
        if name != "full":
            welch = scipy.stats.ttest_ind(found, full, equal_var=False).confidence_interval(0.95)
            result |= {
                "difference": result["loss"] / full.mean() - 1,
                "interval": [float(welch.low / full.mean()), float(welch.high / full.mean())],
                "block_rows": plans[name].block_rows,
                "window_rows": plans[name].window_rows,
                "drift": plans[name].quality.drift,
            }
        results[name] = result
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{arguments.rows:,} rows, {EPOCHS} epochs, {arguments.seeds} seeds: test loss (sd), against full [95 %]")
    for name, result in results.items():
        line = f"{name:<14} {result['loss']:.4f}"
        if "sd" in result:
            line += f" ({result['sd']:.4f})"
        if "interval" in result:
            low, high = result["interval"]
            line += f"  {result['difference']:+.2%} [{low:+.2%}, {high:+.2%}]{' =' if low <= 0 <= high else ''}"
            line += f"  blocks of {result['block_rows']} rows, S {result['drift']:.2f}"
        print(line)


if __name__ == "__main__":
    main()
