"""Path or URL to bytes: create once, read, map, list, link, lock. The only module that knows where a store lies."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap as _mmap
import os
import random
import shutil
import stat
import sys
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from sparsestore.checksum import PIECE, extend_crc32c, follow_crc32c
from sparsestore.errors import CorruptStoreError, ResourceError, SparsestoreError

__all__ = [
    "LARGE_PAGE",
    "REMOVED",
    "Advice",
    "DiskWatch",
    "Held",
    "LocalStorage",
    "ObjectWriter",
    "free_disk_bytes",
    "local_path",
    "naming",
    "open_storage",
    "scratch_folder",
]

Bytes = NDArray[np.uint8]
P = ParamSpec("P")
R = TypeVar("R")

REMOVED = (
    "another process removed what this one wrote, as a gc with a short older_than may where the file system has no "
    "locks: nothing was published, run it again"
)
"""What is said of objects that are missing."""
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
    text = local_path(path)
    if not text:
        raise ValueError("the path of the store is empty: name a folder")
    return LocalStorage(Path(text))


def local_path(path: str | os.PathLike[str]) -> str:
    """The path that a path or a ``file://`` URL names.

    Raises
    ------
    ValueError
        Where the URL has another scheme, names another machine, or goes on behind its path.

    Examples
    --------
    >>> local_path("file:///data/clicks%20of%20May.svm")
    '/data/clicks of May.svm'
    """
    text = os.fsdecode(path)
    if "://" not in text:
        return text
    parts = urlsplit(text)
    if parts.scheme != "file":
        public = parts._replace(netloc=parts.hostname or "", query="", fragment="").geturl()  # it may have a password
        raise ValueError(
            f"{public}: scheme {parts.scheme!r} is not supported, expected a path or a file:// URL: what lies "
            "elsewhere must be copied to this machine or mounted first"
        )
    if parts.netloc not in ("", "localhost"):
        raise ValueError(
            f"{text}: names the machine {parts.netloc!r}, expected file:/// and an absolute path, or a plain path"
        )
    if end := next((mark for mark in "?#" if mark in text), ""):  # or it would name another file
        raise ValueError(
            f"{text}: the path of a URL ends at {end!r}: write {quote(end)} where it belongs to the name, or give a "
            "plain path"
        )
    return unquote(parts.path)


def _named(error: OSError, path: str | os.PathLike[str]) -> OSError | ResourceError:
    """The same error with the whole path of its file, where it has a name inside a folder, a descriptor or nothing."""
    if isinstance(error, SparsestoreError):
        return error
    if error.errno in (errno.EMFILE, errno.ENOMEM):  # where more is said than by the system, it is this already
        return _exhausted(error, str(path)) if error.strerror == os.strerror(error.errno) else error
    if isinstance(error.filename, str) and Path(error.filename).is_absolute():
        return error
    if error.errno is None:
        name = f"{os.fspath(path)}: "
        return error if str(error).startswith(name) else type(error)(f"{name}{error}")
    return OSError(error.errno, os.strerror(error.errno), str(path))


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the block name the file."""
    try:
        yield
    except OSError as error:
        named = _named(error, path)
        if named is error:
            raise
        raise named from error


def _names_its_key(
    method: Callable[Concatenate[LocalStorage, str, P], R],
) -> Callable[Concatenate[LocalStorage, str, P], R]:
    """For methods whose first argument is a key: their errors name the file."""

    @functools.wraps(method)
    def wrapped(self: LocalStorage, key: str, /, *arguments: P.args, **named_arguments: P.kwargs) -> R:
        try:
            return method(self, key, *arguments, **named_arguments)
        except OSError as error:
            named = _named(error, f"{self.root}{os.sep}{key}" if key else self.root)
            if named is error:
                raise
            raise named from error

    return wrapped


