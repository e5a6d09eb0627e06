"""Long work shows how far it is: a bar on a terminal, log lines elsewhere, nothing where that is asked for."""

import os
import pty
import subprocess
import sys

import pytest

from sparsestore import progress

WORK = """
from sparsestore import progress
progress.BAR_AFTER_S = 0
with progress.shown("converting", {shown}) as report:
    for position in range(0, 101, 10):
        report(position, 100, "rows")
"""


def on_a_terminal(shown: str) -> str:
    """What a terminal gets on standard error."""
    here, there = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", WORK.format(shown=shown)], stderr=there)
    os.close(there)
    found = b""
    try:
        while piece := os.read(here, 4096):
            found += piece
    except OSError:  # Linux: the other end was closed
        pass
    finally:
        os.close(here)
    assert child.wait() == 0
    return found.decode()


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    found = on_a_terminal("None")
    assert "converting" in found
    assert "100%" in found
    assert found.rstrip().endswith("\x1b[2K")  # the line is cleared


def test_a_terminal_gets_nothing_where_that_is_asked_for() -> None:
    assert on_a_terminal("False") == ""


def test_elsewhere_lines_go_to_the_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    caplog.set_level("INFO", "sparsestore")
    with progress.shown("converting") as report:
        report(50, 200, "bytes")
        report(10, None, "rows")
    first, second = (record.message for record in caplog.records)
    assert first.startswith("converting: 50 of 200 bytes (25%), ")
    assert first.endswith(" s left")
    assert second.startswith("converting: 10 rows, ")


def test_a_process_without_standard_error_has_no_bar() -> None:
    program = "import sys; assert sys.stderr is None\n" + WORK.format(shown="None") + "\nprint('done')"
    call = [sys.executable, "-c", program]
    found = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *call], stdout=subprocess.PIPE, check=False)
    assert (found.returncode, found.stdout) == (0, b"done\n")


def test_lines_are_seldom(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sparsestore")
    with progress.shown("converting") as report:
        for position in range(1000):
            report(position, 1000, "rows")
    assert caplog.records == []


def test_a_callable_gets_the_calls() -> None:
    calls: list[tuple[int, int | None, str]] = []
    with progress.shown("converting", lambda *call: calls.append(call)) as report:
        report(1, 2, "rows")
    assert calls == [(1, 2, "rows")]
