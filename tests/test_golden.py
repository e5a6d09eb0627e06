"""The stores of tests/data/v1, written once by `golden.py`, are read for ever: by sparsestore, and without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from test_format_page import read

import sparsestore as ss


class Expected:
    """What a store of tests/data/v1 holds, from the files beside it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = golden.ROOT / f"{name}.zarr"
        self.facts = json.loads((golden.ROOT / f"{name}.json").read_text(encoding="ascii"))
        with np.load(golden.ROOT / f"{name}.npz", allow_pickle=False) as arrays:
            self.arrays = dict(arrays)

    @property
    def versions(self) -> dict[int, dict[str, Any]]:
        return {int(version): facts for version, facts in self.facts["versions"].items()}

    def column(self, version: int, name: str) -> Any:
        values = self.arrays[f"{version}/column/{name}"]
        mask = self.arrays.get(f"{version}/column/{name}/mask")
        return values if mask is None else np.ma.MaskedArray(values, mask)


@pytest.fixture(params=golden.NAMES)
def expected(request: pytest.FixtureRequest) -> Expected:
    return Expected(request.param)


def check_rows(found: Any, expected: Expected, version: int) -> None:
    """The same matrix, to the bit."""
    parts = {part: expected.arrays[f"{version}/{part}"] for part in ("indptr", "indices", "data")}
    assert list(found.shape) == expected.versions[version]["shape"]
    assert found.indptr.tolist() == parts["indptr"].tolist()
    assert found.indices.tolist() == parts["indices"].tolist()
    assert found.data.astype(parts["data"].dtype).tobytes() == parts["data"].tobytes()


def check_column(found: Any, values: Any) -> None:
    """The same values, missing ones among them."""
    assert np.ma.isMaskedArray(found) == np.ma.isMaskedArray(values)
    if np.ma.isMaskedArray(values):
        assert found.tolist() == values.tolist()
    elif values.dtype.kind == "U":
        assert found.dtype == object
        assert found.tolist() == values.tolist()
    else:
        assert found.dtype == values.dtype
        assert found.tobytes() == values.tobytes()


def test_all_stores_are_there() -> None:
    assert sorted(path.stem for path in golden.ROOT.glob("*.zarr")) == sorted(golden.NAMES)
    assert len(list(golden.ROOT.glob("*.npz"))) == len(list(golden.ROOT.glob("*.json"))) == len(golden.NAMES)


@pytest.mark.parametrize("mmap", [True, False])
def test_every_version_is_read_as_it_was_written(expected: Expected, mmap: bool) -> None:
    assert ss.open(expected.root).versions == list(expected.versions)
    for version, facts in expected.versions.items():
        with ss.open(expected.root, version=version, check="always", mmap=mmap) as store:
            assert (list(store.shape), store.nnz, store.dtype.name) == (facts["shape"], facts["nnz"], facts["dtype"])
            assert sorted(store.columns) == sorted(facts["columns"])
            assert store.verify() == []
            check_rows(store[:], expected, version)
            for name in facts["columns"]:
                check_column(store.column(name)[:], expected.column(version, name))


def test_batches_come_in_the_order_of_their_seed(expected: Expected) -> None:
    with ss.open(expected.root) as store:
        for order in expected.facts.get("orders", []):
            loader = store.loader(shuffle=True, allow_poor_shuffle=True, **order["plan"])
            for epoch in order["epochs"]:
                assert [row for batch in loader for row in batch.row_ids.tolist()] == epoch


def test_a_state_goes_on_where_it_was_saved(expected: Expected) -> None:
    if "state" not in expected.facts:
        assert not expected.versions[1]["nnz"]
        return
    kept = expected.facts["state"]
    with ss.open(expected.root) as store:
        loader = store.loader(5, shuffle=True, seed=3, block_rows=4, window_rows=20, allow_poor_shuffle=True)
        loader.load_state_dict(kept["state"])
        assert [row for batch in loader for row in batch.row_ids.tolist()] == kept["rest"]


def test_a_plan_is_told(expected: Expected) -> None:
    with ss.open(expected.root) as store:
        if len(store):
            assert "window" in str(store.plan(batch_size=8, seed=0))


@pytest.mark.filterwarnings("ignore:Object at segment.json")
@pytest.mark.parametrize("name", [name for name in golden.NAMES if not name.startswith("empty")])
def test_zarr_and_json_alone_read_the_newest_version(name: str) -> None:
    expected = Expected(name)
    version = max(expected.versions)
    found, columns, row_ids = read(expected.root)
    check_rows(found, expected, version)
    for column, values in columns.items():
        wanted = expected.column(version, column)
        assert values.tolist() == wanted.tolist() or (np.isnan(values) == np.isnan(wanted)).all()
    if "row_id" in expected.versions[version]["columns"]:
        assert row_ids.tolist() == expected.column(version, "row_id").tolist()


def test_git_keeps_every_byte() -> None:
    files = [str(path) for path in golden.ROOT.rglob("*") if path.is_file()]
    assert sum(Path(path).stat().st_size for path in files) < 1 << 20
    git = ["git", "-C", str(golden.ROOT)]
    if subprocess.run([*git, "rev-parse"], capture_output=True, check=False).returncode:
        pytest.skip("no checkout of git")
    ignored = subprocess.run([*git, "check-ignore", "--stdin"], input="\n".join(files), capture_output=True, text=True)
    assert ignored.stdout == ""
    told = subprocess.run([*git, "check-attr", "text", "--", *files[:50]], capture_output=True, text=True, check=True)
    assert all(line.endswith("text: unset") for line in told.stdout.splitlines())


def test_nothing_is_written_twice() -> None:
    done = subprocess.run(
        [sys.executable, "golden.py"], cwd=golden.ROOT.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "never written again" in done.stderr
