"""How much memory the machine has free: asked before anything large is made. A leaf."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["free_bytes"]


def free_bytes() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not tell.

    Linux's own estimate, ``MemAvailable`` of proc(5), or the memory of the machine elsewhere.
    """
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
