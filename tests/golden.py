"""Writes the stores of tests/data/v1, which every later release must read; run by hand, once for a format.

From the folder tests: ``python golden.py``. What it wrote is never written again: it refuses where there is something.
Beside the stores lies what they hold, in a form that needs nothing of the package: npz files of scipy's arrays and of
columns, and JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.sparse as sp

import sparsestore as ss

ROOT = Path(__file__).parent / "data" / "v1"
PROFILES = ("raw", "compact")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
DTYPES = ("bool", *INTEGERS, "float16", "float32", "float64")
WIDE = 3_000_000_000
"""Features that need 64 bits each."""

Matrix = sp.csr_array
Columns = dict[str, Any]


def values_of(dtype: str, n: int, rng: np.random.Generator) -> Any:
    """Values that no narrower dtype holds, where there is one."""
    if dtype == "bool":
        return rng.random(n) < 0.7
    if "int" in dtype:
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, n, dtype, endpoint=True)
        values[:2] = info.min or 1, info.max
        return values
    values = (rng.random(n) * 100 - 50).astype(dtype)
    values[:3] = -0.0, np.finfo(dtype).max, np.finfo(dtype).tiny
    return values


def matrix(n: int, width: int, dtype: str, rng: np.random.Generator, *, constant: Any = None) -> Matrix:
    """Rows with up to 6 entries, the first and some others empty."""
    counts = rng.integers(0, 7, n)
    counts[0] = 0
    near = min(width, 1 << 20)
    picked = [np.sort(rng.choice(near, k, replace=False)) + (width - near) * (i % 2) for i, k in enumerate(counts)]
    data = values_of(dtype, int(counts.sum()), rng) if constant is None else np.full(int(counts.sum()), constant, dtype)
    indices = np.concatenate(picked).astype(np.int64)
    if data.dtype == np.float16:  # which scipy does not take
        data = data.astype(np.float32)
    return Matrix((data, indices, np.append(0, np.cumsum(counts)).astype(np.int64)), shape=(n, width))


def some_columns(n: int, rng: np.random.Generator) -> Columns:
    """A column of every kind."""
    texts = np.array(["", "a", "größe", "日本", "long " * 20, "nul\x00inside"])
    columns: Columns = {f"c_{dtype}": values_of(dtype, n, rng) for dtype in DTYPES}
    return columns | {
        "y": rng.integers(0, 3, n),
        "sample_weight": rng.random(n),
        "text": texts[rng.integers(0, len(texts), n)],
        "missing": np.where(rng.random(n) < 0.3, np.nan, rng.random(n)),
        "masked": np.ma.MaskedArray(rng.integers(-9, 9, n), rng.random(n) < 0.3),
        "masked text": np.ma.MaskedArray(texts[rng.integers(0, 4, n)], rng.random(n) < 0.3),
        "three": rng.random((n, 3)).astype(np.float32),
    }


def few_columns(n: int, rng: np.random.Generator) -> Columns:
    """A label, and text."""
    return {"y": rng.integers(0, 3, n), "text": np.array(["a", "bé", ""])[rng.integers(0, 3, n)]}


class Case:
    """One store as it is written: what goes into each version, and what must come out."""

    def __init__(self, name: str, profile: str) -> None:
        self.name = f"{name}-{profile}"
        self.root = ROOT / f"{self.name}.zarr"
        self.profile = profile
        self.arrays: Columns = {}
        self.facts: dict[str, Any] = {"profile": profile, "versions": {}}

    def expect(self, version: int, x: Matrix, columns: Columns, dtype: str) -> None:
        """Note what a version holds."""
        facts = {"shape": list(x.shape), "nnz": int(x.nnz), "dtype": dtype, "columns": [*columns]}
        self.facts["versions"][version] = facts
        for part in ("data", "indices", "indptr"):
            self.arrays[f"{version}/{part}"] = getattr(x, part)
        for name, values in columns.items():
            if np.ma.isMaskedArray(values):
                self.arrays[f"{version}/column/{name}/mask"] = np.ma.getmaskarray(values)
                values = values.data
            self.arrays[f"{version}/column/{name}"] = values

    def save(self) -> None:
        """Write what must come out beside the store, and the orders that it is read in."""
        store = ss.open(self.root)
        if len(store):
            self.facts["orders"] = orders(store)
            self.facts["state"] = state(store)
        np.savez_compressed(ROOT / f"{self.name}.npz", **self.arrays)
        text = json.dumps(self.facts)
        (ROOT / f"{self.name}.json").write_text(text + "\n", encoding="ascii")


PLANS: list[dict[str, Any]] = [
    {"batch_size": 7, "seed": 0},
    {"batch_size": 7, "seed": 1, "block_rows": 4, "window_rows": 14},
    {"batch_size": 16, "seed": 12345, "block_rows": 1, "window_rows": 32, "drop_remainder": True},
]


def orders(store: ss.Store) -> list[dict[str, Any]]:
    """Row numbers of two epochs in the order of several plans."""
    found = []
    for plan in PLANS:
        loader = store.loader(shuffle=True, allow_poor_shuffle=True, **plan)
        epochs = [[row for batch in loader for row in batch.row_ids.tolist()] for _ in range(2)]
        found.append({"plan": plan, "epochs": epochs})
    return found


def state(store: ss.Store) -> dict[str, Any]:
    """A loader's state after two batches, and the rows that the rest of its epoch has."""
    loader = store.loader(5, shuffle=True, seed=3, block_rows=4, window_rows=20, allow_poor_shuffle=True)
    epoch = iter(loader)
    next(epoch)
    next(epoch)
    kept = loader.state_dict()
    return {"state": kept, "rest": [row for batch in epoch for row in batch.row_ids.tolist()]}


