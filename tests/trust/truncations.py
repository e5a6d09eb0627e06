"""Every object of a small store cut to every shorter length, made longer, gone, or something that is no plain file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from trust.answers import Asker, Bench, judge, strict
from trust.campaign import Campaign, Tally
from trust.small_store import BYTES, OBJECTS, PROFILES

_OTHERWISE = ("1", "4096", "16384", "missing", "folder", "link", "link to nothing", "pipe")
"""Bytes too many, or what is there in place of the object."""
_OF_ONE = BYTES + OBJECTS * len(_OTHERWISE)
"""Cases of one profile."""


def run(cases: Sequence[int], folder: Path) -> Tally:
    """Damage an object as each case says, ask, put it back."""
    tally = Tally()
    with Bench(folder) as bench, strict():
        for case in cases:
            profile, number = divmod(case, _OF_ONE)
            asker = bench.asker(PROFILES[profile])
            if number < BYTES:
                key, length = asker.store.find(number)
                kind = f"cut to {length}"
            else:
                which, other = divmod(number - BYTES, len(_OTHERWISE))
                key, kind = asker.store.keys[which], _OTHERWISE[other]
            judge(tally, case, _damaged(asker, key, kind, number))
    return tally


def _damaged(asker: Asker, key: str, kind: str, turn: int) -> list[str | None]:
    path, payload = asker.store.root / key, asker.store.objects[key]
    if kind.startswith("cut to"):
        os.truncate(path, int(kind[7:]))
    elif kind.isdigit():
        # what a JSON document may end with, and what a file system leaves at the end of a file
        path.write_bytes(payload + (b" " if key.endswith(".json") else b"\0") * int(kind))
    else:
        _replace(asker, path, kind)
    try:
        wrong = asker.asked_about([key], turn)
        return [*wrong, asker.crash_only(key)] if turn % 8 == 7 and not key.endswith(".json") else wrong
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif not path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
        path.write_bytes(payload)


def _replace(asker: Asker, path: Path, kind: str) -> None:
    """Put something else in the place of an object."""
    if kind.startswith("link"):
        target = asker.store.root.parent / "elsewhere"
        if kind == "link":
            shutil.copy(path, target)
        else:
            target.unlink(missing_ok=True)
        path.unlink()
        path.symlink_to(target)
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)


CAMPAIGN = Campaign(
    name="truncations",
    about="one object cut short, made longer, gone, or no plain file",
    total=2 * _OF_ONE,
    sample=1600,
    few=60,
    unit=1500,
    run=run,
)
