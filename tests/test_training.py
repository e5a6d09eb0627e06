"""Real data, a real model: what training from a store must give, whatever the layout and the order on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsestore as ss

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

DATA = Path(__file__).parent / "data"
SETS = {"agaricus": ("agaricus.txt.train.gz", "agaricus.txt.test.gz", 126), "a9a": ("a9a.gz", "a9a.t.gz", 123)}


def converted(name: str, folder: Path) -> tuple[ss.Store, ss.Store]:
    """Training and test rows, labels 0 and 1."""
    stores = []
    for file in SETS[name][:2]:
        raw = ss.convert(DATA / file, folder / f"raw-{file}", format="svmlight", n_features=SETS[name][2])
        y = (raw.column("y")[:] > 0).astype(np.float32)
        stores.append(ss.convert(raw[:], folder / file, columns={"y": y}))
    return stores[0], stores[1]


def trained(data: Any, width: int, layout: str, epochs: int, rate: float = 0.01) -> tuple[Any, list[float]]:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((width,), sparse=layout == "sparse"), keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy"])
    history = model.fit(data, epochs=epochs, verbose=0)
    return model, history.history["loss"]


@pytest.mark.parametrize(("name", "epochs"), [pytest.param("agaricus", 5, marks=pytest.mark.slow), ("a9a", 2)])
def test_both_layouts_give_the_same_losses(tmp_path: Path, name: str, epochs: int) -> None:
    train, _ = converted(name, tmp_path)
    losses = [
        trained(train.to_tf(128, layout=layout, shuffle=True, seed=3), train.shape[1], layout, epochs)[1]
        for layout in ("sparse", "dense")
    ]
    assert np.abs(np.subtract(*losses)).max() < 1e-5


@pytest.mark.parametrize(("name", "rate", "least"), [("agaricus", 0.02, 0.99), ("a9a", 0.005, 0.845)])
@pytest.mark.slow
def test_rows_sorted_by_label_train_as_well_with_auto_blocks(
    tmp_path: Path, name: str, rate: float, least: float
) -> None:
    train, test = converted(name, tmp_path)
    order = np.argsort(train.column("y")[:], kind="stable")
    in_order = ss.convert(train[order], tmp_path / "sorted", columns={"y": train.column("y")[:][order]})
    plan = in_order.plan(128, window_rows=2048)
    assert plan.quality is not None
    assert plan.quality.drift <= 2
    accuracy = []
    for store, options in ((train, {}), (in_order, {"window_rows": 2048, "block_rows": "auto"})):
        model, _ = trained(store.to_tf(128, shuffle=True, seed=0, **options), train.shape[1], "sparse", 6, rate)
        accuracy.append(model.evaluate(test.to_tf(1024), verbose=0, return_dict=True)["accuracy"])
    assert min(accuracy) >= least
    assert abs(accuracy[0] - accuracy[1]) <= 0.005
