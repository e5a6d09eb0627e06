"""Path or URL to bytes: create once, read, map, list, link, lock. The only module that knows where a store lies."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap as _mmap
import os
import shutil
import stat
import sys
import uuid
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from sparsestore.checksum import extend_crc32c
from sparsestore.errors import CorruptStoreError

__all__ = [
    "LARGE_PAGE",
    "Advice",
    "DiskWatch",
    "LocalStorage",
    "ObjectWriter",
    "free_disk_bytes",
    "open_storage",
    "scratch_folder",
]

Bytes = NDArray[np.uint8]

LARGE_PAGE = 1 << 21
"""Bytes that x86 and ARM map at once where they lie together."""


def open_storage(path: str | os.PathLike[str]) -> LocalStorage:
    """The storage of a path or a ``file://`` URL.

    Raises
    ------
    ValueError
        Where the URL has another scheme or names another machine, or the path is empty.

    Examples
    --------
    >>> open_storage("clicks.zarr").name
    'clicks.zarr'
    """
    text = os.fsdecode(path)
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme != "file":
            raise ValueError(f"{text}: scheme {parts.scheme!r} is not supported, expected a path or a file:// URL")
        if parts.netloc not in ("", "localhost"):
            raise ValueError(
                f"{text}: names the machine {parts.netloc!r}, expected file:/// and an absolute path, or a plain path"
            )
        text = unquote(parts.path)
    if not text:
        raise ValueError("the path of the store is empty: name a folder")
    return LocalStorage(Path(text))


@dataclass
class ObjectWriter:
    """A new object, written front to back.

    Attributes
    ----------
    key : str
    length, crc32c : int
        Of what was written so far.
    """

    key: str
    descriptor: int
    length: int = 0
    crc32c: int = 0
    _pending: bytearray = field(default_factory=bytearray, repr=False)

    def write(self, payload: Any) -> None:
        """Append bytes, or a contiguous uint8 array."""
        view = memoryview(payload).cast("B")
        self.crc32c = extend_crc32c(self.crc32c, payload)
        self.length += len(view)
        # The system keeps what was written as it was written. Where that is a large page at a time, a reader maps large
        # pages: a 16th of the page faults, and far fewer misses of the processor's table of pages.
        if self._pending:
            room = LARGE_PAGE - len(self._pending)
            self._pending += view[:room]
            view = view[room:]
            if len(self._pending) < LARGE_PAGE:
                return
            self._put(memoryview(self._pending))
            self._pending = bytearray()
        whole = len(view) // LARGE_PAGE * LARGE_PAGE
        self._put(view[:whole])
        self._pending += view[whole:]

    def _put(self, view: memoryview) -> None:
        while len(view):
            view = view[os.write(self.descriptor, view) :]

    def close(self) -> None:
        """Make it durable."""
        if self.descriptor >= 0:
            self._put(memoryview(self._pending))
            descriptor, self.descriptor = self.descriptor, -1
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def discard(self) -> None:
        """Close without making anything durable."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class LocalStorage:
    """The objects of one store in a folder of the local file system. Keys are relative, with '/' between parts.

    Methods may be called from several threads at once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # what is open stays open when the process changes its folder
        self.name = str(root)

    def __repr__(self) -> str:
        return f"LocalStorage({self.name!r})"

    def path(self, key: str) -> Path:
        """Where an object lies. Keys from documents were checked when these were parsed."""
        return self.root / key if key else self.root

    def _open(self, key: str) -> int:
        """Descriptor of a plain file: never of what a symbolic link points to, a folder or a pipe."""
        try:
            descriptor = os.open(self.path(key), os.O_RDONLY | _PLAIN)
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.path(key).is_symlink():
                raise CorruptStoreError(f"{self.name}: {key} is a symbolic link, expected a plain file") from None
            raise CorruptStoreError(f"{self.name}: {key} can not be opened: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CorruptStoreError(f"{self.name}: {key} is no plain file")
        return descriptor

    def read(self, key: str) -> bytes:
        """All bytes of an object; FileNotFoundError where there is none."""
        with os.fdopen(self._open(key), "rb") as file:
            return file.read()

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes start to stop; CorruptStoreError where the object ends before."""
        descriptor = self._open(key)
        try:
            pieces, at = [], start
            while at < stop:
                piece = os.pread(descriptor, min(stop - at, 1 << 30), at)
                if not piece:
                    raise CorruptStoreError(
                        f"{self.name}: {key} ends at byte {at}, expected bytes {start} to {stop}: it was cut short"
                    )
                pieces.append(piece)
                at += len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            os.close(descriptor)

    def read_into(self, key: str, parts: Sequence[tuple[int, Bytes]], *, direct: bool = False) -> None:
        """Fill arrays with the bytes of an object, each from the place given with it on.

        With `direct` the page cache is left alone where the system can do that (``O_DIRECT``), and place, address and
        length are multiples of a disk's sector: what is read once would only push out what is used again, and a page of
        4 KiB costs more there than the disk takes to bring it.

        Raises
        ------
        CorruptStoreError
            Where the object ends before.
        """
        descriptor = self._open(key)
        try:
            direct = direct and _set_direct(descriptor, True)
            for start, out in parts:
                view = out.data
                while len(view):
                    try:
                        n = os.preadv(descriptor, [view], start)
                    except OSError:
                        if not direct:
                            raise
                        direct = _set_direct(descriptor, False)
                        continue
                    if not n:
                        raise CorruptStoreError(
                            f"{self.name}: {key} ends at byte {start}, expected {len(view)} more: it was cut short"
                        )
                    start, view = start + n, view[n:]
        finally:
            os.close(descriptor)

    def crc32c(self, key: str) -> int:
        """Checksum of a whole object, read a MiB at a time."""
        crc = 0
        with os.fdopen(self._open(key), "rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                crc = extend_crc32c(crc, piece)
        return crc

    def length(self, key: str) -> int:
        """Bytes of an object; FileNotFoundError where there is none."""
        try:
            status = self.path(key).lstat()
        except NotADirectoryError as error:  # a file has the place of the folder
            raise FileNotFoundError(*error.args) from None
        if not stat.S_ISREG(status.st_mode):
            raise CorruptStoreError(f"{self.name}: {key} is no plain file")
        return status.st_size

    def modified(self, key: str) -> float:
        """Time of the last change of an object or folder, seconds since 1970."""
        return self.path(key).lstat().st_mtime

    def list(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted; empty where there is none."""
        try:
            return sorted(entry.name for entry in self.path(prefix).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, key: str) -> bool:
        """Whether there is an object or folder of that name."""
        return os.path.lexists(self.path(key))

    def create(self, key: str) -> ObjectWriter:
        """A new object; FileExistsError where there is one."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        return ObjectWriter(key, os.open(path, flags, 0o666))

    def put(self, key: str, payload: bytes) -> ObjectWriter:
        """Create, write and close in one call; the closed writer tells length and crc32c."""
        writer = self.create(key)
        try:
            writer.write(payload)
            writer.close()
        finally:
            writer.discard()
        return writer

    def publish(self, key: str, payload: bytes) -> None:
        """Create a whole object at once and for good, or raise FileExistsError: of two writers one wins."""
        folder = key.rpartition("/")[0]
        temporary = f"{folder}/.tmp-{uuid.uuid4().hex}" if folder else f".tmp-{uuid.uuid4().hex}"
        try:
            self.put(temporary, payload)
            # link, unlike rename, never replaces: of two writers of one name the second gets FileExistsError
            os.link(self.path(temporary), self.path(key), follow_symlinks=False)
        finally:
            with contextlib.suppress(FileNotFoundError):
                self.path(temporary).unlink()
        self._sync_folder(self.path(folder))

    def sync(self, prefix: str) -> None:
        """Make all names below a prefix durable, and the prefix itself."""
        for folder, _, _ in os.walk(self.path(prefix), topdown=False):
            self._sync_folder(Path(folder))
        parent = self.path(prefix).parent
        while parent != self.root.parent:
            self._sync_folder(parent)
            parent = parent.parent
        self._sync_folder(self.root.parent)

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        if sys.platform == "win32":
            return  # a folder can not be opened there; NTFS journals names by itself
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, key: str) -> int:
        """Remove an object or all below a prefix; bytes removed. Nothing happens where there is none."""
        path = self.path(key)
        if path.is_dir() and not path.is_symlink():
            removed = self.size(key)
            shutil.rmtree(path)
            return removed
        try:
            removed = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return removed

    def size(self, prefix: str) -> int:
        """Bytes of all objects below a prefix."""
        total = 0
        for folder, _, files in os.walk(self.path(prefix)):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += Path(folder, name).lstat().st_size
        return total

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Hold an advisory lock on an object, made if absent, until the block ends; gives whether it was free.

        The kernel lets go of it when the process ends, however it ends: so a held lock means a living writer.
        """
        if sys.platform == "win32":
            yield True
            return
        import fcntl

        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = os.fstat(descriptor).st_nlink > 0  # whoever held it may have removed it meanwhile
            except BlockingIOError:
                free = False
            yield free
        finally:
            os.close(descriptor)

    def advise(self, mapped: Bytes, start: int, stop: int, advice: Advice) -> None:
        """Tell the system what will be done with bytes `start` to `stop` of a mapped array; returns at once."""
        if sys.platform == "win32" or stop <= start or (advice is Advice.DONE and sys.platform != "linux"):
            return
        base = mapped.__array_interface__["data"][0]
        step = _read_at_once(self.root.stat().st_dev) if advice is Advice.SOON else stop
        for at in range(start // step * step, stop, step):
            first, last = base + max(at, start), base + min(at + step, stop)
            first -= first % _mmap.PAGESIZE
            _libc().madvise(first, last - first, advice)  # nobody minds where it fails

    def map(self, parts: Sequence[tuple[str, int]]) -> Bytes:
        """One contiguous read-only uint8 array over the first bytes of several objects, laid end to end."""
        total = sum(length for _, length in parts)
        if not total:
            return np.empty(0, np.uint8)
        page = _mmap.ALLOCATIONGRANULARITY
        if any(length % page for _, length in parts[:-1]):
            raise ValueError(f"only the last of several mapped parts may end inside a page of {page} bytes")
        return _map_parts([(self._open(key), key, length) for key, length in parts], total, self.name)


@functools.cache
def _read_at_once(device: int) -> int:
    """Bytes that Linux reads ahead from a device for one call; it forgets the rest."""
    name = f"{os.major(device)}:{os.minor(device)}"
    for place in (f"block/{name}/bdi", f"block/{name}/../bdi"):  # the second: of the disk that a partition is part of
        with contextlib.suppress(OSError, ValueError):
            kib = int(Path(f"/sys/dev/{place}/read_ahead_kb").read_text())
            return min(max(kib << 10, _READ_AHEAD), _MOST_READ_AHEAD)
    return _READ_AHEAD


_READ_AHEAD = 1 << 17  # the default everywhere
_MOST_READ_AHEAD = 1 << 20  # more at once makes nothing faster


def _map_parts(parts: list[tuple[int, str, int]], total: int, name: str) -> Bytes:
    """Reserve addresses for all parts, then map each file over its share: one array, however many files."""
    try:
        for descriptor, key, length in parts:
            found = os.fstat(descriptor).st_size
            if found < length:
                raise CorruptStoreError(f"{name}: {key} has {found} bytes, expected at least {length}")
        if sys.platform == "win32" and len(parts) == 1:
            return np.frombuffer(_mmap.mmap(parts[0][0], total, access=_mmap.ACCESS_READ), np.uint8)
        libc = _libc()
        room = total + LARGE_PAGE
        reserved = libc.mmap(None, room, 0, _mmap.MAP_PRIVATE | _mmap.MAP_ANONYMOUS, -1, 0)
        if reserved == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"{name}: {total} bytes of address space can not be reserved")
        at = reserved + -reserved % LARGE_PAGE  # files are mapped by large pages only where these begin
        holder = (ctypes.c_uint8 * total).from_address(at)
        weakref.finalize(holder, libc.munmap, reserved, room).atexit = False
        for descriptor, key, length in parts:
            # MAP_FIXED replaces just the pages reserved above
            if libc.mmap(at, length, _mmap.PROT_READ, _mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0) != at:
                raise OSError(ctypes.get_errno(), f"{name}: {key} can not be mapped")
            at += length
        array: Bytes = np.ctypeslib.as_array(holder)
        array.flags.writeable = False
        return array
    finally:
        for descriptor, _, _ in parts:
            os.close(descriptor)


class DiskWatch:
    """Whether this process reads from a disk: reading ahead of what is in memory already costs a look at every page."""

    def __init__(self) -> None:
        self._seen = -1

    def stirred(self) -> bool:
        """Whether anything was read from a disk since this was last asked; the first time, and where unknown, True."""
        if sys.platform == "win32":
            return True
        import resource

        seen, self._seen = self._seen, resource.getrusage(resource.RUSAGE_SELF).ru_inblock
        return seen != self._seen


class Advice(IntEnum):
    """What will be done with mapped bytes; the numbers are madvise(2)'s."""

    RANDOM = 1
    """Read here and there: what lies around is not to be read with it."""
    SOON = 3
    """To be read from now on, ahead of its use."""
    DONE = 20
    """Not needed soon: to be dropped before others, where memory is short. Linux 5.4."""


def _set_direct(descriptor: int, direct: bool) -> bool:
    """Switch ``O_DIRECT`` on or off; whether it is on now."""
    if not hasattr(os, "O_DIRECT"):
        return False
    import fcntl

    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
    except OSError:  # a file system without
        return False
    return direct


# no link is followed, and opening a pipe does not wait for somebody to write into it
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_MAP_FIXED = 0x10  # the same on Linux and macOS; Python's mmap module does not export it


@functools.cache
def _libc() -> Any:
    """The C library's mmap, munmap and madvise, with the types that 64-bit addresses need."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


def free_disk_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that may still be written to the file system of a path, or of its nearest folder that exists."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@contextlib.contextmanager
def scratch_folder(near: str | os.PathLike[str]) -> Iterator[Path]:
    """A name for a folder beside `near`, on the same file system; what was made there is gone when the block ends.

    Nothing is made here: an interrupt that comes between making a folder and entering the block would leave it.
    """
    place = Path(near).absolute()
    folder = place.parent / f".{place.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:  # interrupted while it removes
            shutil.rmtree(folder, ignore_errors=True)
            raise
