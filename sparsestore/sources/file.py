"""What sources of files share: which files are read, that they stay as they were, how messages show what is in them."""

from __future__ import annotations

import errno
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sparsestore.errors import SourceError

__all__ = ["LONGEST_TEXT", "FileState", "check_file", "check_mark", "damage", "printable", "shown"]

LONGEST_TEXT = 1 << 16
"""Bytes of a string that stands for a row or a feature."""
_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# what h5py, zarr-python and their codecs raise on a damaged file
_DAMAGE = (
    *(OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError),
    *(SystemError, zlib.error, zipfile.BadZipFile),
)


def shown(text: bytes | str, limit: int = 40) -> str:
    """Text or bytes of a file as a message shows them: quoted, cut, nothing unprintable (so no escape sequence)."""
    start = text[:limit].decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text[:limit]
    return repr(start) + ("..." if len(text) > limit else "")


def printable(text: object, limit: int = 200) -> str:
    """What a library says of a file, which may quote it, as a message shows it: a line, cut, nothing unprintable."""
    line = " ".join(str(text).split()) or type(text).__name__
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line[:limit])


def check_file(path: Path) -> None:
    """Raise unless there is a plain file: others can not be read twice, end never, or wait without an end."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    if not path.is_file():  # read up to three times, by offset; and a read that waits for a pipe can not be interrupted
        raise ValueError(f"{path}: is a pipe or a device, expected a file: write what it gives to one first")


def check_mark(path: Path, text: bytes) -> None:
    """Raise SourceError where a text starts with a byte order mark, which would become part of its first word."""
    for mark, encoding in _MARKS.items():
        if text.startswith(mark):
            raise SourceError(
                f"{path}:1: starts with a byte order mark, {shown(mark)}, of {encoding}: expected plain ASCII or UTF-8 "
                "without one: save it so"
            )


class FileState(NamedTuple):
    """What tells that a file was written to while it was read."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The file as it is now."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns)

    def check(self, path: Path) -> None:
        """Raise SourceError where the file is another than it was."""
        now = FileState.of(path)
        if now != self:
            change = f"from {self.size} to {now.size} bytes" if now.size != self.size else "to other content"
            raise SourceError(f"{path}: changed while it was read, {change}: convert it once nobody writes to it")


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turn what a damaged file makes a library raise into a SourceError that starts with `what`."""
    try:
        yield
    except (SourceError, FileNotFoundError, PermissionError):
        raise
    except _DAMAGE as error:
        raise SourceError(f"{what}: {shown(str(error), 160)}") from error