def _close(descriptor: int) -> None:
    """Close what nothing was written to, or nobody will read: whatever close(2) says, the descriptor is gone."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _pieces(descriptor: int, length: int) -> Iterator[bytes]:
    """All bytes of an open file, a MiB at a time; about `length` are expected."""
    at = 0
    while piece := os.pread(descriptor, min(max(length + 1 - at, 1 << 12), 1 << 20), at):
        at += len(piece)
        yield piece


@dataclass(eq=False)
class ObjectWriter:
    """A new object, written front to back.

    Attributes
    ----------
    key : str
    path : Path
        For errors.
    descriptor : int
        Of the open file; -1 once it is closed.
    later : callable
        Takes it when it is whole, and has `sync` or `discard` called some time.
    length, crc32c : int
        Of what was written so far.
    """

    key: str
    path: Path
    descriptor: int
    later: Callable[[ObjectWriter], None]
    length: int = 0
    crc32c: int = 0
    _buffer: bytearray = field(default_factory=bytearray, repr=False)
    _held: int = 0  # bytes of the buffer that are not in the file yet
    _left: int = 0  # bytes of the file that the disk was not told to begin with
    _failure: BaseException | None = None

    def write(self, payload: Any, pieces: NDArray[np.uint32] | None = None) -> None:
        """Append bytes, or a contiguous uint8 array, of which the crc32c of each piece of 16 KiB may be known."""
        view = memoryview(payload).cast("B")
        if pieces is None:
            self.crc32c = extend_crc32c(self.crc32c, payload)
        else:
            whole = len(view) // PIECE
            self.crc32c = follow_crc32c(self.crc32c, pieces[:whole])
            self.crc32c = extend_crc32c(self.crc32c, payload[whole * PIECE :])
        self.length += len(view)
        # The system keeps what was written as it was written. Where that is a large page at a time, a reader maps large
        # pages: a 16th of the page faults, and far fewer misses of the processor's table of pages.
        if self._held:
            room = LARGE_PAGE - self._held
            self._hold(view[:room])
            view = view[room:]
            if self._held < LARGE_PAGE:
                return
            self._flush()
        whole = len(view) // LARGE_PAGE * LARGE_PAGE
        self._put(view[:whole])
        self._hold(view[whole:])

    def _hold(self, view: memoryview) -> None:
        stop = self._held + len(view)
        if len(self._buffer) < stop:  # it grows, and stays: memory that is fresh costs more than the copy
            held = self._buffer
            self._buffer = bytearray(min(LARGE_PAGE, max(stop, 2 * len(held))))
            self._buffer[: len(held)] = held
        with memoryview(self._buffer) as buffer:  # a slice of the bytearray itself would copy what it is given first
            buffer[self._held : stop] = view
        self._held = stop

    def _flush(self) -> None:
        with memoryview(self._buffer) as buffer:
            self._put(buffer[: self._held])
        self._held = 0

    def _put(self, view: memoryview) -> None:
        self._left += len(view)
        with naming(self.path):
            while len(view):
                view = view[os.write(self.descriptor, view) :]
        if self._left >= _WRITTEN_AT_ONCE:
            _start_writing(self.descriptor)
            self._left = 0

    def close(self) -> None:
        """Nothing more is written: `LocalStorage.sync` makes it durable."""
        if self.descriptor >= 0:
            self._flush()
            self._buffer = bytearray()
            if self._left >= LARGE_PAGE:
                _start_writing(self.descriptor)
            self.later(self)

    def sync(self) -> None:
        """Make it durable, and close the file. What failed once fails for ever: the system may have dropped bytes."""
        if self._failure is not None:
            raise self._failure
        if self.descriptor < 0:
            return
        try:
            self._flush()
            descriptor, self.descriptor = self.descriptor, -1
            with naming(self.path):
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except BaseException as error:
            self._failure = error.with_traceback(None)
            raise

    def discard(self) -> None:
        """Close the file without making anything durable."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            _close(descriptor)

    def __del__(self) -> None:
        """Of a writer that nobody published or aborted."""
        if hasattr(self, "descriptor"):  # else an interrupt left it half made
            self.discard()


