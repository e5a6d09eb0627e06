"""numpy's ``.npy`` files: a dense matrix, or a column; and the header that they share with the members of ``.npz``."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from io import FileIO
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.errors import SourceError
from sparsestore.sources import layouts, options
from sparsestore.sources.base import Block
from sparsestore.sources.file import FileState, check_file, shown

__all__ = ["Header", "NpySource", "mapped_column", "read_header"]

Array = NDArray[Any]

_LONGEST_HEADER = 4096  # numpy takes 10,000; what can be stored is told in 128
_HIGHEST = 2**63 - 1
_KEYS = ("descr", "fortran_order", "shape")
# the literal of a dict, read as such and never evaluated: what is written for an array of numbers or text
_ITEM = re.compile(
    r"""\s*(?P<quote>['"])(?P<key>\w+)(?P=quote)\s*:\s*
    (?:(?P<mark>['"])(?P<text>[^'"\\]*)(?P=mark)
    | (?P<flag>True|False) | \((?P<numbers>[0-9,\s]*)\) | (?P<list>\[.*\]))
    \s*(?:,|(?=\}))""",
    re.VERBOSE | re.ASCII,
)
_LENGTH = re.compile("0+|[1-9][0-9]{0,18}")  # as in Python, which takes no 04
_DESCR = re.compile(r"[<>=|]?[?bBhHiIlLqQefdgFDGucSUVOmM][0-9]{0,9}(?:\[[0-9a-zA-Z]+\])?")


class Header(NamedTuple):
    """What a ``.npy`` header says, and where its data start."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the data, in exact integers."""
        return prod(self.shape) * self.dtype.itemsize


def read_header(name: str, file: IO[bytes], size: int) -> Header:
    """Read the header at the start of a file of `size` bytes, which must hold exactly header and data.

    Nothing of what the header says is made, evaluated or unpickled; it may have 4,096 bytes.
    """
    start = file.read(8)
    n_lengths = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4, b"\x93NUMPY\x03\x00": 4}.get(start)
    if n_lengths is None:
        raise SourceError(f"{name}: not a .npy header: starts with {shown(start)}, expected numpy's mark and version")
    length = int.from_bytes(file.read(n_lengths), "little")
    if length > _LONGEST_HEADER:
        raise SourceError(f"{name}: not a .npy header: has {length} bytes, expected at most {_LONGEST_HEADER}")
    text = file.read(length)
    if len(text) < length:
        raise SourceError(f"{name}: not a .npy header: ends after {len(text)} of {length} bytes")
    header = _parsed(name, text, len(start) + n_lengths + length)
    if header.dtype.hasobject:
        raise SourceError(f"{name}: holds Python objects, expected numbers: they are never unpickled")
    if header.offset + header.nbytes != size:
        raise SourceError(
            f"{name}: has {size} bytes, expected {header.offset + header.nbytes} for {header.dtype} of shape "
            f"{header.shape}"
        )
    return header


def _parsed(name: str, raw: bytes, offset: int) -> Header:
    def wrong(reason: str) -> SourceError:
        return SourceError(f"{name}: not a .npy header: {reason}")

    if not re.fullmatch(rb"[\t\n\r -~]*", raw):
        raise wrong(f"expected ASCII, found {shown(raw, 120)}")
    text = raw.decode().lstrip(" ")
    items, at = dict[str, re.Match[str]](), 1
    while text.startswith("{") and (item := _ITEM.match(text, at)):
        if item["key"] in items:
            raise wrong(f"has {item['key']!r} twice")
        items[item["key"]], at = item, item.end()
    if not re.fullmatch(r"\s*\} *\n?", text[at:]) or sorted(items) != sorted(_KEYS):
        raise wrong(f"expected a dict of {', '.join(_KEYS)}, found {shown(text, 120)}")
    descr, flag, numbers = items["descr"], items["fortran_order"]["flag"], items["shape"]["numbers"]
    if descr["list"] is not None:
        raise SourceError(
            f"{name}: values of dtype {shown(descr['list'], 80)} can not be stored: expected one number an element"
        )
    if descr["text"] is None or not _DESCR.fullmatch(descr["text"]):
        raise wrong(f"descr {shown(descr['text'] or '')} is no dtype of numpy")
    if flag is None or numbers is None:
        raise wrong("expected True or False for fortran_order, and whole numbers for shape")
    lengths = [number.strip() for number in numbers.split(",")]
    one_in_brackets = len(lengths) == 1 and lengths[0] != ""  # which is no tuple in Python
    if lengths[-1] == "":
        del lengths[-1]
    if one_in_brackets or not all(_LENGTH.fullmatch(number) for number in lengths) or len(lengths) > 32:
        raise wrong(f"shape {shown(f'({numbers})')}, expected a tuple of at most 32 whole numbers, as Python has them")
    shape = tuple(int(number) for number in lengths)
    try:
        dtype = np.dtype(descr["text"])
    except (TypeError, ValueError) as error:
        raise wrong(f"descr {shown(descr['text'])} is no dtype of numpy") from error
    if max(prod(max(1, n) for n in shape) * max(1, dtype.itemsize), *shape, 0) > _HIGHEST:
        raise wrong(f"shape {shape} of {dtype} is more than any machine holds")
    return Header(shape, flag == "True", dtype, offset)


def _header_of(path: Path) -> Header:
    with path.open("rb") as file:
        return read_header(str(path), file, path.stat().st_size)


def mapped_column(path: Path) -> Array:
    """A column of a file, mapped: (n,) or (n, k) numbers or strings. The file must not be cut while it is in use."""
    check_file(path)
    header = _header_of(path)
    if header.nbytes == 0:
        return np.empty(header.shape, header.dtype)  # an empty region of a file can not be mapped
    array: Array = np.memmap(
        path, header.dtype, "r", offset=header.offset, shape=header.shape, order="F" if header.fortran else "C"
    )
    return array


class NpySource:
    """Rows of a dense matrix in a ``.npy`` file, in C or Fortran order; zeros are dropped.

    `blocks` holds at most `max_bytes`, or one row. Values may be nan and inf.

    Parameters
    ----------
    path : Path
    n_features : int, optional
        A larger width than the matrix has.
    dtype : optional
        Another dtype of the values.
    """

    unit = "rows"
    sorted_rows = True

    def __init__(self, path: Path, *, n_features: int | None = None, dtype: DTypeLike | None = None) -> None:
        self.name = str(path)
        self._path = path
        self._state = FileState.of(path)
        self._header = _header_of(path)
        shape = self._header.shape
        if len(shape) != 2:
            raise SourceError(f"{self.name}: has shape {shape}, expected 2 dimensions: (rows, features)")
        options.check_rows(self.name, shape[0], prod(shape))
        self._width = options.width(self.name, shape[1], n_features)
        self._dtype = options.value_dtype(self.name, self._header.dtype, dtype)
        self._options = {"n_features": n_features, "dtype": None if dtype is None else str(self._dtype)}
        self.n_rows: int | None = shape[0]
        self.n_features: int | None = self._width
        self.dtype: np.dtype[Any] | None = self._dtype
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.size: int | None = shape[0]
        self._rows_read = 0, shape[0]

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, and the options."""
        return options.provenance(self._path, "npy", self._options)

    def parts(self, n: int) -> list[NpySource]:
        """Sources of at most n consecutive parts of the rows."""
        found = list[NpySource]()
        for start, stop in options.ranges(self._header.shape[0], n):
            part = copy.copy(self)
            part._rows_read, part.n_rows, part.size = (start, stop), stop - start, stop - start
            found.append(part)
        return found

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        with closing(FileIO(self._path)) as file:
            self._state.check(self._path)

            def read(start: int, stop: int) -> Array:
                return self._rows(file, start, stop)

            first, stop = self._rows_read
            made: dict[str, Any] = {"width": self._width, "dtype": self._dtype, "max_bytes": max_bytes, "first": first}
            for block in layouts.dense_blocks(self.name, read, (stop, self._header.shape[1]), **made):
                yield replace(block, position=block.position - first)
            self._state.check(self._path)

    def _rows(self, file: FileIO, start: int, stop: int) -> Array:
        """Some rows, read and not mapped: a map of a file that somebody cuts ends the process."""
        header = self._header
        n_rows, width = header.shape
        itemsize = header.dtype.itemsize
        if not header.fortran:
            out = np.empty((stop - start, width), header.dtype)
            self._fill(file, out, header.offset + start * width * itemsize)
            return out
        columns = np.empty((width, stop - start), header.dtype)
        for k, column in enumerate(columns):
            self._fill(file, column, header.offset + (k * n_rows + start) * itemsize)
        return columns.T

    def _fill(self, file: FileIO, out: Array, position: int) -> None:
        if not out.nbytes:
            return
        view, at = memoryview(out.data).cast("B"), 0
        file.seek(position)
        while at < len(view):
            n = file.readinto(view[at:])
            if not n:
                self._state.check(self._path)
                raise SourceError(f"{self.name}: ends at byte {position + at}, {len(view) - at} bytes are missing")
            at += n
