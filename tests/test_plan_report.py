"""What is said of an epoch before it runs: close to what it then holds and reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import sparsestore as ss

N = 100_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ss.Store:
    rng = np.random.default_rng(0)
    x = sp.csr_array((rng.random(N, np.float32), np.arange(N) % 50, np.arange(N + 1)), shape=(N, 50))
    columns = {"y": np.zeros(N), "topics": np.zeros((N, 200), np.float32), "name": np.full(N, "x")}
    return ss.convert(x, tmp_path_factory.mktemp("report") / "s.zarr", columns=columns)


def test_columns_count_as_memory_of_a_window(store: ss.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = store.plan(64, columns=()).window_bytes
    assert store.plan(64, columns=("y",)).window_bytes - bare == 8 * 65_536
    assert store.plan(64, columns=("topics",)).window_bytes - bare == 800 * 65_536
    assert store.plan(64, columns=("name",)).window_bytes > bare
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: 20 << 20)
    store.loader(64)
    with pytest.raises(MemoryError, match="windows of 65536 rows and batches of"):
        store.loader(64, columns=("topics",))


def test_columns_do_not_change_the_order(store: ss.Store) -> None:
    plans = [store.loader(64, shuffle=True, seed=0, columns=columns).plan for columns in ((), ("y", "topics"))]
    assert plans[0].window_rows == plans[1].window_rows


# 6 bytes a row: a page has 682 of them
@pytest.mark.parametrize(
    ("rows", "least", "most"),
    [
        (slice(None), 1, 1.2),
        (slice(0, N // 10), 1, 1.2),
        (np.arange(N) % 10 == 0, 9.9, 10.4),
        (np.random.default_rng(0).permutation(N)[: N // 10], 9.9, 10.4),
    ],
    ids=["all", "range", "mask", "explicit"],
)
def test_rows_that_lie_scattered_read_what_lies_between(store: ss.Store, rows: Any, least: float, most: float) -> None:
    view = store.select(rows=rows)
    assert least <= view.plan(64, block_rows=4096).read_amplification <= most
    assert least <= view.plan(64, shuffle=False).read_amplification <= most


def test_labels_are_not_blamed_for_blocks_that_are_short_for_another_reason(tmp_path: Path) -> None:
    y = np.random.default_rng(0).integers(0, 2, 1000)
    for name, values, blamed in (("mixed", y, False), ("sorted", np.sort(y), True)):
        store = ss.convert(sp.eye_array(1000, format="csr"), tmp_path / name, columns={"y": values})
        plan = store.plan(16, window_rows=64)
        assert plan.block_rows <= 64  # a thousand rows have no 16 longer ones
        assert (plan.advice is not None) == blamed


def test_the_report_of_a_whole_store_is_pinned(tmp_path: Path) -> None:
    store = ss.convert(sp.eye_array(1000, format="csr"), tmp_path / "s.zarr", columns={"y": np.arange(1000) % 2})
    assert str(store.plan(64, seed=3, layout="dense", window_rows=640)).splitlines() == [
        "rows                1,000 x 1,000 features",
        "batches             16 of 64 rows an epoch",
        "order               shuffled, seed 3",
        "window              640 rows, 20.0 KiB; 2 an epoch",
        "block               64 rows, 128 B a read",
        "read amplification  33.00 from a cold disk",
        "memory              2.0 MiB",
        "effective batch     64 of 64 rows",
        "drift S             1.00, good (by column 'y' alone)",
    ]
