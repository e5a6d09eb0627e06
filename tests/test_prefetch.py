from __future__ import annotations

import gc
import threading
import time
import traceback
import weakref
from collections.abc import Iterator

import pytest

from sparsestore.prefetch import prefetch


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sparsestore-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    assert workers() == []
    yield
    assert workers() == []


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_yields_every_item_in_order(n: int, depth: int) -> None:
    assert list(prefetch(range(n), depth)) == list(range(n))


def test_depth_below_one_is_refused_at_the_call() -> None:
    with pytest.raises(ValueError, match="depth is 0, expected at least 1"):
        prefetch([], 0)


def test_no_thread_before_the_first_item_is_asked_for() -> None:
    items = prefetch([1])
    assert workers() == []
    items.close()


@pytest.mark.parametrize("depth", [1, 3])
def test_runs_ahead_by_depth_and_no_more(depth: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            begun.append(i)
            yield i

    consumer = prefetch(items(), depth)
    for i in range(5):
        assert next(consumer) == i
        until = time.monotonic() + 5
        while len(begun) < i + 1 + depth and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(begun) == i + 1 + depth
    consumer.close()


def test_an_error_follows_the_items_before_it_with_its_traceback() -> None:
    def breaks_here() -> None:
        raise KeyError("lost")

    def items() -> Iterator[int]:
        yield 1
        yield 2
        breaks_here()

    consumer = prefetch(items(), 4)
    assert [next(consumer), next(consumer)] == [1, 2]
    with pytest.raises(KeyError, match="lost") as caught:
        next(consumer)
    assert "breaks_here" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


def test_an_iterable_that_can_not_be_iterated_raises_at_the_first_item() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        next(prefetch(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["close", "forget", "cycle", "break"])
def test_an_abandoned_iterator_stops_its_thread_and_closes_its_source(how: str) -> None:
    closed_in: list[str] = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed_in.append(threading.current_thread().name)

    consumer = prefetch(items(), 2)
    assert next(consumer) == 0
    assert len(workers()) == 1
    if how == "close":
        consumer.close()
    elif how == "break":
        for _ in consumer:
            break
        del consumer
    elif how == "forget":
        del consumer
    else:
        cycle = [consumer]
        cycle.append(cycle)  # type: ignore[arg-type]
        del consumer, cycle
        gc.collect()
    assert workers() == []
    assert closed_in == ["sparsestore-prefetch"]


def test_closing_waits_for_the_item_being_made_and_makes_no_other() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            begun.append(i)
            time.sleep(0.05)
            yield i

    consumer = prefetch(items(), 8)
    next(consumer)
    started = time.monotonic()
    consumer.close()
    assert time.monotonic() - started < 1
    assert len(begun) <= 3


def test_no_item_is_kept_after_the_consumer_took_the_next() -> None:
    class Item:
        pass

    consumer = prefetch((Item() for _ in range(50)), 1)
    refs: list[weakref.ref[Item]] = []
    for item in consumer:
        refs.append(weakref.ref(item))
        assert sum(ref() is not None for ref in refs) <= 2
        del item
    assert not any(ref() for ref in refs)


def test_iterators_do_not_disturb_each_other() -> None:
    assert list(zip(prefetch(range(50)), prefetch(range(50, 100), 3), strict=True)) == [(i, i + 50) for i in range(50)]
