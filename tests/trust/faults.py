"""Every system call of a conversion, an append, a gc and a reader fails: once, or from then on.

A case is one call of one scene: the k-th of those that an errno is for.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from unittest import mock

import sparsestore as ss
from trust import scenes
from trust.answers import describe
from trust.campaign import Campaign, Tally
from trust.scenes import EXPORTED, SCENES, Export, Scene
from trust.tracing import Call, Fail, Short, trace

_OPEN = ("openat", "open", "creat")
_NAMES = ("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "link", "linkat", "rename", "renameat", "renameat2")
_STATUS = ("stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "access", "faccessat", "faccessat2", "readlink")
_WRITE = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "copy_file_range", "sendfile")
_READ = ("read", "pread64", "readv", "preadv", "preadv2", "getdents64")
_LENGTH = ("ftruncate", "truncate", "fallocate")
_SYNC = ("fsync", "fdatasync")
_NAMED = re.compile(r"(?:^|[ '(])/|segments/|versions/|writers/")
"""A whole path, or a key."""
_F_DUPFD = (0, 1030)  # and F_DUPFD_CLOEXEC


@dataclass(frozen=True)
class Kind:
    """A way to fail, and the calls that fail so."""

    name: str
    calls: tuple[str, ...]

    def meets(self, call: Call) -> bool:
        """Whether a call may fail so."""
        if call.name not in self.calls or (call.name == "write" and call.arguments[0] <= 2):
            return False
        if self.name == "ENOSPC" and call.name == "openat":
            return bool(call.arguments[2] & os.O_CREAT)
        if self.name == "EMFILE" and call.name == "fcntl":
            return call.arguments[1] in _F_DUPFD
        return self.name != "short write" or call.arguments[2] > 1

    def verdict(self, call: Call) -> Fail | Short:
        """What becomes of a call."""
        if self.name == "short write":
            return Short(call.arguments[2] // 2)
        return Fail(int(getattr(errno, self.name)))


KINDS: tuple[Kind, ...] = (
    Kind("ENOSPC", (*_OPEN, "mkdir", "mkdirat", "link", "linkat", "rename", "renameat2", *_WRITE, *_LENGTH, *_SYNC)),
    Kind("EIO", (*_OPEN, *_NAMES, *_STATUS, *_READ, *_WRITE, *_LENGTH, *_SYNC, "close", "lseek", "flock", "ioctl")),
    Kind("EMFILE", (*_OPEN, "dup", "fcntl")),
    Kind("EACCES", (*_OPEN, *_NAMES, *_STATUS)),
    Kind("short write", ("write", "pwrite64")),
)
MOST: dict[str, tuple[int, ...]] = {
    "convert": (580, 2400, 850, 1350, 75),
    "shuffle and overwrite": (450, 2000, 640, 1100, 90),
    "append": (370, 1550, 560, 820, 50),
    "gc": (10, 1600, 300, 880, 4),
    "read mapped": (4, 1700, 270, 920, 4),
    "read": (4, 1750, 280, 920, 4),
    "optimize": (750, 4700, 1300, 2800, 100),
    "export": (10, 500, 80, 330, 4),
    "export over a file": (10, 500, 80, 330, 4),
}
"""More calls than each scene makes, by `KINDS`: the rest of the cases find no call."""


@cache
def _parts(of: tuple[Scene, ...] = SCENES) -> list[tuple[int, int, bool]]:
    """Scene, kind and whether it goes on, of each range of cases."""
    return [(s, k, for_ever) for s in range(len(of)) for k in range(len(KINDS)) for for_ever in (False, True)]


@cache
def _ends(of: tuple[Scene, ...] = SCENES) -> list[int]:
    return list(accumulate(MOST[of[s].name][k] for s, k, _ in _parts(of)))


def total(of: tuple[Scene, ...]) -> int:
    """Cases of some scenes."""
    return _ends(of)[-1]


def meaning(case: int, of: tuple[Scene, ...] = SCENES) -> tuple[Scene, Kind, bool, int]:
    """Scene, kind, whether it goes on, and which of the calls."""
    part = next(i for i, end in enumerate(_ends(of)) if case < end)
    s, k, for_ever = _parts(of)[part]
    return of[s], KINDS[k], for_ever, case - (_ends(of)[part - 1] if part else 0)


def run(cases: Sequence[int], folder: Path, of: tuple[Scene, ...] = SCENES) -> Tally:
    """Let the calls fail that the cases say, judge what is told and what is there."""
    tally = Tally()
    for scene, numbers, fresh in scenes.staged(cases, lambda case: meaning(case, of)[0], folder, of):
        for case in numbers:
            _, kind, for_ever, at = meaning(case, of)
            label, wrong = _case(scene, kind, for_ever, at, fresh())
            tally.outcomes[label] += 1
            for what in wrong:
                often = "for ever" if for_ever else "once"
                tally.fault(case, f"{scene.name}, {kind.name} {often} at call {at}: {what}")
    return tally


def _case(scene: Scene, kind: Kind, for_ever: bool, at: int, folder: Path) -> tuple[str, list[str]]:
    """What came of one case, and what is wrong with it."""
    seen = 0
    hit = ""

    def entering(call: Call) -> Fail | Short | None:
        nonlocal seen, hit
        if not kind.meets(call):
            return None
        seen += 1
        if seen <= at or (seen > at + 1 and not for_ever):
            return None
        hit = hit or call.name
        return kind.verdict(call)

    told = trace(lambda: _told(scene, folder), entering, names=kind.calls, most=60_000)
    if not hit:
        return "no such call", [] if told == '["done", ""]' else [f"without a fault: {told}"]
    wrong = []
    if told.startswith("died"):
        return "died", [f"{hit}: {told[-600:]}"]
    how, text = json.loads(told)
    if how == "unclean":
        wrong.append(f"{hit}: {text}")
    if isinstance(scene, Export) and (for_ever or hit.startswith("unlink")):
        # what can not be removed stays, under a name that says what it is
        for path in list(folder.glob(f".{EXPORTED}.*.tmp"))[:1]:
            path.unlink()
    wrong += [f"{hit}: {found}" for found in _after(scene, folder, how, text, at)]
    label = {"done": "done all the same", "error": "error"}.get(how, "fault")
    return f"{scene.name}: {label}" if not wrong else "fault", wrong


def _told(scene: Scene, folder: Path) -> str:
    """Do it, as JSON: "done", or "error" and its text where it is one that users are to see."""
    noise = io.StringIO()
    unraisable: list[str] = []
    with (
        mock.patch.object(sys, "stderr", noise),
        mock.patch.object(sys, "unraisablehook", lambda found: unraisable.append(describe(found.exc_value))),
    ):
        try:
            scene.work(folder)
            how, text = "done", ""
        except (OSError, ss.SparsestoreError) as error:
            named = _NAMED.search(str(error)) is not None
            how, text = "error" if named else "unclean", str(error) if named else f"names nothing: {describe(error)}"
        except BaseException as error:
            how, text = "unclean", describe(error)
    if unraisable or "Traceback" in noise.getvalue():
        how, text = "unclean", f"not raised: {unraisable} {noise.getvalue()[-300:]} after {text}"
    return json.dumps([how, text])


def _after(scene: Scene, folder: Path, how: str, text: str, turn: int) -> list[str]:
    """What is wrong with what is there now, and with going on from it."""
    state, wrong = scene.state(folder)
    if wrong:
        return [f"{wrong} after {how}: {text}"]
    if scene.before != scene.after:
        expected = "after" if how == "done" or "is published, but" in text else "before"
        if state != expected:
            return [f"the store is as {state} it, after {how}: {text}"]
    return scenes.gone_on(scene, folder, state, turn)


CAMPAIGN = Campaign(
    name="faults",
    about="one system call fails, once or for ever: ENOSPC, EIO, EMFILE, EACCES, a short write",
    total=total(SCENES),
    sample=400,
    few=8,
    unit=100,
    run=run,
)
