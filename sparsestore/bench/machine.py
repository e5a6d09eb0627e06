"""What the machine can do by itself: copy memory, read files, empty the page cache."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsestore.parallel import n_cores

__all__ = ["can_drop", "copy_rates", "disk_bytes", "drop", "facts", "read_files"]

READ_BYTES = 4 << 20
"""Bytes of one read: more makes a sequential read no faster."""


def facts() -> dict[str, Any]:
    """Cores, memory, system and versions: what a figure needs beside it to mean anything."""
    return {
        "cores": n_cores(),
        "processor": _processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numpy", "scipy", "sparsestore")},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return None


def copy_rates(n_bytes: int, repeat: int) -> list[float]:
    """Bytes a second of copies by one thread between two arrays of this many bytes, both touched before."""
    source, target = np.ones(n_bytes, np.uint8), np.ones(n_bytes, np.uint8)
    rates = []
    for _ in range(repeat):
        begin = time.perf_counter()
        np.copyto(target, source)
        rates.append(n_bytes / (time.perf_counter() - begin))
    return rates


def read_files(paths: Sequence[Path], max_bytes: int | None = None) -> int:
    """Read files front to back into one buffer, one thread, 4 MiB at a time; the bytes read, at most `max_bytes`."""
    buffer = memoryview(bytearray(READ_BYTES))
    total = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while max_bytes is None or total < max_bytes:
                found = file.readinto(buffer)
                if not found:
                    break
                total += found
    return total


def can_drop() -> bool:
    """Whether this system lets a process empty the page cache of a file."""
    return hasattr(os, "posix_fadvise")


def drop(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget the pages of files; those that some process has mapped stay."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not on disk yet would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def disk_bytes() -> int | None:
    """Bytes that the block devices have delivered to this process so far; None where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
