"""The campaign of interrupts knows where signals are heard, and sees what an interrupt leaves; a defence taken away."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trust import interrupts
from trust.interrupts import MOST, interrupted, places

from sparsestore import writer

pytestmark = pytest.mark.skipif(sys.implementation.name != "cpython", reason="hears signals where CPython does")


def entered(lock: Any) -> None:
    with lock:
        sum([1, 2])


def acquired(lock: Any) -> None:
    lock.acquire()
    try:
        sum([1, 2])
    finally:
        lock.release()


@pytest.mark.parametrize(
    ("work", "kind", "often"),
    [
        (entered, threading.Lock, False),
        (acquired, threading.Lock, True),
        (entered, lambda: threading.Condition(threading.Lock()), True),  # whose __enter__ is a function in Python
    ],
    ids=["with a lock", "acquire and try", "with a condition"],
)
def test_a_lock_stays_taken_where_an_interrupt_comes_between(
    work: Callable[[Any], None], kind: Callable[[], Any], often: bool
) -> None:
    left = []
    for place in places(partial(work, kind())):
        lock = kind()
        assert interrupted(partial(work, lock), place) == (True, False)
        left.append(not lock.acquire(False))
    assert len(left) > 2
    assert any(left) == often


def test_loops_are_interrupted_in_their_first_rounds_alone() -> None:
    def work(n: int) -> list[str]:
        return [str(i) for i in range(n)]

    assert len(places(lambda: work(100))) == len(places(lambda: work(3)))


def test_a_place_that_is_not_reached_is_told() -> None:
    place = places(lambda: sum(map(abs, [1, 2])))[-1]
    assert interrupted(lambda: None, place) == (False, True)


@pytest.mark.trust
def test_what_an_interrupt_leaves_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = range(1_000, 2_000, 100)
    assert interrupts.run(cases, tmp_path / "sound").faults == []
    monkeypatch.setattr(writer, "remove_skeleton", lambda *_, **__: None)
    assert "left by the interrupt: 2, ['s.zarr/writers', 's.zarr']" in str(
        interrupts.run(cases, tmp_path / "left").faults
    )


@pytest.mark.trust
def test_an_interrupt_that_is_swallowed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = writer.Writer.publish

    def deaf(self: writer.Writer) -> int:
        try:
            return finish(self)
        except KeyboardInterrupt:
            return 1

    monkeypatch.setattr(writer.Writer, "publish", deaf)
    assert "as if there had been no interrupt" in str(interrupts.run(range(4_000, 5_000, 90), tmp_path).faults)


@pytest.mark.trust
def test_more_places_than_there_are_cases_for_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOST, "convert", 1_000)
    assert "places, of which 1000 are cases" in str(interrupts.run([0], tmp_path).faults)
