"""How much memory this process may still take: asked before anything large is made; and giving some back. A leaf."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["free_bytes", "give_back"]

_SELF, _MOUNTS = Path("/proc/self/cgroup"), Path("/proc/self/mounts")


def free_bytes() -> int | None:
    """Bytes that can be taken without swapping, what caches files included; None where the system does not tell.

    Linux's own estimate, ``MemAvailable`` of proc(5), or what the control groups of the process leave, where that is
    less: their limit without the memory that is no cache (cgroups(7): version 2, or version 1 with its memory
    controller). Elsewhere the memory of the machine.
    """
    found = [*_of_machine(), *_of_groups()]
    return min(found) if found else None


def give_back() -> None:
    """Give the system what the C library keeps of memory that was freed.

    glibc keeps arrays of up to 32 MiB that are gone, between things that live: where bands of rows were sorted one
    after the other, 13 bytes for every row there was. Other C libraries keep less; there this does nothing.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def _of_machine() -> list[int]:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return [int(line.split()[1]) * 1024]
    except OSError:
        pass
    try:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return []


def _of_groups() -> list[int]:
    """What each memory-limited control group around this process leaves."""
    try:
        lines = [line.split(":", 2) for line in _SELF.read_text().splitlines()]
        mounts = [line.split()[1:4] for line in _MOUNTS.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        kind, limit, cached = ("cgroup2", "memory.max", "file") if not controllers else _VERSION_1
        for place, type_, options in mounts:
            if type_ != kind or (controllers and "memory" not in options.split(",")):
                continue
            folder = Path(place) / path.lstrip("/")
            while folder != Path(place).parent:  # a limit holds for all groups below
                found += _left(folder, limit, cached)
                folder = folder.parent
            break
    return found


_VERSION_1 = ("cgroup", "memory.limit_in_bytes", "total_cache")


def _left(folder: Path, limit: str, cached: str) -> list[int]:
    """Limit of one group without what it holds beside files; empty where it has no limit."""
    usage = "memory.current" if limit == "memory.max" else "memory.usage_in_bytes"
    try:
        most = (folder / limit).read_text().strip()
        if most == "max" or int(most) >= 1 << 60:  # version 1 has a huge number for none
            return []
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return [max(int(most) - int((folder / usage).read_text()) + int(stat.get(cached, 0)), 0)]
    except (OSError, ValueError):
        return []
