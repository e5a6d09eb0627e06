"""Text files, plain or compressed, in pieces of whole lines and in bounded memory."""

from __future__ import annotations

import copy
from _thread import start_new_thread
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from itertools import chain, pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import SourceError
from sparsestore.sources.file import FileState, check_mark, shown

__all__ = ["COMPRESSIONS", "Piece", "TextFile"]

Bytes = NDArray[np.uint8]
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes that may follow that of a text format."""

_STEP = 1 << 20  # compressed bytes read at a time
_FIRST = 512  # bytes that a new decoder is given at first: what a member leaves over is copied
_ZSTD_STEP = 1 << 10  # zstd has no limit on its output: 32 MiB a step at worst, a few KiB in any honest file
_COUNT = 1 << 20  # bytes in which lines are counted at a time
_ROOM = 64 << 10  # before what is read, for the begin of its first line
_FAR = 16 << 20  # a line is shorter, or an error
_WINDOW = 128 << 20  # history that a decompressor may hold: what `zstd --long` and `xz -9` need, and no more


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive whole lines.

    Attributes
    ----------
    text : (n,) uint8 array
        Its last byte is a newline, added where the file has none at its end.
    line : int
        Number of the first line, counted from 1, in the part of the file that is read.
    position : int
        How far the file (the compressed one) has been read.
    n_lines : int
    before : callable
        Counts the lines of the file before that part: for messages.
    """

    text: NDArray[np.uint8]
    line: int
    position: int
    n_lines: int
    before: Callable[[], int] = int

    def line_at(self, offset: int) -> int:
        """Number of the line that byte `offset` of the text lies in."""
        return self.before() + self.line + int(np.count_nonzero(self.text[:offset] == 10))


