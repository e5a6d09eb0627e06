"""Work over rows is done once for every row, on as many threads as it is worth, and its errors come back."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsestore import parallel
from sparsestore.parallel import as_done, mapped, over_ranges, over_rows


@given(lengths=st.lists(st.integers(0, 9), max_size=60), n_threads=st.integers(1, 9))
def test_every_row_is_worked_on_once(lengths: list[int], n_threads: int) -> None:
    done = np.zeros(len(lengths), int)

    def work(start: int, stop: int) -> None:
        done[start:stop] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "LEAST_ENTRIES", 1)
        over_rows(work, np.cumsum(lengths, dtype=np.int64), n_threads)
    assert (done == 1).all()


def test_shares_are_equal_in_entries_not_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "LEAST_ENTRIES", 1)
    ranges: list[tuple[int, int]] = []
    lengths = np.array([100, 1, 1, 98, 50, 50, 25, 25, 25, 25])
    over_rows(lambda start, stop: ranges.append((start, stop)), np.cumsum(lengths), 4)
    assert sorted(int(lengths[start:stop].sum()) for start, stop in ranges) == [100, 100, 100, 100]


def test_few_entries_start_no_thread() -> None:
    names = []
    over_rows(lambda *_: names.append(threading.current_thread().name), np.arange(1000), 8)
    assert names == [threading.current_thread().name]


def test_an_error_in_a_thread_comes_back_after_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "LEAST_ENTRIES", 1)
    ended = []

    def work(start: int, stop: int) -> None:
        if start == 50:
            raise KeyError(start)
        time.sleep(0.01)
        ended.append(start)

    with pytest.raises(KeyError, match="50"):
        over_rows(work, np.arange(1, 101), 4)
    assert sorted(ended) == [0, 25, 75]


def test_ranges_are_worked_on_at_once() -> None:
    barrier = threading.Barrier(3, timeout=30)
    over_ranges(lambda *_: barrier.wait(), 3, 1, 3)


def test_a_thread_that_never_starts_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Any] = []
    monkeypatch.setattr(parallel, "start_new_thread", lambda *call: late.append(call))
    ranges: list[tuple[int, int]] = []
    over_ranges(lambda start, stop: ranges.append((start, stop)), 30, 10, 3)
    assert ranges == [(0, 10), (10, 20), (20, 30)]
    for function, arguments in late:  # they find nothing left to do, and do not wait either
        function(*arguments)
    assert len(late) == 2
    assert len(ranges) == 3


@given(n=st.integers(0, 60), least=st.integers(1, 70), n_threads=st.integers(1, 9))
def test_every_thing_of_a_range_is_worked_on_once(n: int, least: int, n_threads: int) -> None:
    ranges: list[tuple[int, int]] = []
    over_ranges(lambda start, stop: ranges.append((start, stop)), n, least, n_threads)
    assert [i for start, stop in sorted(ranges) for i in range(start, stop)] == list(range(n))
    sizes = [stop - start for start, stop in ranges]
    assert len(sizes) == min(n_threads, max(n // least, 1))
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(least, n)


@pytest.mark.parametrize("n_threads", [1, 4])
def test_every_task_gives_its_result(n_threads: int) -> None:
    assert sorted(as_done(lambda task: task * task, range(100), n_threads)) == [task * task for task in range(100)]
    assert list(as_done(lambda task: task, [], n_threads)) == []


def test_an_error_ends_all_tasks_that_were_not_begun() -> None:
    begun = []

    def work(task: int) -> None:
        begun.append(task)
        if task == 3:
            raise KeyError(task)
        time.sleep(0.002)

    with pytest.raises(KeyError, match="3"):
        list(as_done(work, range(1000), 4))
    assert len(begun) < 100


def test_whoever_leaves_waits_for_running_tasks_only() -> None:
    running, begun = [], []

    def work(task: int) -> int:
        begun.append(task)
        running.append(task)
        time.sleep(0.01)
        running.remove(task)
        return task

    results = as_done(work, range(1000), 3)
    next(results)
    results.close()
    assert running == []
    assert len(begun) < 100


@pytest.mark.parametrize("n_started", [0, 2])
def test_tasks_are_done_by_the_threads_that_could_be_started(n_started: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, started = parallel.start_new_thread, []

    def start(*given: Any) -> int:
        if len(started) == n_started:
            raise RuntimeError("can't start new thread")
        started.append(given)
        return plain(*given)

    monkeypatch.setattr(parallel, "start_new_thread", start)
    assert sorted(as_done(lambda task: -task, range(50), 4)) == list(range(-49, 1))


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(n_threads: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return -item

    assert list(mapped(work, range(60), n_threads)) == [-item for item in range(60)]
    assert list(mapped(work, [], n_threads)) == []


def test_items_are_taken_as_results_are_used() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    results = mapped(lambda item: item, items(), 3)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 3 + 1
    results.close()


def test_the_first_error_comes_behind_the_results_before_it() -> None:
    def work(item: int) -> int:
        if item in (7, 8):
            raise KeyError(item)
        time.sleep(0.002 * (item == 7))
        return item

    results = mapped(work, range(20), 4)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(KeyError, match="7"):
        next(results)


def test_what_the_items_raise_comes_through() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(mapped(lambda item: item, items(), 2))


@pytest.mark.parametrize("n_started", [0, 1])
def test_items_are_worked_on_by_the_threads_that_could_be_started(
    n_started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, started = parallel.start_new_thread, []

    def start(*given: Any) -> int:
        if len(started) == n_started:
            raise RuntimeError("can't start new thread")
        started.append(given)
        return plain(*given)

    monkeypatch.setattr(parallel, "start_new_thread", start)
    assert list(mapped(lambda item: -item, range(50), 4)) == [-item for item in range(50)]
