"""Lines of text, made and compressed by all cores, written in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.exports.base import Table
from sparsestore.parallel import mapped, n_cores
from sparsestore.sources.base import Block

__all__ = ["COMPRESSIONS", "Ends", "write_lines"]

Bytes = NDArray[np.uint8]

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes that may follow that of a text format."""
_BLOCK = 16 << 20


def write_lines(path: Path, suffix: str, table: Table, head: bytes, lines: Callable[[Block], Bytes]) -> None:
    """Write a head and then the lines of each block.

    What is held at a time is at most `Table.max_bytes` and what a compressor takes: xz 94 MiB a core, zstd 10 MiB.

    Parameters
    ----------
    suffix : str
        Of `COMPRESSIONS`, or any other for plain text. Each block is a member of its own of a .gz, .bz2 or .xz file,
        as when such files are joined; a .zst file is one frame, as some readers take no second one.
    lines : callable
        Gives the lines of a block; releases the GIL for most of its time.
    """
    n_threads = n_cores()
    compress = _compressor(suffix)

    def made(block: Block) -> tuple[Any, int]:
        text = lines(block)
        return (text.data if compress is None else compress(text.data)), block.position

    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("wb"))
        if suffix == ".zst":
            import zstandard

            compressor = zstandard.ZstdCompressor(level=3, threads=n_threads, write_checksum=True)
            file = stack.enter_context(compressor.stream_writer(file, closefd=False))
        if head or table.n_rows == 0:  # a compressed file has a member, also of nothing: without one it is no such file
            file.write(head if compress is None else compress(head))
        blocks = _whole(table, min(_BLOCK, table.max_bytes // (2 * (n_threads + 3))))
        parts = stack.enter_context(closing(mapped(made, blocks, n_threads)))
        for text, position in parts:
            file.write(text)
            table.report(position, table.n_rows, "rows")
            del text


def _whole(table: Table, max_bytes: int) -> Iterator[Block]:
    """Blocks that have rows."""
    return (block for block in table.blocks(max_bytes) if len(block.x))


def _compressor(suffix: str) -> Callable[[Any], bytes] | None:
    """What makes a member of a compressed file of some text; None for plain text, and for zstd, which is one frame."""
    if suffix == ".gz":
        import gzip

        return lambda text: gzip.compress(text, 6, mtime=0)
    if suffix == ".bz2":
        import bz2

        return bz2.compress
    if suffix == ".xz":
        import lzma

        return lzma.compress
    return None


class Ends:
    """The last row and feature that have an entry: whoever reads the file may not see that there are more."""

    def __init__(self) -> None:
        self._seen = list[tuple[int, int]]()

    def see(self, block: Block) -> None:
        """Take in a block; in any order, by several threads at once."""
        if block.x.nnz:
            row = block.position - len(block.x) + int(np.flatnonzero(np.diff(block.x.indptr))[-1])
            self._seen.append((row, int(block.x.indices.max())))

    def found(self) -> tuple[int, int]:
        """Rows and features up to these."""
        return max((row + 1 for row, _ in self._seen), default=0), max((each + 1 for _, each in self._seen), default=0)