def _line_end(raw: FileIO, at: int) -> int | None:
    """Where the first line begins that begins at a byte or behind it; None where that is too far away."""
    raw.seek(at - 1)
    for _ in range(_FAR // _STEP):
        start, step = raw.tell(), raw.read(_STEP)
        if (found := step.find(b"\n")) >= 0:
            return start + found + 1
        if not step:
            break
    return None


_Filled = tuple[Bytes, int, Exception | None]  # text, how far the file was read, or what went wrong


def _filled(read: Callable[[memoryview], int], size: int, room: int) -> Bytes:
    """Free bytes and so many bytes of text, fewer at the end."""
    block, at = np.empty(room + size, np.uint8), room
    with memoryview(block) as view:  # type: ignore[arg-type]
        while at < len(block) and (n := read(view[at:])):
            at += n
    return block[:at]


def _last_end(text: Bytes) -> int:
    """Behind the last end of a line; 0 where there is none."""
    start = max(0, len(text) - _ROOM)
    end = text[start:].tobytes().rfind(b"\n") + 1
    return start + end if end else text.tobytes().rfind(b"\n") + 1


class TextFile:
    """A file of lines, decompressed by its suffix (.gz, .bz2, .xz, .zst; several members or frames count as one).

    Memory of `pieces`: three pieces, a longest line, and the decompressor's own window (gzip 32 KiB, bzip2 4 MiB,
    xz and zstd what the file asks for, at most 128 MiB; a zstd file made to expand may take 64 MiB more).

    Attributes
    ----------
    path : Path
    state : FileState
    size : int
        Bytes of the file, the compressed one, or of the part of it that is read.
    start : int
        Where that begins.
    """

    def __init__(self, path: Path, suffix: str | None = None) -> None:
        """Note what the file is; `suffix` is taken for that of the path, ".zlib" and "" may be given so."""
        self.path = path
        self.state = FileState.of(path)
        self.size, self.start = self.state.size, 0
        self.suffix = path.suffix.lower() if suffix is None else suffix
        self.compressed = self.suffix in (*COMPRESSIONS, ".zlib")

    def pieces(
        self, piece_bytes: int, max_line_bytes: int, *, skip: int = 0, line: int = 1, hint: str = "check the format"
    ) -> Iterator[Piece]:
        """Yield the lines in order, while a thread reads and decompresses the next piece.

        A line longer than `max_line_bytes` is an error, which ends in the `hint`; so is a file that starts with a byte
        order mark, and one that is not as it was when it was opened. The first `skip` bytes of text are left out: they
        end where line number `line` starts.
        """
        from sparsestore.kernels.counting import count

        tail, start, position = list[Bytes](), not self.start, 0
        with closing(self.chunks(piece_bytes, room=_ROOM)) as chunks:
            for block, at in chain(chunks, [(np.empty(_ROOM, np.uint8), 0)]):
                position = max(position, at)
                if start:
                    check_mark(self.path, block[_ROOM : _ROOM + 4].tobytes())
                    start = False
                if len(block) > _ROOM:
                    cut = _last_end(block[_ROOM:])
                elif any(map(len, tail)):  # the last line may lack its end
                    block, cut = np.append(block, np.uint8(10)), 1
                else:
                    cut = 0
                if cut:
                    held = sum(map(len, tail))
                    if held <= _ROOM:  # the begin of the first line goes before what was read: nothing else is moved
                        text = block[_ROOM - held : _ROOM + cut]
                        text[:held] = np.concatenate(tail) if held else ()
                    else:
                        text = np.concatenate([*tail, block[_ROOM : _ROOM + cut]])
                    tail = [block[_ROOM + cut :].copy()]
                    first, skip = min(skip, len(text)), max(0, skip - len(text))
                    if first < len(text):
                        lines = text[first:]
                        lines.flags.writeable = False
                        n_lines = count(lines, 10, 10, 10)[0]
                        yield Piece(lines, line, position, n_lines, self._lines_before)
                        line += n_lines
                else:
                    tail.append(block[_ROOM:])
                if (length := sum(map(len, tail))) > max_line_bytes:
                    raise SourceError(
                        f"{self.path}:{self._lines_before() + line}: the line has at least {length} bytes, expected at "
                        f"most {max_line_bytes}: {hint}"
                    )

    def parts(self, n: int) -> list[TextFile]:
        """At most n consecutive parts of about one length, cut at ends of lines; the file itself where compressed."""
        if self.compressed or n < 2:
            return [self]
        cuts = [0]
        with closing(FileIO(self.path)) as raw:
            for number in range(1, n):
                cut = _line_end(raw, max(self.size * number // n, cuts[-1] + 1))
                if cut is not None and cut < self.size:
                    cuts.append(cut)
        found = list[TextFile]()
        for start, stop in pairwise([*cuts, self.size]):
            part = copy.copy(self)
            part.start, part.size = start, stop - start
            found.append(part)
        return found

    def _lines_before(self) -> int:
        """Lines of the file before the part that is read."""
        n, left = 0, self.start
        with closing(FileIO(self.path)) as raw:
            while left and (step := raw.read(min(left, _COUNT))):
                n, left = n + step.count(b"\n"), left - len(step)
        return n

    def chunks(self, size: int, *, room: int = 0) -> Generator[tuple[Bytes, int], None, None]:
        """Yield so many bytes at a time, and how far the file was read, while a thread reads and decompresses more.

        Before them are `room` bytes for the caller.
        """
        requests, results = SimpleQueue[int](), SimpleQueue[_Filled]()
        # The thread owns the file and is not waited for at the end: a generator may be finalized by the collection of
        # garbage at any point of any thread, one that holds a lock which joining a thread takes among them.
        # No threading.Thread: it waits for its start in a Condition, which an interrupt there would leave locked.
        try:
            start_new_thread(self._serve, (requests, results, room))
            requests.put(size)
            while True:
                block, position, error = results.get()
                if error is not None:
                    raise error
                if len(block) == room:
                    return
                requests.put(size)
                yield block, position
        finally:
            requests.put(0)

    def _serve(self, requests: SimpleQueue[int], results: SimpleQueue[_Filled], room: int) -> None:
        """Fill a piece for each request, until one for 0 bytes or an error."""
        try:
            with closing(FileIO(self.path)) as raw:
                raw.seek(self.start)
                read = self._reader(raw)
                while size := requests.get():
                    text = _filled(read, size, room)
                    position = raw.tell()
                    if position > self.state.size or len(text) == room:
                        self.state.check(self.path)
                    results.put((text, position - self.start, None))
                    del text
        except Exception as error:
            results.put((np.empty(0, np.uint8), 0, error))

    def _reader(self, raw: FileIO) -> Callable[[memoryview], int]:
        """Reads some bytes of the text into memory and tells how many, none at the end."""
        if self.compressed:
            decompressed = _Decompressed(self.path, self.suffix, raw)

            def read(out: memoryview) -> int:
                part = decompressed.read(len(out))
                out[: len(part)] = part
                return len(part)

            return read
        stop = self.start + self.size
        if stop < self.state.size:
            return lambda out: raw.readinto(out[: max(0, stop - raw.tell())])
        return raw.readinto


class _Decoder(Protocol):
    """What `zlib`, `bz2`, `lzma` and `zstandard` agree on."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes: ...


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

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes:
        if data:
            self.left = memoryview(self.frame.decompress(data))
        out, self.left = bytes(self.left[:max_length]), self.left[max_length:]
        return out


def _inflate() -> Any:
    """The module that decompresses gzip: isal, twice as fast, where it is installed."""
    try:
        from isal import isal_zlib
    except ImportError:
        import zlib

        return zlib
    return isal_zlib


def _decoder(suffix: str) -> tuple[Callable[[], Any], type[Exception], int]:
    """How to make a decoder, what it raises on bad data, and how many bytes to give it at a time."""
    if suffix in (".gz", ".zlib"):
        inflate = _inflate()
        bits = 31 if suffix == ".gz" else 15  # 31: gzip with its length and checksum
        return lambda: inflate.decompressobj(bits), inflate.error, _STEP
    if suffix == ".bz2":
        import bz2

        return bz2.BZ2Decompressor, OSError, _STEP
    if suffix == ".xz":
        import lzma

        # not `FORMAT_AUTO`: the older format that it knows too has neither magic nor checksum, and takes zeros for data
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW), lzma.LZMAError, _STEP
    import zstandard

    return _Zstd, zstandard.ZstdError, _ZSTD_STEP


class _Decompressed:
    """Decompressed bytes of a file, never many more at a time than asked for."""

    def __init__(self, path: Path, suffix: str, raw: FileIO) -> None:
        self.path, self.suffix, self.raw = path, suffix, raw
        self.new, self.errors, self.step = _decoder(suffix)
        self.decoder: _Decoder = self.new()
        self.input = memoryview(b"")  # read, not yet given to the decoder
        self.pending: bytes | memoryview = b""  # given, and to be given again
        self.give = self.step

    def read(self, size: int) -> bytes:
        """Some bytes, b"" at the end of the file."""
        while True:
            if self.decoder.eof and not self._next_member():
                return b""
            try:
                out = self.decoder.decompress(self.pending, size)
            except self.errors as error:
                raise SourceError(
                    f"{self.path}: damaged {self.suffix} data before byte {self._position()}: {shown(str(error))}"
                ) from error
            self.pending = getattr(self.decoder, "unconsumed_tail", b"")
            if out:
                return out
            if not self.decoder.eof and not self.pending:
                self.pending = self._more()
                if not self.pending:
                    raise SourceError(
                        f"{self.path}: cut short: the file ends at byte {self.raw.tell()}, before its "
                        f"{self.suffix} data do"
                    )

    def _more(self) -> memoryview:
        """The next bytes of the file for the decoder, few at first: many small members must not cost many copies."""
        if not self.input:
            self.input = memoryview(self.raw.read(self.step))
        some, self.input = self.input[: self.give], self.input[self.give :]
        self.give = min(2 * self.give, self.step)
        return some

    def _next_member(self) -> bool:
        """Start again behind a member; False where only zeros follow, with which tar and others pad."""
        rest: bytes = self.decoder.unused_data.lstrip(b"\0")
        while not rest:
            if not (more := self._more()):
                return False
            rest = bytes(more).lstrip(b"\0")
        self.decoder, self.pending, self.give = self.new(), rest, _FIRST
        return True

    def _position(self) -> int:
        return self.raw.tell() - len(self.input)
