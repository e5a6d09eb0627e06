"""A file system that keeps of what was not synced what it likes: all that POSIX allows, which is more than most lose.

Files and folders are known as they are, and as they were when they were last synced. A file's content becomes durable
by fsync(2) of the file alone, a name by fsync(2) of its folder alone, each change of a name for itself.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trust.tracing import Call, bytes_at, descriptor_path, string_at

SECTOR = 512


@dataclass(eq=False)
class File:
    """A file.

    Attributes
    ----------
    now, durable : bytes
        What it holds, and what it held when it was synced.
    pending : list of (int, bytes)
        What was written since then, and where; a length alone has no bytes.
    """

    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def write(self, at: int, payload: bytes) -> None:
        _put(self.now, at, payload)
        self.pending.append((at, payload))

    def cut(self, length: int) -> None:
        _cut(self.now, length)
        self.pending.append((length, None))

    def sync(self) -> None:
        self.durable = bytes(self.now)
        self.pending.clear()


@dataclass(eq=False)
class Folder:
    """A folder: names as they are, and as they were when it was synced."""

    now: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)

    def sync(self) -> None:
        self.durable = dict(self.now)


def _put(content: bytearray, at: int, payload: bytes) -> None:
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(payload)] = payload


def _cut(content: bytearray, length: int) -> None:
    del content[length:]
    content.extend(bytes(length - len(content)))


def taken(folder: Path) -> Folder:
    """What is in a folder, all of it durable."""
    found = Folder()
    for path in sorted(folder.iterdir()):
        found.now[path.name] = (
            taken(path) if path.is_dir() else File(bytearray(path.read_bytes()), durable=path.read_bytes())
        )
    found.sync()
    return found


# ---------------------------------------------------------------------------------------------- following a process

Step = tuple[Any, ...]
"""What a call did: its name, then what of the file system it was about."""
_AT_FDCWD = -100
_OTHERS = ("truncate", "fallocate", "symlink", "symlinkat", "copy_file_range", "sendfile", "writev", "pwritev")


class Recorder:
    """Writes down what a traced process does to the files of a folder; give `leaving` to `trace`."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._open: dict[int, list[Any]] = {}  # path, or None outside of the folder, and place of an open descriptor
        self.steps: list[Step] = []

    def leaving(self, call: Call, result: int) -> None:
        """Take note of a call that succeeded."""
        if result < 0:
            return
        work = getattr(self, f"_{call.name}", None)
        if work is not None:
            work(call, result)
        elif call.name in _OTHERS:
            raise NotImplementedError(f"the model of a disk does not know {call.name}")

    def _path(self, call: Call, at: int, address: int) -> str | None:
        """Path inside the folder, of a call that names it by a descriptor and a path, or a path alone."""
        text = os.fsdecode(string_at(call.thread, address))
        base = at - 2**32 if at >= 2**31 else at
        if not text.startswith("/"):
            text = f"{Path.cwd() if base == _AT_FDCWD else descriptor_path(call.thread, base)}/{text}"
        if text == self._folder:
            return ""
        return text[len(self._folder) + 1 :] if text.startswith(f"{self._folder}/") else None

    def _step(self, *step: Any) -> None:
        if None not in step[1:3]:
            self.steps.append(step)

    def _openat(self, call: Call, result: int) -> None:
        directory, address, flags = call.arguments[:3]
        path = self._path(call, directory & 0xFFFFFFFF, address)
        self._open[result] = [path, 0]
        if flags & os.O_CREAT:
            self._step("create", path)
        if flags & os.O_TRUNC and path is not None:
            self._step("cut", path, 0)

    def _close(self, call: Call, _: int) -> None:
        self._open.pop(call.arguments[0], None)

    def _dup(self, call: Call, result: int) -> None:
        if call.arguments[0] in self._open:
            self._open[result] = self._open[call.arguments[0]]

    def _fcntl(self, call: Call, result: int) -> None:
        if call.arguments[1] in (0, 1030):
            self._dup(call, result)

    def _lseek(self, call: Call, result: int) -> None:
        if call.arguments[0] in self._open:
            self._open[call.arguments[0]][1] = result

    def _write(self, call: Call, result: int) -> None:
        found = self._open.get(call.arguments[0])
        if found is not None and found[0] is not None:
            self._step("write", found[0], found[1], bytes_at(call.thread, call.arguments[1], result))
            found[1] += result

    def _pwrite64(self, call: Call, result: int) -> None:
        found = self._open.get(call.arguments[0], [None])
        if found[0] is not None:
            self._step("write", found[0], call.arguments[3], bytes_at(call.thread, call.arguments[1], result))

    def _ftruncate(self, call: Call, _: int) -> None:
        self._step("cut", self._open.get(call.arguments[0], [None])[0], call.arguments[1])

    def _fsync(self, call: Call, _: int) -> None:
        self._step("sync", self._open.get(call.arguments[0], [None])[0])

    _fdatasync = _fsync

    def _mkdirat(self, call: Call, _: int) -> None:
        self._step("mkdir", self._path(call, call.arguments[0] & 0xFFFFFFFF, call.arguments[1]))

    def _mkdir(self, call: Call, _: int) -> None:
        self._step("mkdir", self._path(call, 2**32 + _AT_FDCWD, call.arguments[0]))

    def _unlinkat(self, call: Call, _: int) -> None:
        self._step("remove", self._path(call, call.arguments[0] & 0xFFFFFFFF, call.arguments[1]))

    def _unlink(self, call: Call, _: int) -> None:
        self._step("remove", self._path(call, 2**32 + _AT_FDCWD, call.arguments[0]))

    _rmdir = _unlink

    def _linkat(self, call: Call, _: int) -> None:
        a, b, c, d = call.arguments[:4]
        self._step("link", self._path(call, a & 0xFFFFFFFF, b), self._path(call, c & 0xFFFFFFFF, d))

    def _renameat2(self, call: Call, _: int) -> None:
        a, b, c, d = call.arguments[:4]
        self._step("rename", self._path(call, a & 0xFFFFFFFF, b), self._path(call, c & 0xFFFFFFFF, d))

    _renameat = _renameat2

    def _rename(self, call: Call, _: int) -> None:
        here = 2**32 + _AT_FDCWD
        self._step("rename", self._path(call, here, call.arguments[0]), self._path(call, here, call.arguments[1]))


