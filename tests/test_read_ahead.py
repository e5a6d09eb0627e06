"""What the page cache is told along an iteration, by what memory there is."""

from __future__ import annotations

from typing import Any

import pytest

from sparsestore.read_ahead import ReadAhead
from sparsestore.storage import Advice


class FakeWindow:
    def __init__(self, stored_bytes: int) -> None:
        self.stored_bytes = stored_bytes
        self.told: list[Advice] = []

    def advise(self, advice: Advice) -> None:
        self.told.append(advice)


def told(monkeypatch: pytest.MonkeyPatch, *, free: int | None, store: int, window: int, reads: bool = True) -> Any:
    """What a second window is told when it is found, before it is loaded, and when it is done with."""
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: free)
    monkeypatch.setattr("sparsestore.storage.DiskWatch.stirred", lambda _: reads)
    ahead, found = ReadAhead(store), FakeWindow(window)
    steps = []
    for step in (ahead.found, ahead.begin, ahead.done):
        step(found)  # type: ignore[operator]
        steps.append(list(found.told))
        found.told.clear()
    return steps


def test_what_is_in_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, free=1000, store=100, window=10, reads=False) == [[], [], []]


@pytest.mark.parametrize("free", [1000, None])
def test_a_window_on_a_disk_is_asked_for_as_soon_as_it_is_found(
    monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    assert told(monkeypatch, free=free, store=100, window=10) == [[Advice.SOON], [], []]


def test_a_store_larger_than_memory_is_given_back_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, free=100, store=1000, window=20) == [[Advice.RANDOM, Advice.SOON], [], [Advice.DONE]]


def test_where_two_windows_do_not_fit_the_next_is_asked_for_when_the_one_before_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert told(monkeypatch, free=100, store=1000, window=60) == [[Advice.RANDOM], [Advice.SOON], [Advice.DONE]]


def test_batches_are_made_early_only_where_they_take_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: 100)
    assert ReadAhead(10).has_room_for(25)
    assert not ReadAhead(10).has_room_for(26)
