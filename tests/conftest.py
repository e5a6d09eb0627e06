"""Fixtures that every test gets: nothing it opened may stay open, no thread it started may stay."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shell that runs this in the background has it ignored, and programs that are started here inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs that are started here import the package, hundreds of times: where they may not keep what Python makes of its
# sources, each takes a third of a second longer.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

passed = pytest.StashKey[bool]()

# Native threads that once called Python (TensorFlow's pools) appear as "Dummy-"; zarr-python keeps an event loop.
FOREIGN_THREADS = ("Dummy-", "zarr_io", "asyncio_")
PATIENCE_S = 5.0

# 20 where a test says no number itself: `make test` is to stay within 20 minutes on two cores. It draws the same
# examples each time, so that a change is judged by what it changed; `make test-random` draws others. A loaded machine
# is no defect: nothing here fails for the time it takes.
TIMELESS = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", TIMELESS, derandomize=True)
settings.register_profile("random", TIMELESS)
settings.load_profile("same")


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what imports made, millions of objects that stay: tests call it often."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remember whether a test's body passed: a failed one keeps its variables, and with them files, alive."""
    report = yield
    if report.when == "call":
        item.stash[passed] = report.passed
    return report


def python_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith(FOREIGN_THREADS)}


def open_below(folder: Path) -> list[str]:
    """Files below a folder that this process holds open or mapped (Linux; elsewhere always none)."""
    if not sys.platform.startswith("linux"):
        return []
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            target = descriptor.readlink()
            if target.is_relative_to(folder):
                found.append(f"open: {target}")
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    if f"{folder}/" not in maps:  # thousands of lines
        return found
    return found + [f"mapped: {line.split(maxsplit=5)[5]}" for line in maps.splitlines() if f"{folder}/" in line]


@pytest.fixture(autouse=True)
def threads_do_not_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    before = python_threads()
    yield
    if not request.node.stash.get(passed, False):
        return
    deadline = time.monotonic() + PATIENCE_S
    while (left := python_threads() - before) and time.monotonic() < deadline:
        request.node.funcargs.clear()
        gc.collect()
        time.sleep(0.02)
    assert not left, f"threads still running: {sorted(thread.name for thread in left)}"


@pytest.fixture(autouse=True)
def files_do_not_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    if "tmp_path" not in request.fixturenames:
        yield
        return
    folder = request.getfixturevalue("tmp_path").resolve()
    yield
    if not request.node.stash.get(passed, False) or not open_below(folder):
        return
    request.node.funcargs.clear()  # pytest keeps them until after the last fixture
    deadline = time.monotonic() + PATIENCE_S
    collected = False
    while (left := open_below(folder)) and time.monotonic() < deadline:
        if collected:
            time.sleep(0.02)
        gc.collect()
        collected = True
    assert not left, f"files of the test still in use: {left}"
    if collected:
        gc.freeze()  # what is left was made by imports, which come all along: the next time it is passed over
