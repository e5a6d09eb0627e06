"""scipy's ``.npz`` files of a sparse matrix (`scipy.sparse.save_npz`): mapped where stored, streamed where deflated."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.errors import SourceError
from sparsestore.sources import layouts, options
from sparsestore.sources.base import Block, Triples
from sparsestore.sources.npy import Header, mapped, read_header

__all__ = ["NpzSource"]

_MEMBERS = {
    "csr": ("indptr", "indices", "data"),
    "csc": ("indptr", "indices", "data"),
    "bsr": ("indptr", "indices", "data"),
    "coo": ("row", "col", "data"),
    "dia": ("offsets", "data"),
}
_DEFLATE = 1032  # deflate makes a byte at most so many
_SMALL = 1 << 20  # `shape`, `format` and `offsets` are read whole


@dataclass(frozen=True, slots=True)
class _Member:
    """An array of the archive."""

    path: Path
    info: zipfile.ZipInfo
    header: Header

    @property
    def name(self) -> str:
        return f"{self.path}: {self.info.filename}"

    def small(self) -> NDArray[Any]:
        """The whole array, where it is small enough to be a description."""
        if self.header.nbytes > _SMALL:
            raise SourceError(f"{self.name}: has {self.header.nbytes} bytes, expected at most {_SMALL}")
        with ExitStack() as stack:
            return self.reader(stack, prod(self.header.shape))(prod(self.header.shape)).reshape(self.header.shape)

    def reader(self, stack: ExitStack, n: int) -> layouts.Read:
        """Read the array front to back, along its first axis or, where `n` is its size, element by element."""
        header = self.header
        flat = len(header.shape) < 2 or n == prod(header.shape)
        if self.info.compress_type == zipfile.ZIP_STORED:
            array = mapped(self.path, header, self._data_offset())
            return layouts.reader(array.reshape(-1) if flat else array)
        if header.fortran and len(header.shape) > 1:
            raise SourceError(f"{self.name}: is deflated and in Fortran order: save it with numpy.ascontiguousarray")
        archive = stack.enter_context(zipfile.ZipFile(self.path))
        stream = stack.enter_context(archive.open(self.info))
        stream.read(header.offset)
        inner = () if flat else header.shape[1:]
        left = prod(header.shape) if flat else header.shape[0]

        def read(count: int) -> NDArray[Any]:
            nonlocal left
            array = np.empty((count, *inner), header.dtype)
            view = memoryview(array.data).cast("B") if array.nbytes else memoryview(b"")
            at = 0
            try:
                while at < len(view):
                    part = stream.read(min(1 << 20, len(view) - at))
                    if not part:
                        raise SourceError(f"{self.name}: ends early, {len(view) - at} bytes are missing")
                    view[at : at + len(part)] = part
                    at += len(part)
                left -= count
                if left == 0:
                    stream.read(1)  # the checksum is compared at the end only
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise SourceError(f"{self.name}: damaged: {error}") from error
            return array

        return read

    def _data_offset(self) -> int:
        """Where the data of a stored member start: the lengths in its local header count, not the central ones."""
        with self.path.open("rb") as file:
            file.seek(self.info.header_offset)
            local = file.read(30)
            if len(local) < 30 or local[:4] != b"PK\x03\x04":
                raise SourceError(f"{self.name}: has no header in the archive at byte {self.info.header_offset}")
            name_length, extra_length = struct.unpack("<HH", local[26:30])
        offset = self.info.header_offset + 30 + name_length + extra_length + self.header.offset
        if offset + self.header.nbytes > self.path.stat().st_size:
            raise SourceError(f"{self.name}: ends after the archive, which was cut short")
        return int(offset)


class NpzSource:
    """A scipy sparse matrix in a ``.npz`` file. csr and bsr give rows; csc, coo and dia give triples.

    `blocks` holds at most `max_bytes`, or one row; members stored without compression are mapped, deflated ones are
    read in steps, after their declared shapes were checked against the archive's own sizes. Nothing is ever unpickled.

    Parameters
    ----------
    path : Path
    n_features : int, optional
        A larger width than the matrix has.
    dtype : optional
        Another dtype of the values.
    """

    def __init__(self, path: Path, *, n_features: int | None = None, dtype: DTypeLike | None = None) -> None:
        self.name = str(path)
        self._path = path
        self._members = self._read_members()
        for needed in ("format", "shape", "data"):
            self._member(needed)
        self._format = self._read_format()
        for needed in _MEMBERS[self._format]:
            self._member(needed)
        self._shape = self._read_shape()
        self._check_shapes()
        self._width = options.width(self.name, self._shape[1], n_features)
        self._dtype = options.value_dtype(self.name, self._member("data").header.dtype, dtype)
        self._options = {"n_features": n_features, "dtype": None if dtype is None else str(self._dtype)}
        self.sorted_rows = self._format in ("csr", "bsr")
        self.unit = "rows" if self.sorted_rows else "bytes"
        self.n_rows: int | None = self._shape[0]
        self.n_features: int | None = self._width
        self.dtype: np.dtype[Any] | None = self._dtype
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.size: int | None = self._shape[0] if self.sorted_rows else self._member("data").header.nbytes

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, scipy's format, and the options."""
        return {**options.provenance(self._path, "npz", self._options), "layout": self._format}

    def blocks(self, max_bytes: int) -> Iterator[Block | Triples]:
        """Yield rows in order, or triples."""
        with ExitStack() as stack:
            data = self._member("data")
            size = prod(data.header.shape)
            if self._format == "dia":
                values = data.reader(stack, size)
                triples = layouts.dia_triples(
                    self._member("offsets").small(),
                    values,
                    data.header.shape[1],
                    shape=self._shape,
                    dtype=self._dtype,
                    max_bytes=max_bytes,
                )
            else:
                reads = [self._member(name).reader(stack, -1) for name in _MEMBERS[self._format]]
                n = data.header.shape[0]
                if self.sorted_rows:
                    yield from self._rows(reads, n, max_bytes)
                    return
                make = layouts.csc_triples if self._format == "csc" else layouts.coo_triples
                triples = make(
                    self.name, *reads, shape=self._shape, n_entries=n, dtype=self._dtype, max_bytes=max_bytes
                )
            for part in triples:
                yield Triples(part.rows, part.features, part.values, part.position * data.header.dtype.itemsize)

    def _rows(self, reads: list[layouts.Read], n: int, max_bytes: int) -> Iterator[Block]:
        made: dict[str, Any] = {
            "shape": self._shape,
            "n_entries": n,
            "width": self._width,
            "dtype": self._dtype,
            "max_bytes": max_bytes,
        }
        if self._format == "bsr":
            height, length = self._member("data").header.shape[1:]
            return layouts.bsr_blocks(self.name, *reads, block=(height, length), **made)
        return layouts.csr_blocks(self.name, *reads, **made)

    def _read_members(self) -> dict[str, _Member]:
        members = {}
        try:
            with zipfile.ZipFile(self._path) as archive:
                for info in archive.infolist():
                    name = f"{self._path}: {info.filename}"
                    if info.flag_bits & 1:
                        raise SourceError(f"{name}: is encrypted")
                    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        raise SourceError(
                            f"{name}: compression method {info.compress_type}, expected stored or deflated"
                        )
                    if info.file_size > _DEFLATE * max(1, info.compress_size):
                        raise SourceError(
                            f"{name}: declares {info.file_size} bytes, more than {info.compress_size} can hold"
                        )
                    with archive.open(info) as file:
                        header = read_header(name, file, info.file_size)
                    members[info.filename.removesuffix(".npy")] = _Member(self._path, info, header)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise SourceError(f"{self._path}: not a sound .npz archive: {error}") from error
        return members

    def _member(self, name: str) -> _Member:
        if name not in self._members:
            raise SourceError(
                f"{self.name}: has no member {name!r} (found {', '.join(self._members) or 'none'}): expected a matrix "
                "written by scipy.sparse.save_npz"
            )
        return self._members[name]

    def _read_format(self) -> str:
        found = self._member("format").small()
        if found.dtype.kind not in "SU" or found.size != 1:
            raise SourceError(f"{self.name}: format is of dtype {found.dtype}, expected a string")
        value = found.reshape(-1)[0]
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
        if text not in _MEMBERS:
            raise SourceError(f"{self.name}: is in scipy's format {text!r}, expected one of {', '.join(_MEMBERS)}")
        return text

    def _read_shape(self) -> tuple[int, int]:
        found = self._member("shape").small()
        if found.shape != (2,) or found.dtype.kind not in "iu":
            raise SourceError(f"{self.name}: has shape {found.tolist()}, expected two whole numbers: (rows, features)")
        n_rows, n_features = (int(number) for number in found)
        if n_rows < 0 or n_features < 0:
            raise SourceError(f"{self.name}: has shape ({n_rows}, {n_features}), expected no negative numbers")
        return n_rows, n_features

    def _check_shapes(self) -> None:
        """Compare what the arrays' headers declare with each other, before anything is read."""
        shapes = {name: self._member(name).header.shape for name in _MEMBERS[self._format]}
        data, (n_rows, n_features) = shapes["data"], self._shape
        dimensions = {"bsr": 3, "dia": 2}.get(self._format, 1)
        if len(data) != dimensions:
            raise SourceError(
                f"{self.name}: data has shape {data}, expected {dimensions} dimensions for {self._format}"
            )
        expected: dict[str, tuple[int, ...]] = {}
        if self._format in ("csr", "csc"):
            expected = {"indptr": ((n_rows if self._format == "csr" else n_features) + 1,), "indices": data}
        elif self._format == "coo":
            expected = {"row": data, "col": data}
        elif self._format == "dia":
            expected = {"offsets": data[:1]}
        else:
            height, length = data[1:]
            if 0 in (height, length) or n_rows % height or n_features % length:
                raise SourceError(f"{self.name}: blocks of {data[1:]} do not divide a matrix of {self._shape}")
            expected = {"indptr": (n_rows // height + 1,), "indices": data[:1]}
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise SourceError(f"{self.name}: {name} has shape {shapes[name]}, expected {shape}")
            if self._member(name).header.dtype.kind not in "iu":
                raise SourceError(
                    f"{self.name}: {name} is of dtype {self._member(name).header.dtype}, expected integers"
                )
