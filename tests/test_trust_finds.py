"""Campaigns see faults: a store whose defences are taken away has some."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trust import appenders, small_store, stateful

from sparsestore import maintain, writer
from sparsestore.loader import Loader
from sparsestore.view import View

pytestmark = [
    pytest.mark.trust,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and kills as Linux has them"),
]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: lives of a store sync a lot, and it is not the disk that is tried."""
    folder = small_store.place(tmp_path)
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def faults(folder: Path, lives: int = 6, steps: int = 40) -> list[str]:
    found = (stateful.live(number, steps, folder) for number in range(lives))
    return [fault for _, fault in found if fault]


def test_lives_of_a_store_as_it_is_have_none(tmp_path: Path) -> None:
    assert faults(tmp_path, lives=2) == []


def test_a_gc_that_takes_what_is_named_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = maintain.needed_keys
    monkeypatch.setattr(maintain, "needed_keys", lambda *arguments: set(sorted(needed(*arguments))[1:]))
    assert faults(tmp_path)


def test_a_gc_that_leaves_garbage_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintain, "_is_old", lambda *_: False)
    assert any("segments left" in fault or "left in writers" in fault for fault in faults(tmp_path, lives=10))


def test_an_abort_that_publishes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer.Writer, "__exit__", lambda self, *_: self.publish() and None)
    assert any("newest is" in fault for fault in faults(tmp_path))


def test_a_state_that_is_off_by_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_dict = Loader.state_dict

    def late(self: Loader) -> dict[str, Any]:
        state = state_dict(self)
        return {**state, "batch": min(state["batch"] + 1, len(self) - 1)}

    monkeypatch.setattr(Loader, "state_dict", late)
    assert any("resumed" in fault for fault in faults(tmp_path))


def test_splits_that_an_append_moves_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = View.split
    monkeypatch.setattr(View, "split", lambda self, *a, seed, **b: split(self, *a, seed=seed + len(self), **b))
    assert any("moved rows between splits" in fault for fault in faults(tmp_path, lives=8, steps=75))


def test_values_that_differ_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    getitem = View.__getitem__

    def wrong(self: View, key: Any) -> Any:
        found = getitem(self, key)
        if found.nnz > 30:
            found.data[-1] += 1
        return found

    monkeypatch.setattr(View, "__getitem__", wrong)
    assert any("values differ" in fault for fault in faults(tmp_path))


def test_a_publication_that_replaces_another_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rename(2), which replaces, in place of link(2), and no turns, two writers are told of one version."""
    broken = """
import contextlib, os, sys
from sparsestore.storage import LocalStorage

def link(self, temporary, key):
    os.rename(self.path(temporary), self.path(key))

@contextlib.contextmanager
def turn(self, *_):
    yield

LocalStorage._link, LocalStorage.turn = link, turn
from trust import appenders
appenders.main()
"""

    def started(what: str, *arguments: Any) -> Any:
        command = [sys.executable, "-c", broken, what, *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parent)

    monkeypatch.setattr(appenders, "child", started)
    found, _ = appenders.race(0, tmp_path, 12)
    assert any("distinct versions acknowledged" in fault for fault in found), found


def test_rows_that_are_there_twice_or_torn_are_found(tmp_path: Path) -> None:
    import sparsestore as ss

    x, y = appenders.rows_of(1, 5)
    store = ss.convert(x, tmp_path / "s.zarr", columns={"y": y})
    assert appenders.check(store) == ""
    assert "rows are there twice" in appenders.check(store.append(x, y=y))
    torn = ss.convert(x[:1], tmp_path / "s.zarr", columns={"y": y[:1]}, overwrite=True)
    other, its = appenders.rows_of(1, 7)
    assert "in part" in appenders.check(torn.append(other[:1], y=its[:1]))
    changed = ss.convert(x * 2, tmp_path / "s.zarr", columns={"y": y}, overwrite=True)
    assert "are not those of their rows" in appenders.check(changed)
