"""What the page cache is told along an iteration, by what memory there is."""

from __future__ import annotations

from typing import Any

import pytest

from sparsestore.buffers import Buffers
from sparsestore.read_ahead import ReadAhead
from sparsestore.storage import Advice


class FakeWindow:
    n_found = 0

    def __init__(self, stored_bytes: int, *, mapped: bool = True) -> None:
        self.stored_bytes = stored_bytes
        self.mapped = mapped
        self.told: list[Any] = []

    def advise(self, advice: Advice) -> None:
        self.told.append(advice)

    def load(self, buffers: Buffers | None, *, direct: bool) -> None:
        if buffers is not None:
            self.told.append("read around" if direct else "copied")

    def forget(self) -> None:
        self.told.append("forgotten")


@pytest.fixture(autouse=True)
def no_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsestore.read_ahead.STRIP_BYTES", 0)


def told(
    monkeypatch: pytest.MonkeyPatch, *, free: int | None, store: int, window: int, reads: bool = True, **options: Any
) -> Any:
    """What a second window is told when it is found, before it is loaded, and when it is done with."""
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: free)
    monkeypatch.setattr("sparsestore.storage.DiskWatch.stirred", lambda _: reads)
    ahead, found = ReadAhead(store), FakeWindow(window, **options)
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


def test_a_store_somewhat_larger_than_memory_is_given_back_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, free=100, store=120, window=20) == [[Advice.RANDOM, Advice.SOON], [], [Advice.DONE]]


def test_a_store_much_larger_than_memory_is_read_around_the_page_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, free=100, store=160, window=20) == [[], ["read around"], ["forgotten"]]


def test_where_two_windows_do_not_fit_the_next_is_asked_for_when_the_one_before_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert told(monkeypatch, free=100, store=120, window=60) == [[Advice.RANDOM], [Advice.SOON], [Advice.DONE]]


def test_where_not_one_window_can_be_copied_the_page_cache_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, free=100, store=1000, window=90) == [[Advice.RANDOM], [Advice.SOON], [Advice.DONE]]


def test_a_consumer_that_takes_windows_ahead_copies_none_where_only_one_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: 100)
    for window, in_turn, copied, ahead in [(40, False, True, True), (60, False, False, False), (60, True, True, False)]:
        found = ReadAhead(160, in_turn=in_turn)
        found.found(FakeWindow(window))  # type: ignore[arg-type]
        assert (found.buffers is not None, found.loads_ahead) == (copied, ahead)


def test_what_is_not_mapped_is_copied_into_memory_that_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, free=1000, store=100, window=10, mapped=False) == [[], ["copied"], ["forgotten"]]


@pytest.mark.parametrize(
    ("store", "window", "ahead"), [(10, 5, True), (120, 20, False), (160, 20, True), (160, 60, False)]
)
def test_windows_are_checked_ahead_where_there_is_memory(
    monkeypatch: pytest.MonkeyPatch, store: int, window: int, ahead: bool
) -> None:
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: 100)
    found = ReadAhead(store)
    found.found(FakeWindow(window))  # type: ignore[arg-type]
    assert found.loads_ahead is ahead


def test_a_short_window_does_not_tell_that_whole_ones_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: 1_000_000)
    monkeypatch.setattr(FakeWindow, "n_found", 100)
    for window_rows, copied in [(100, True), (10_000, False)]:
        found = ReadAhead(1_600_000, 0, window_rows)
        found.found(FakeWindow(10_000))  # type: ignore[arg-type]
        assert (found.buffers is not None) is copied


def test_batches_are_made_early_only_where_they_take_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsestore.memory.free_bytes", lambda: 100)
    assert ReadAhead(10).has_room_for(25)
    assert not ReadAhead(10).has_room_for(26)