class Held:
    """An object that this process holds: nobody else gets it before `release`, or before this, or the process, is gone.

    Attributes
    ----------
    key : str
    locked : bool
        Whether that is so: False where there are no locks, so that others may hold it too.
    """

    _descriptor = -1  # also of one that an interrupt left half made
    locked = False

    def __init__(self, key: str, path: Path) -> None:
        self.key = key
        self._path = path

    @property
    def descriptor(self) -> int:
        """Of the open file."""
        return self._descriptor

    def read(self) -> bytes:
        """All bytes of the object."""
        with naming(self._path):
            return b"".join(_pieces(self._descriptor, os.fstat(self._descriptor).st_size))

    def write(self, payload: bytes, at: int, *, durable: bool = False) -> None:
        """Put bytes at a place, which become the object's last ones."""
        view = memoryview(payload)
        with naming(self._path):
            while len(view):
                n = os.pwrite(self._descriptor, view, at)
                view, at = view[n:], at + n
            os.ftruncate(self._descriptor, at)
            if durable:
                os.fsync(self._descriptor)

    def release(self) -> None:
        """Let others have it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                _unlock(descriptor)  # or a process forked meanwhile would go on holding it
            finally:
                _close(descriptor)

    def __del__(self) -> None:
        """Of a writer that nobody published or aborted: to others it is as one that was killed.

        Nothing is unlocked: in a process that was forked meanwhile this is a copy, and the lock is its parent's.
        """
        if self._descriptor >= 0:
            _close(self._descriptor)


class LocalStorage:
    """The objects of one store in a folder of the local file system. Keys are relative, with '/' between parts.

    No key leads out of the folder: parts are plain names, and a symbolic link in the place of a folder or an object is
    an error. The folder itself may be reached through links. Methods may be called from several threads at once, but
    only one may write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # what is open stays open when the process changes its folder
        self.name = str(root)
        self._folders: set[str] = set()  # keys of folders that were seen to be no links, nor behind one
        self._changed: set[str] = set()  # folders whose names are not durable yet
        self._made: set[Path] = set()  # the same of folders above the store
        self._whole: deque[ObjectWriter] = deque()  # objects that are written, and not durable yet

    def __repr__(self) -> str:
        return f"LocalStorage({self.name!r})"

    def path(self, key: str) -> Path:
        """Where an object lies.

        Raises
        ------
        ValueError
            Where the key would leave the store.
        """
        parts = self._parts(key)
        return self.root.joinpath(*parts) if parts else self.root

    def _parts(self, key: str) -> list[str]:
        parts = key.split("/") if key else []
        if not _NOT_PLAIN.isdisjoint(parts) or "\0" in key or (os.sep != "/" and os.sep in key):
            raise ValueError(f"{self.name}: key {key!r} leaves the store, expected plain names with '/' between them")
        return parts

    @contextlib.contextmanager
    def _at(self, key: str, *, make: bool = False) -> Iterator[tuple[int | None, str]]:
        """The folder of an object as a descriptor, reached without following a link, and the object's name in it.

        With `make` folders that are not there are made. Windows has no such descriptors: the name is a whole path.
        """
        parts = self._parts(key)
        if make:
            self._make_root()
        if not key:
            yield None, str(self.root)
            return
        if os.open not in os.supports_dir_fd:
            self._walk_by_name(parts[:-1], make)
            yield None, str(self.path(key))
            return
        descriptor = os.open(self.root, _FOLDER)
        try:
            for depth, part in enumerate(parts[:-1], 1):
                # named anew before it is closed: closed twice, at an interrupt, it could be another thread's by then
                outer, descriptor = descriptor, self._enter(descriptor, part, "/".join(parts[:depth]), make)
                _close(outer)
            yield descriptor, parts[-1]
        finally:
            _close(descriptor)

    def _enter(self, descriptor: int, part: str, key: str, make: bool) -> int:
        """Descriptor of a folder inside another."""
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=descriptor)
                self._note(key)
        try:
            return os.open(part, _FOLDER | getattr(os, "O_NOFOLLOW", 0), dir_fd=descriptor)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                raise CorruptStoreError(f"{self.name}: {key} is a link or a file, expected a folder") from None
            raise

    def _walk_by_name(self, parts: list[str], make: bool) -> None:
        path = self.root
        for depth, part in enumerate(parts, 1):
            path = path / part
            if make and not path.exists():
                path.mkdir(exist_ok=True)
                self._note("/".join(parts[:depth]))
            if path.is_symlink() or not path.is_dir():
                if not os.path.lexists(path):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
                raise CorruptStoreError(
                    f"{self.name}: {'/'.join(parts[:depth])} is a link or a file, expected a folder"
                )

    def _make_root(self) -> None:
        missing = []
        for folder in (self.root, *self.root.parents):
            if folder.is_dir():
                break
            missing.append(folder)
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self._made.add(folder)

    def _note(self, key: str) -> None:
        """Names in the folder of a key have changed. Those above it may be another writer's and not be durable yet."""
        while key:
            key = key.rpartition("/")[0]
            self._changed.add(key)

    @_names_its_key
    def _open(self, key: str) -> int:
        """Descriptor of a plain file: never of what a symbolic link points to, a folder or a pipe."""
        try:
            descriptor = os.open(self._seen(key), os.O_RDONLY | _PLAIN)
        except (FileNotFoundError, CorruptStoreError):
            raise
        except OSError as error:
            if error.errno == errno.ELOOP or self.path(key).is_symlink():
                raise CorruptStoreError(f"{self.name}: {key} is a symbolic link, expected a plain file") from None
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR):  # says nothing of the store
                raise
            raise CorruptStoreError(f"{self.name}: {key} can not be opened: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            _close(descriptor)
            raise CorruptStoreError(f"{self.name}: {key} is no plain file")
        return descriptor

    @_names_its_key
    def read(self, key: str) -> bytes:
        """All bytes of an object; FileNotFoundError where there is none."""
        descriptor = self._open(key)
        try:
            return b"".join(_pieces(descriptor, os.fstat(descriptor).st_size))
        finally:
            _close(descriptor)

    @_names_its_key
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
            _close(descriptor)

    @_names_its_key
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
            _close(descriptor)

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[int]:
        """Descriptor of an object, for compiled loops that read by themselves."""
        descriptor = self._open(key)
        try:
            yield descriptor
        finally:
            _close(descriptor)

    @_names_its_key
    def crc32c(self, key: str) -> int:
        """Checksum of a whole object, read a MiB at a time."""
        crc = 0
        descriptor = self._open(key)
        try:
            for piece in _pieces(descriptor, os.fstat(descriptor).st_size):
                crc = extend_crc32c(crc, piece)
        finally:
            _close(descriptor)
        return crc

    def _seen(self, key: str) -> str:
        """Path of an object below folders that were once seen to be no links: enough to read what has checksums.

        To walk there each time takes four times as long as to open the object.
        """
        self._parts(key)
        self._see(key.rpartition("/")[0])
        return f"{self.root}{os.sep}{key.replace('/', os.sep)}" if key else str(self.root)

    def _see(self, folder: str) -> None:
        """See that a folder, and each above it in the store, is one."""
        if not folder or folder in self._folders:
            return
        self._see(folder.rpartition("/")[0])
        if not stat.S_ISDIR(os.lstat(f"{self.root}{os.sep}{folder.replace('/', os.sep)}").st_mode):
            raise CorruptStoreError(f"{self.name}: {folder} is a link or a file, expected a folder")
        self._folders.add(folder)

    def _status(self, key: str) -> os.stat_result:
        return os.lstat(self._seen(key))

    @_names_its_key
    def length(self, key: str) -> int:
        """Bytes of an object; FileNotFoundError where there is none."""
        status = self._status(key)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptStoreError(f"{self.name}: {key} is no plain file")
        return status.st_size

    def lengths(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those objects that are there and plain files."""
        found = {}
        for key in keys:
            try:
                status = self._status(key)
            except (FileNotFoundError, NotADirectoryError, CorruptStoreError):
                continue
            except OSError as error:
                raise _named(error, self.path(key)) from error
            if stat.S_ISREG(status.st_mode):
                found[key] = status.st_size
        return found

    @_names_its_key
    def modified(self, key: str) -> float:
        """Time of the last change of an object or folder, seconds since 1970."""
        return self._status(key).st_mtime

    @_names_its_key
    def list(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted; empty where there is none, or where it is an object."""
        try:
            with (
                self._at(f"{prefix}/x" if prefix else "") as (folder, _),
                os.scandir(self.path(prefix) if folder is None else folder) as entries,
            ):
                return sorted(entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except CorruptStoreError:
            if stat.S_ISREG(self._status(prefix).st_mode):
                return []
            raise

    @_names_its_key
    def exists(self, key: str) -> bool:
        """Whether there is an object or folder of that name."""
        try:
            self._status(key)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    @_names_its_key
    def create(self, key: str) -> ObjectWriter:
        """A new object; FileExistsError where there is one."""
        try:
            descriptor = self._create(key)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._whole:
                raise
            self._sync_objects()
            descriptor = self._create(key)
        self._note(key)
        return ObjectWriter(key, self.path(key), descriptor, self._later)

    def _create(self, key: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        with self._at(key, make=True) as (folder, name):
            return os.open(name, flags, 0o666, dir_fd=folder)

    @_names_its_key
    def put(self, key: str, payload: bytes, *, durable: bool = False) -> ObjectWriter:
        """Create, write and close in one call; the closed writer tells length and crc32c."""
        writer = self.create(key)
        try:
            writer.write(payload)
            writer.sync() if durable else writer.close()
        except BaseException:
            writer.discard()
            raise
        return writer

    def _later(self, writer: ObjectWriter) -> None:
        """Take an object that is whole. It stays open until `sync`, or until there are many.

        To wait for the disk at each takes a journaling file system a commit an object; at the end it is one for nearly
        all, and large objects are on the disk by then.
        """
        self._whole.append(writer)
        while len(self._whole) > _most_whole() or sum(each.length for each in self._whole) > _MOST_WHOLE_BYTES:
            self._sync_oldest()

    def _sync_objects(self) -> None:
        while self._whole:
            self._sync_oldest()

    def _sync_oldest(self) -> None:
        self._whole[0].sync()  # one that fails stays: nothing that needs it can be published by a second try
        self._whole.popleft()

    def discard(self) -> None:
        """Close the files of objects that are not durable: they are to be removed."""
        while self._whole:
            self._whole.popleft().discard()

    @_names_its_key
    def make_folder(self, prefix: str) -> None:
        """Make a folder, unless it is there."""
        with self._at(f"{prefix}/x", make=True):
            pass
        self._note(prefix)

    @_names_its_key
    def publish(self, key: str, payload: bytes, temporary: str) -> None:
        """Create a whole object at once, or raise FileExistsError: of two writers one wins. `sync` makes it durable.

        It is written under the key `temporary` first. Where this raises anything else the object may be there or not.
        """
        if "/" in key:
            self.make_folder(key.rpartition("/")[0])
        try:
            self.put(temporary, payload, durable=True)
            self._link(temporary, key)
            self._note(key)
        finally:
            with contextlib.suppress(OSError):  # garbage at worst
                self.remove(temporary)

    def _link(self, temporary: str, key: str) -> None:
        """Give an object its name, unless something has that name already."""
        with self._at(temporary) as (source_folder, source), self._at(key) as (target_folder, target):
            try:
                # link, unlike rename, never replaces: of two writers of one name the second gets FileExistsError
                os.link(source, target, src_dir_fd=source_folder, dst_dir_fd=target_folder, follow_symlinks=False)
            except OSError as error:
                # where the answer was lost on its way over a network, the second try finds what the first one made
                if os.stat(source, dir_fd=source_folder, follow_symlinks=False).st_nlink > 1:
                    return
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                _rename_new(self.path(temporary), self.path(key), error)

    def sync(self, folder: str | None = None) -> None:
        """Make all that was written through this object durable, and its names, and those of the folders they are in.

        With `folder` only the names in that one, which was made durable before.

        Raises
        ------
        SparsestoreError
            Where what was written is there no more.
        """
        self._sync_objects()
        changed = self._changed if folder is None else {folder}
        for key in sorted(changed, key=lambda key: (-key.count("/"), not key)):  # from the deepest up
            try:
                with naming(self.path(key)), self._at(f"{key}/x" if key else "") as (descriptor, _):
                    _sync_folder(self.path(key) if descriptor is None else descriptor)
            except FileNotFoundError:
                if folder is None:
                    raise SparsestoreError(f"{self.name}: {key} is missing: {REMOVED}") from None
        if folder is None:
            for above in {self.root.parent, *(made.parent for made in self._made)} if changed else ():
                with naming(above):
                    _sync_folder(above)
            self._changed.clear()
            self._made.clear()

    @_names_its_key
    def remove(self, key: str) -> int:
        """Remove an object or all below a prefix; bytes removed. Nothing happens where there is none."""
        try:
            with self._at(key) as (folder, name):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    os.unlink(name, dir_fd=folder)
                    return status.st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0
        removed = self.size(key)
        path = self.path(key)
        while True:
            try:
                _remove_tree(path)
                return removed
            except FileNotFoundError:  # somebody else removes it too
                if not path.exists():
                    return removed

    def size(self, prefix: str) -> int:
        """Bytes of all objects below a prefix."""
        total = 0
        for folder, _, files in os.walk(self.path(prefix)):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += Path(folder, name).lstat().st_size
        return total

    @_names_its_key
    def hold(self, key: str, *, make: bool = False) -> Held | None:
        """Hold an object, made if absent and `make`, until it is released or the process ends; None if it is held.

        The kernel lets go of it when the process ends, however it ends: so a held object means a living process. Where
        the file system has no such locks, or Windows, it is held by nobody and anybody, as `Held.locked` tells.

        Raises
        ------
        FileNotFoundError
            Where there is none, or it was removed just now.
        """
        flags = os.O_RDWR | _PLAIN | (os.O_CREAT if make else 0)
        held = Held(key, self.path(key))  # there is somebody to let go of it whenever an interrupt comes
        try:
            with self._at(key, make=make) as (folder, name):
                held._descriptor = os.open(name, flags, 0o666, dir_fd=folder)
            if make:
                self._note(key)
            locked = _locked(held.descriptor)
            if locked is False:
                held.release()
                return None
            held.locked = locked is True
            if not os.fstat(held.descriptor).st_nlink:  # whoever held it has removed it meanwhile
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
            return held
        except BaseException:
            held.release()
            raise

    @contextlib.contextmanager
    def turn(self, prefix: str, seconds: float) -> Iterator[None]:
        """Wait until no other process is inside such a block for this folder, but no longer than `seconds`.

        For fairness and speed alone: nothing may depend on it, as some file systems have no locks.
        """
        descriptor = -1
        try:
            with contextlib.suppress(OSError):
                descriptor = -1 if sys.platform == "win32" else os.open(self.path(prefix), _FOLDER)
                until = time.monotonic() + seconds
                while descriptor >= 0 and _locked(descriptor) is False and time.monotonic() < until:
                    time.sleep(random.uniform(0.0002, 0.002))
            yield
        finally:
            if descriptor >= 0:
                _unlock(descriptor)
                _close(descriptor)

    def advise(self, mapped: Bytes, start: int, stop: int, advice: Advice) -> None:
        """Tell the system what will be done with bytes `start` to `stop` of a mapped array; returns at once."""
        if sys.platform == "win32" or stop <= start or (advice is Advice.DONE and sys.platform != "linux"):
            return
        base = mapped.__array_interface__["data"][0]
        step = stop
        if advice is Advice.SOON:
            try:
                step = _read_at_once(self.root.stat().st_dev)
            except OSError:  # removed meanwhile; what is mapped stays
                step = _READ_AHEAD
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
        return self._map_parts(parts, total)

    def _map_parts(self, parts: Sequence[tuple[str, int]], total: int) -> Bytes:
        """Reserve addresses for all parts, then map each file over its share: one array, however many files."""
        if len(parts) == 1 and sys.platform == "win32":
            descriptor = self._open_for_map(*parts[0])
            try:
                return np.frombuffer(_mmap.mmap(descriptor, total, access=_mmap.ACCESS_READ), np.uint8)
            finally:
                _close(descriptor)
        libc = _libc()
        # files are mapped by large pages only where these begin; a small one is to be one map and no more
        slack = LARGE_PAGE if total >= LARGE_PAGE else 0
        try:
            # it is unmapped with the last array over it, whose memory can not be written
            room = _mmap.mmap(-1, total + slack, flags=_mmap.MAP_PRIVATE | _mmap.MAP_ANONYMOUS, prot=0)
        except OSError as error:
            raise _exhausted(error, f"{self.name}: {total} bytes of address space can not be reserved") from None
        reserved = np.frombuffer(room, np.uint8)
        start = -reserved.ctypes.data % LARGE_PAGE if slack else 0
        array: Bytes = reserved[start : start + total]
        at = array.ctypes.data
        for key, length in parts:
            descriptor = self._open_for_map(key, length)
            try:
                # MAP_FIXED replaces just the pages reserved above
                if libc.mmap(at, length, _mmap.PROT_READ, _mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0) != at:
                    failed = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                    raise _exhausted(failed, f"{self.name}: {key} can not be mapped")
            finally:
                _close(descriptor)
            at += length
        return array

    @_names_its_key
    def _open_for_map(self, key: str, length: int) -> int:
        """Descriptor of a file that has at least so many bytes."""
        descriptor = self._open(key)
        found = os.fstat(descriptor).st_size
        if found < length:
            _close(descriptor)
            raise CorruptStoreError(f"{self.name}: {key} has {found} bytes, expected at least {length}")
        return descriptor


def _exhausted(error: OSError, what: str) -> OSError | ResourceError:
    """The error of a process that has no more of something, and how to give it more."""
    if error.errno == errno.ENOMEM:
        return ResourceError(
            f"{what}: {error.strerror}: the process has reached its limit of memory (ulimit -v) or of maps "
            f"(sysctl vm.max_map_count)"
        )
    if error.errno == errno.EMFILE and sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return OSError(error.errno, f"{what}: {error.strerror}: the process may have {limit} open (ulimit -n)")
    return OSError(error.errno, f"{what}: {error.strerror}")


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
_NOT_PLAIN = frozenset(("", ".", ".."))
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_MAP_FIXED = 0x10  # the same on Linux and macOS; Python's mmap module does not export it


def _locked(descriptor: int) -> bool | None:
    """Take the lock of an open file or folder: whether that went, None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL):
            return None
        raise
    return True


def _unlock(descriptor: int) -> None:
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


_MOST_WHOLE_BYTES = 256 << 20
_WRITTEN_AT_ONCE = 8 << 20


def _most_whole() -> int:
    """How many objects may wait open for `LocalStorage.sync`: an eighth of the files that the process may open."""
    if sys.platform == "win32":
        return 32
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 64 if limit == resource.RLIM_INFINITY else min(64, limit // 8)


def _start_writing(descriptor: int) -> None:
    """Let the disk begin with what was written to a file; nobody waits for it, and nothing depends on it."""
    begin = getattr(_libc(), "sync_file_range", None) if sys.platform == "linux" else None
    if begin is None:
        return

    def work() -> None:
        begin(copy, 0, 0, _SYNC_FILE_RANGE_WRITE)
        _close(copy)

    copy = -1
    with contextlib.suppress(OSError, RuntimeError):  # no descriptor or thread is left: the disk begins later
        copy = os.dup(descriptor)
        start_new_thread(work, ())  # the system finds a place on the disk for each page first
        return
    _close(copy)


_SYNC_FILE_RANGE_WRITE = 2  # of linux/fs.h


def _sync_folder(folder: int | Path) -> None:
    if sys.platform == "win32":
        return  # a folder can not be opened there; NTFS journals names by itself
    if isinstance(folder, int):
        os.fsync(folder)
        return
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        _close(descriptor)


def _rename_new(source: Path, target: Path, error: OSError) -> None:
    """Rename without replacing, for file systems that have no hard links: FAT, some of FUSE."""
    libc = _libc()
    names = os.fsencode(source), os.fsencode(target)
    ctypes.set_errno(0)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, _RENAME_EXCL)
    else:
        failed, _ = -1, ctypes.set_errno(errno.ENOSYS)
    if not failed:
        return
    if ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    raise OSError(
        error.errno,
        f"{target}: the file system can neither link ({error.strerror}) nor rename without replacing "
        f"({os.strerror(ctypes.get_errno())}), so that of two writers both could win: keep the store on another one",
    ) from error


_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCL = -100, 1, 4  # of linux/fcntl.h, linux/fs.h and macOS' sys/stdio.h


@functools.cache
def _libc() -> Any:
    """The C library's mmap, madvise and sync_file_range, with the types that 64-bit numbers need."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if hasattr(libc, "sync_file_range"):
        libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint)
    return libc


def free_disk_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that may still be written to the file system of a path, or of its nearest folder that exists."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A name for a folder; what was made there is gone when the block ends.

    Nothing is made here: an interrupt that comes between making a folder and entering the block would leave it.
    """
    try:
        yield folder
    finally:
        try:
            _clear(folder)
        except BaseException:  # interrupted while it removes
            _clear(folder)
            raise


def _clear(folder: Path) -> None:
    """Remove a folder as far as can be: of what fails rmtree ignores most, but not what fstat and close say."""
    with contextlib.suppress(OSError):
        _remove_tree(folder, ignore_errors=True)


def _remove_tree(folder: Path, *, ignore_errors: bool = False) -> None:
    """As rmtree, whose second close(2) of a folder makes an OSError of an interrupt that comes with the first."""
    try:
        shutil.rmtree(folder, ignore_errors=ignore_errors)
    except OSError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