# ------------------------------------------------------------------------------------------------------- the stores


def write_values(dtype: str) -> Callable[[Case], None]:
    """A store of values of one dtype."""

    def write(case: Case) -> None:
        rng = np.random.default_rng(DTYPES.index(dtype))
        x = matrix(40, 300, dtype, rng)
        with ss.create(case.root, n_features=300, dtype=dtype, profile=case.profile) as writer:
            writer.append(x.astype(np.float32) if dtype == "float16" else x)
        case.expect(1, x, {}, dtype)

    return write


def write_columns(case: Case) -> None:
    """A column of every kind."""
    rng = np.random.default_rng(100)
    x, columns = matrix(50, 20, "float32", rng), some_columns(50, rng)
    ss.convert(x, case.root, columns=columns, profile=case.profile, progress=False)
    case.expect(1, x, columns, "float32")


def write_versions(case: Case) -> None:
    """Appends: narrow and wide feature numbers, whole numbers, fractions, constants; pages; then rows anew."""
    rng = np.random.default_rng(200)
    parts: list[tuple[Matrix, Columns]] = []
    kinds: list[tuple[int, Any]] = [(50, None), (70_000, 0.5), (WIDE, None), (WIDE, 2)]
    store: Any = None
    with mock.patch("sparsestore.writer.INLINE_SEGMENTS", 2):
        for version, (width, constant) in enumerate(kinds, start=1):
            x, columns = matrix(21, width, "float32", rng, constant=constant), few_columns(21, rng)
            if version == 1:
                x.data = np.rint(np.minimum(np.abs(x.data), 200)).astype(np.float32)
                store = ss.convert(x, case.root, columns=columns, profile=case.profile, progress=False)
            else:
                store = store.append(x, grow_features=True, **columns)
            parts.append((x, columns))
            case.expect(version, *_stacked(*parts), "float32")
    x, columns = matrix(30, 40, "float64", rng), few_columns(30, rng)
    ss.convert(x, case.root, columns=columns, profile=case.profile, overwrite=True, progress=False)
    case.expect(5, x, columns, "float64")


def write_shuffled(case: Case) -> None:
    """Rows in random order, and an append behind them."""
    rng = np.random.default_rng(300)
    x, columns = matrix(300, 64, "float32", rng), few_columns(300, rng)
    store = ss.convert(x, case.root, columns=columns, shuffle=True, seed=5, profile=case.profile, progress=False)
    order = np.asarray(store.column("row_id")[:])
    if sorted(order.tolist()) != list(range(300)):
        raise AssertionError("row_id is no order of the rows")
    moved = {name: values[order] for name, values in columns.items()} | {"row_id": order}
    case.expect(1, x[order], moved, "float32")
    more, others = matrix(20, 64, "float32", rng), few_columns(20, rng)
    store.append(more, **others)
    whole, both = _stacked((x[order], moved), (more, others | {"row_id": np.arange(300, 320)}))
    case.expect(2, whole, both, "float32")


def write_empty(case: Case) -> None:
    """No rows at all."""
    with ss.create(case.root, n_features=10, columns={"y": "int64"}, dtype="float32", profile=case.profile):
        pass
    case.expect(1, Matrix((0, 10), dtype=np.float32), {"y": np.empty(0, np.int64)}, "float32")


def _stacked(*parts: tuple[Matrix, Columns]) -> tuple[Matrix, Columns]:
    """Rows and columns of several appends, one after the other."""
    width = max(x.shape[1] for x, _ in parts)
    indptr = np.append(0, np.cumsum(np.concatenate([np.diff(x.indptr) for x, _ in parts])))
    indices, data = (np.concatenate([getattr(x, name) for x, _ in parts]) for name in ("indices", "data"))
    columns: Columns = {}
    for name, first in parts[0][1].items():
        joined = np.ma.concatenate([found[name] for _, found in parts])
        columns[name] = joined if np.ma.isMaskedArray(first) else joined.data
    return Matrix((data, indices, indptr), shape=(len(indptr) - 1, width)), columns


WRITERS: dict[str, Callable[[Case], None]] = {
    **{f"values-{dtype}": write_values(dtype) for dtype in DTYPES},
    "columns": write_columns,
    "versions": write_versions,
    "shuffled": write_shuffled,
    "empty": write_empty,
}
COMPACT_VALUES = ("uint16", "int64", "float32")
"""Dtypes of values that are written in the profile compact too: it encodes a number by its size alone."""
NAMES = [
    f"{name}-{profile}"
    for name in WRITERS
    for profile in PROFILES
    if profile == "raw" or not name.startswith("values-") or name[7:] in COMPACT_VALUES
]


def main() -> int:
    """Write all of them; 1 where there is something already."""
    if ROOT.exists() and any(ROOT.iterdir()):
        sys.stderr.write(f"error: {ROOT} has stores, which are never written again: a new format gets a new folder\n")
        return 1
    ROOT.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        kind, _, profile = name.rpartition("-")
        case = Case(kind, profile)
        WRITERS[kind](case)
        case.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