class Disk:
    """The file system, as steps change it."""

    def __init__(self, root: Folder) -> None:
        self.root = root

    def take(self, step: Step) -> None:
        """What a call did."""
        name, path, *rest = step
        folder, last = self._find(path)
        if name == "create":
            folder.now.setdefault(last, File())
        elif name == "mkdir":
            folder.now[last] = Folder()
        elif name == "remove":
            del folder.now[last]
        elif name in ("link", "rename"):
            target, new = self._find(rest[0])
            target.now[new] = folder.now[last]
            if name == "rename":
                del folder.now[last]
        else:
            found = folder.now[last] if last else folder
            if name == "sync":
                found.sync()
            elif isinstance(found, File):
                found.write(*rest) if name == "write" else found.cut(*rest)

    def _find(self, path: str) -> tuple[Folder, str]:
        *above, last = path.split("/")
        folder = self.root
        for part in above:
            inner = folder.now[part]
            if not isinstance(inner, Folder):
                raise NotADirectoryError(path)
            folder = inner
        return folder, last

    def crashed(self, rng: random.Random, losses: Losses) -> Iterator[tuple[str, bytes | None]]:
        """Paths and contents, None for folders, of what is found after the power came back."""
        yield from _left(self.root, "", rng, losses)


@dataclass(frozen=True)
class Losses:
    """What was not synced and is lost: changes of names, and what was written. None: of each by chance."""

    name: str
    names: bool | None
    contents: bool | None
    lengths: bool | None = None
    """Whether of contents that are lost the length is kept, and zeros stand there."""


ALL_LOSSES: tuple[Losses, ...] = (
    Losses("all lost", names=True, contents=True, lengths=False),
    Losses("contents lost, files empty", names=False, contents=True, lengths=False),
    Losses("contents lost, zeros there", names=False, contents=True, lengths=True),
    Losses("names lost", names=True, contents=False),
    Losses("nothing lost", names=False, contents=False),
    *(Losses(f"by chance {number}", None, None) for number in range(5)),
)


def _either(rng: random.Random, what: bool | None) -> bool:
    return rng.random() < 0.5 if what is None else what


def _left(folder: Folder, prefix: str, rng: random.Random, losses: Losses) -> Iterator[tuple[str, bytes | None]]:
    for name in sorted({*folder.now, *folder.durable}):
        found, before = folder.now.get(name), folder.durable.get(name)
        if found is not before and _either(rng, losses.names):
            found = before
        if isinstance(found, Folder):
            yield f"{prefix}{name}", None
            yield from _left(found, f"{prefix}{name}/", rng, losses)
        elif isinstance(found, File):
            yield f"{prefix}{name}", _content(found, rng, losses)


def _content(file: File, rng: random.Random, losses: Losses) -> bytes:
    if not file.pending or losses.contents is False:
        return bytes(file.now)
    content = bytearray(file.durable)
    for at, payload in file.pending:
        if losses.contents or rng.random() < 0.4:
            if losses.lengths or (losses.lengths is None and rng.random() < 0.5):
                _cut(content, at) if payload is None else _put(content, at, bytes(len(payload)))
        elif payload is None:
            _cut(content, at)
        else:  # torn at a sector, perhaps
            end = rng.choice([len(payload), rng.randrange(len(payload) + 1) // SECTOR * SECTOR]) if payload else 0
            _put(content, at, payload[:end])
    return bytes(content)
