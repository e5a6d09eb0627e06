"""What every framework bridge must do, in the terms of the loader it stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeReader, make_loader, random_matrix
from numpy.typing import NDArray

import sparsestore as ss
from sparsestore.loader import Loader

Array = NDArray[Any]
Decoded = tuple[Array, Any, Array | None]

N_ROWS, N_FEATURES = 1003, 57

CASES: dict[str, dict[str, Any]] = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "batches of one row": {"batch_size": 1, "window_rows": 100},
    "one batch larger than the view": {"batch_size": 5000},
    "a window of one batch": {"batch_size": 64, "window_rows": 64, "shuffle": True},
    "drop_remainder": {"drop_remainder": True, "shuffle": True},
    "dense": {"layout": "dense"},
    "dense, shuffled, drop_remainder": {"layout": "dense", "shuffle": True, "drop_remainder": True},
    "many segments": {"segments": [0, 1, 500, 2, 500, 0], "shuffle": True, "block_rows": 7},
    "y only": {"columns": ("y",)},
    "y and weights": {"columns": ("y", "sample_weight"), "shuffle": True},
    "several outputs": {"columns": ("wide", "y", "sample_weight"), "shuffle": True},
    "one wide output": {"columns": ("wide",)},
    "dtype float64": {"dtype": "float64"},
    "dtype int32": {"dtype": "int32"},
    "dtype uint8, dense": {"dtype": "uint8", "layout": "dense"},
    "features": {"features": np.array([40, 2, 9]), "shuffle": True},
    "drawn by weights": {"weights": "sample_weight", "columns": ("y",), "shuffle": True},
    "drawn, with weights, dense": {"weights": "balanced:y", "columns": ("y", "sample_weight"), "shuffle": True}
    | {"layout": "dense", "features": np.array([40, 2, 9])},
    "last of three partitions": {"partition": 2, "n_partitions": 3, "shuffle": True, "batch_size": 16},
}


def check_bridge(
    bridge: Callable[[Loader], Iterable[Any]], decode: Callable[[Any], Decoded], options: dict[str, Any]
) -> None:
    """Two epochs of a bridge's elements equal those of an identical loader, and none changes after it was handed out.

    Parameters
    ----------
    bridge : callable
        Loader -> iterable of the framework's elements; each iteration is the next epoch.
    decode : callable
        Element -> (dense x, y or dict of y or None, sample_weight or None), as numpy.
    options : dict
        Of `make_loader`: one of `CASES`.
    """
    x = random_matrix(N_ROWS, N_FEATURES, 0.1)
    x.data = np.round(x.data * 100)
    rng = np.random.default_rng(0)
    columns = {
        "y": rng.integers(0, 2, N_ROWS),
        "sample_weight": rng.random(N_ROWS),
        "wide": rng.random((N_ROWS, 3)).astype(np.float32),
    }
    reader = FakeReader(x, columns)
    batches = bridge(make_loader(reader, **options))
    loader = make_loader(reader, **{**options, "layout": "dense"})
    for _ in range(2):
        elements = list(batches)  # all kept before the first one is looked at
        expected = list(loader)
        assert len(elements) == len(expected)
        for element, batch in zip(elements, expected, strict=True):
            got_x, got_y, got_weight = decode(element)
            assert got_x.dtype == batch.x.dtype
            assert np.array_equal(got_x, batch.x)
            if isinstance(batch.y, dict):
                assert got_y.keys() == batch.y.keys()
                assert all(np.array_equal(got_y[name], batch.y[name]) for name in batch.y)
            elif batch.y is None:
                assert got_y is None
            else:
                assert np.array_equal(got_y, batch.y)
            if batch.sample_weight is None:
                assert got_weight is None
            else:
                assert np.array_equal(got_weight, batch.sample_weight)


def check_inputs(
    give: Callable[..., Iterable[Any]],
    cells: Callable[[Any], Array],
    folder: Path,
    *,
    in_order: bool = True,
    **options: Any,
) -> None:
    """Columns and other stores are inputs beside the matrix, of the rows that a loader gives, in two epochs.

    Parameters
    ----------
    give : callable
        (Store, options of `to_...`) -> iterable of ``(x, y)`` or ``(x, y, sample_weight)``.
    cells : callable
        An input as a numpy array.
    folder : Path
        For the stores.
    in_order : bool
        Whether batches come in the order of the loader.
    **options
        Of the loader.
    """
    rng = np.random.default_rng(3)
    n = 500
    x, other = random_matrix(n, 20, 0.2), random_matrix(n, 11, 0.3, seed=9)
    columns = {
        "y": np.arange(n),
        "w": rng.random(n),
        "half": np.arange(n) % 7 == 0,
        "sample_weight": rng.random(n),
        "wide": rng.random((n, 3)),
    }
    first = ss.convert(x, folder / "first.zarr", columns=columns, progress=False)
    second = ss.convert(other, folder / "second.zarr", progress=False)
    options = {"shuffle": True, "seed": 2, "columns": ("y",), **options}
    inputs = {"words": second, "width": "wide", "some": second.select(features=[3, 1])}
    if "weights" not in options:  # a column of this name is an input as any other where it is asked for as one
        inputs["heavy"] = "sample_weight"
    ds, loader = give(first, inputs=inputs, **options), first.loader(32, **options)
    for _ in range(2):
        given, rows = list(ds), [batch.row_ids for batch in loader]
        if in_order:
            np.testing.assert_array_equal(np.concatenate([cells(y) for _, y, *_ in given]), np.concatenate(rows))
        assert sorted(row for _, y, *_ in given for row in cells(y)) == sorted(np.concatenate(rows))
        for found, y, *weight in given:
            assert sorted(found) == sorted([*inputs, "x"])
            expected = cells(y)
            np.testing.assert_allclose(cells(found["x"]), x.toarray()[expected], rtol=1e-6)
            np.testing.assert_allclose(cells(found["words"]), other.toarray()[expected], rtol=1e-6)
            np.testing.assert_allclose(cells(found["some"]), other.toarray()[expected][:, [3, 1]], rtol=1e-6)
            np.testing.assert_allclose(cells(found["width"]), columns["wide"][expected], rtol=1e-6)
            if "heavy" in inputs:
                np.testing.assert_allclose(cells(found["heavy"]), columns["sample_weight"][expected], rtol=1e-6)
            assert bool(weight) == ("weights" in options)


INPUTS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "dense": {"layout": "dense"},
    "drawn": {"weights": "w"},
    "drawn, balanced, dense": {"weights": "balanced:half", "layout": "dense"},
    "drawn by a column that is among the default ones": {"weights": "sample_weight", "columns": None},
}
