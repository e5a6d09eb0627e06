"""Text files, plain or compressed, in pieces of whole lines and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import SourceError

__all__ = ["COMPRESSIONS", "Piece", "TextFile", "shown"]

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes that may follow that of a text format."""

_STEP = 256 << 10  # compressed bytes read at a time
_ZSTD_STEP = 1 << 10  # zstd has no limit on its output: 32 MiB a step at worst, a few KiB in any honest file
_WINDOW = 128 << 20  # history that a decompressor may hold: what `zstd --long` and `xz -9` need, and no more


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive whole lines.

    Attributes
    ----------
    text : (n,) uint8 array
        Its last byte is a newline, added where the file has none at its end.
    line : int
        Number of the first line, counted from 1.
    position : int
        How far the file (the compressed one) has been read.
    """

    text: NDArray[np.uint8]
    line: int
    position: int

    def line_at(self, offset: int) -> int:
        """Number of the line that byte `offset` of the text lies in."""
        return self.line + int(np.count_nonzero(self.text[:offset] == 10))


def shown(text: bytes, limit: int = 40) -> str:
    """Bytes of a file as a message shows them: quoted, cut, nothing unprintable."""
    return repr(text[:limit].decode("utf-8", "backslashreplace")) + ("..." if len(text) > limit else "")


class TextFile:
    """A file of lines, decompressed by its suffix (.gz, .bz2, .xz, .zst; several members or frames count as one).

    Memory of `pieces`: three pieces, a longest line, and the decompressor's own window (gzip 32 KiB, bzip2 4 MiB,
    xz and zstd what the file asks for, at most 128 MiB; a zstd file made to expand may take 64 MiB more).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.compressed = path.suffix.lower() in COMPRESSIONS

    @contextmanager
    def open(self) -> Iterator[tuple[Callable[[int], bytes], Callable[[], int]]]:
        """Open at the start: a function that reads about so many bytes (b"" at the end), one that tells where."""
        with self.path.open("rb", buffering=0) as raw:
            yield _Decompressed(self.path, raw).read if self.compressed else raw.read, raw.tell

    def pieces(self, piece_bytes: int, max_line_bytes: int, *, skip: int = 0, line: int = 1) -> Iterator[Piece]:
        """Yield the lines in order, while a thread reads and decompresses the next piece.

        A line longer than `max_line_bytes` is an error. The first `skip` bytes of text are left out: they end where
        line number `line` starts.
        """
        with self.open() as (read, tell), ThreadPoolExecutor(1, "sparsestore-read") as thread:

            def fill() -> tuple[bytes, int]:
                parts, missing = list[bytes](), piece_bytes
                while missing > 0 and (part := read(missing)):
                    parts.append(part)
                    missing -= len(part)
                return b"".join(parts), tell()

            pending = thread.submit(fill)
            tail = list[bytes]()
            while True:
                block, position = pending.result()
                if block:
                    pending = thread.submit(fill)
                    cut = block.rfind(b"\n") + 1
                elif any(tail):
                    block, cut = b"\n", 1
                else:
                    return
                if cut:
                    text = b"".join([*tail, memoryview(block)[:cut]])
                    tail = [block[cut:]]
                    first, skip = min(skip, len(text)), max(0, skip - len(text))
                    if first < len(text):
                        yield Piece(np.frombuffer(text, np.uint8)[first:], line, position)
                        line += text.count(b"\n", first)
                else:
                    tail.append(block)
                if (length := sum(map(len, tail))) > max_line_bytes:
                    raise SourceError(
                        f"{self.path}:{line}: the line has at least {length} bytes, expected at most "
                        f"{max_line_bytes}: check the format, or give a larger max_bytes"
                    )


class _Decoder(Protocol):
    """What `zlib`, `bz2`, `lzma` and `zstandard` agree on."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Zstd:
    """A zstd frame with the face of the other decoders; `zstandard`'s own reader takes a truncated file for whole."""

    def __init__(self) -> None:
        import zstandard

        self.frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
        self.left = memoryview(b"")  # `decompressobj` knows no limit

    @property
    def eof(self) -> bool:
        return bool(self.frame.eof) and not self.left

    @property
    def unused_data(self) -> bytes:
        return bytes(self.frame.unused_data)

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        if data:
            self.left = memoryview(self.frame.decompress(data))
        out, self.left = bytes(self.left[:max_length]), self.left[max_length:]
        return out


def _decoder(suffix: str) -> tuple[Callable[[], Any], type[Exception], int]:
    """How to make a decoder, what it raises on bad data, and how many bytes to give it at a time."""
    if suffix == ".gz":
        import zlib

        return lambda: zlib.decompressobj(31), zlib.error, _STEP  # 31: gzip with its length and checksum
    if suffix == ".bz2":
        import bz2

        return bz2.BZ2Decompressor, OSError, _STEP
    if suffix == ".xz":
        import lzma

        return lambda: lzma.LZMADecompressor(memlimit=_WINDOW), lzma.LZMAError, _STEP
    import zstandard

    return _Zstd, zstandard.ZstdError, _ZSTD_STEP


class _Decompressed:
    """Decompressed bytes of a file, never many more at a time than asked for."""

    def __init__(self, path: Path, raw: FileIO) -> None:
        self.path, self.raw = path, raw
        self.new, self.errors, self.step = _decoder(path.suffix.lower())
        self.decoder: _Decoder = self.new()
        self.pending = b""

    def read(self, size: int) -> bytes:
        """Some bytes, b"" at the end of the file."""
        while True:
            if self.decoder.eof:
                rest = self.decoder.unused_data.lstrip(b"\0")  # tar and others pad with zeros
                while not rest:
                    rest = self.raw.read(self.step)
                    if not rest:
                        return b""
                    rest = rest.lstrip(b"\0")
                self.decoder, self.pending = self.new(), rest
            try:
                out = self.decoder.decompress(self.pending, size)
            except self.errors as error:
                kind = self.path.suffix
                raise SourceError(f"{self.path}: damaged {kind} data before byte {self.raw.tell()}: {error}") from error
            self.pending = getattr(self.decoder, "unconsumed_tail", b"")
            if out:
                return out
            if not self.decoder.eof and not self.pending:
                self.pending = self.raw.read(self.step)
                if not self.pending:
                    raise SourceError(
                        f"{self.path}: cut short: the file ends at byte {self.raw.tell()}, before its "
                        f"{self.path.suffix} data do"
                    )
