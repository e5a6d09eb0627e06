"""Peak anonymous memory of a piece of work, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

WATCH = """
import threading

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

before = anonymous()
thread = threading.Thread(target=watch)
thread.start()
try:
    work()
finally:
    peak = max(peak, anonymous())
    done.set()
    thread.join()
print(peak - before)
"""


def peak_of(code: str, *arguments: object) -> int:
    """Bytes of anonymous memory by which ``work()`` exceeds what was there before.

    `code` defines `work` and does beforehand what happens once in a process: imports, and a small run that compiles;
    `arguments` are its ``sys.argv[1:]``.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc/self/status")
    command = [sys.executable, "-c", textwrap.dedent(code) + WATCH, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])
