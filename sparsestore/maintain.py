"""gc: old versions, and what no version needs and no living writer is writing."""

from __future__ import annotations

import os
import re
import time

from sparsestore.format import manifest_key
from sparsestore.manifest import read_manifest, segment_lines, versions
from sparsestore.storage import LocalStorage, open_storage

__all__ = ["gc", "parse_age"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_age(age: str | float) -> float:
    """Seconds in ``"24h"``, ``"30m"`` or a number of seconds.

    Examples
    --------
    >>> parse_age("1.5h")
    5400.0
    """
    if isinstance(age, (int, float)) and not isinstance(age, bool):
        seconds = float(age)
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhdw])\s*", str(age))
        if not match:
            raise ValueError(f"older_than is {age!r}, expected seconds or a string such as '24h', '30m' or '0s'")
        seconds = float(match[1]) * _SECONDS[match[2]]
    if not seconds >= 0:
        raise ValueError(f"older_than is {age!r}, expected no negative age")
    return seconds


def gc(
    path: str | os.PathLike[str], *, keep_versions: int = 1, older_than: str | float = "24h", dry_run: bool = False
) -> list[str]:
    """Remove all but the newest versions, then what no remaining version needs.

    Parameters
    ----------
    path : str or path-like
    keep_versions : int
        How many of the newest versions stay; at least 1.
    older_than : str or float
        Age from which unneeded files go: a conversion elsewhere may not have published its segments yet.
    dry_run : bool
        Only tell what would go.

    Returns
    -------
    list of str
        Keys removed, in order.

    Raises
    ------
    FileNotFoundError
        Where there is no store.
    CorruptStoreError
        Where a version that stays can not be read: nothing is removed then.

    Notes
    -----
    Versions go first, so that a crash half-way leaves garbage and never a version without its segments. Files that
    other processes have mapped stay readable to them. What a running writer makes is never removed, whatever its age.
    """
    if isinstance(keep_versions, bool) or keep_versions < 1:
        raise ValueError(f"keep_versions is {keep_versions}, expected at least 1")
    oldest = time.time() - parse_age(older_than)
    storage = open_storage(path)
    read_manifest(storage)  # FileNotFoundError where there is no store
    # Listed before living writers are, and versions read after: what is listed and has no living writer was published
    # before the versions are read, or never will be.
    candidates = [f"segments/{name}" for name in storage.list("segments")]
    candidates += [f"versions/pages/{name}" for name in storage.list("versions/pages")]
    candidates += [f"versions/{name}" for name in storage.list("versions") if name.startswith(".tmp-")]
    writing = _living_writers(storage, remove_dead=not dry_run)
    numbers = versions(storage)
    kept, dropped = numbers[-keep_versions:], numbers[:-keep_versions]
    needed: set[str] = set()
    for number in kept:
        manifest = read_manifest(storage, number)
        needed |= {f"segments/{line.id}" for line in segment_lines(storage, manifest)}
        needed |= {page.object.key for page in manifest.pages}
    removed = [manifest_key(number) for number in dropped]
    if not writing:
        removed += [key for key in candidates if key not in needed and storage.modified(key) <= oldest]
    if not dry_run:
        for key in removed:
            storage.remove(key)
    return removed


def _living_writers(storage: LocalStorage, *, remove_dead: bool) -> bool:
    """Whether any writer of this store still runs: it holds the lock of its journal."""
    living = False
    for name in storage.list("writers"):
        key = f"writers/{name}"
        with storage.lock(key) as free:
            living |= not free
            if free and remove_dead:
                storage.remove(key)
    return living
