"""numpy's ``.npy`` files: a dense matrix, mapped; and the header that they share with the members of ``.npz``."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.errors import SourceError
from sparsestore.sources import layouts, options
from sparsestore.sources.base import Block

__all__ = ["Header", "NpySource", "mapped", "read_header"]


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
    """Read the header at the file's position; `size` bytes must hold exactly header and data. Never unpickles."""
    start = file.tell()
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version}, expected 1.0 or 2.0")
    except (ValueError, TypeError, SyntaxError, KeyError) as error:
        raise SourceError(f"{name}: not a .npy header: {error}") from error
    if dtype.hasobject:
        raise SourceError(f"{name}: holds Python objects, expected numbers: they are never unpickled")
    header = Header(shape, fortran, dtype, file.tell() - start)
    if header.offset + header.nbytes != size:
        raise SourceError(
            f"{name}: has {size} bytes, expected {header.offset + header.nbytes} for {dtype} of shape {shape}"
        )
    return header


def mapped(path: Path, header: Header, offset: int) -> NDArray[Any]:
    """Map an array whose data start at byte `offset`; possibly unaligned."""
    order: Literal["C", "F"] = "F" if header.fortran else "C"
    if header.nbytes == 0:
        return np.empty(header.shape, header.dtype)  # an empty file region can not be mapped
    array: NDArray[Any] = np.memmap(path, header.dtype, "r", offset=offset, shape=header.shape, order=order)
    return array


class NpySource:
    """Rows of a dense matrix in a ``.npy`` file, mapped, in C or Fortran order; zeros are dropped.

    `blocks` holds at most `max_bytes` beside the map, or one row. The file must not be cut while it is read.

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
        with path.open("rb") as file:
            self._header = read_header(self.name, file, path.stat().st_size)
        shape = self._header.shape
        if len(shape) != 2:
            raise SourceError(f"{self.name}: has shape {shape}, expected 2 dimensions: (rows, features)")
        self._width = options.width(self.name, shape[1], n_features)
        self._dtype = options.value_dtype(self.name, self._header.dtype, dtype)
        self._options = {"n_features": n_features, "dtype": None if dtype is None else str(self._dtype)}
        self.n_rows: int | None = shape[0]
        self.n_features: int | None = self._width
        self.dtype: np.dtype[Any] | None = self._dtype
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.size: int | None = shape[0]

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, and the options."""
        return options.provenance(self._path, "npy", self._options)

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        x = mapped(self._path, self._header, self._header.offset)
        return layouts.dense_blocks(x, width=self._width, dtype=self._dtype, max_bytes=max_bytes)
