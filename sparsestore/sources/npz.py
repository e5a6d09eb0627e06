"""scipy's ``.npz`` files of a sparse matrix (`scipy.sparse.save_npz`), streamed; the archive is believed in nothing."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.errors import SourceError
from sparsestore.sources import layouts, options
from sparsestore.sources.base import Block, Triples
from sparsestore.sources.file import FileState, shown
from sparsestore.sources.npy import Header, read_header

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
_MOST_MEMBERS = 64  # scipy writes 6
_STEP = 1 << 20
_MAGIC = b"PK\x03\x04"  # of a member: an archive may start with anything, as programs that unpack themselves do
# what zipfile and zlib raise on a damaged archive
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
)


class _Archive(FileIO):
    """The file, of which nothing reads much at a time: zipfile holds a whole table of contents, however long."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = _STEP  # of the last 64 KiB
        elif size > _STEP:
            raise zipfile.BadZipFile(f"a read of {size} bytes, expected at most {_STEP}")
        return super().read(size)


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turn what a damaged archive raises into a SourceError that starts with `what`."""
    try:
        yield
    except SourceError:
        raise
    except _DAMAGE as error:
        raise SourceError(f"{what}: {shown(str(error), 120)}") from error


def _opened(path: Path, stack: ExitStack) -> zipfile.ZipFile:
    return stack.enter_context(zipfile.ZipFile(stack.enter_context(_Archive(path))))


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
        n = prod(self.header.shape)
        with ExitStack() as stack:
            return self.reader(stack, n)(n).reshape(self.header.shape)

    def reader(self, stack: ExitStack, n: int) -> layouts.Read:
        """Read the array front to back, along its first axis or, where `n` is its size, element by element."""
        header = self.header
        flat = len(header.shape) < 2 or n == prod(header.shape)
        if header.fortran and len(header.shape) > 1:
            raise SourceError(f"{self.name}: is in Fortran order: save it with numpy.ascontiguousarray")
        with _damage(self.name):
            stream = stack.enter_context(_opened(self.path, stack).open(self.info))
            stream.read(header.offset)
        inner = () if flat else header.shape[1:]
        left = prod(header.shape) if flat else header.shape[0]

        def read(count: int) -> NDArray[Any]:
            nonlocal left
            array = np.empty((count, *inner), header.dtype)
            view = memoryview(array.data).cast("B") if array.nbytes else memoryview(b"")
            at = 0
            with _damage(f"{self.name}: damaged"):
                while at < len(view):
                    part = stream.read(min(_STEP, len(view) - at))
                    if not part:
                        raise SourceError(f"{self.name}: ends early, {len(view) - at} bytes are missing")
                    view[at : at + len(part)] = part
                    at += len(part)
                left -= count
                if left == 0 and stream.read(1):  # the checksum is compared at the end only
                    raise SourceError(f"{self.name}: has more bytes than the {self.info.file_size} that it declares")
            return array

        return read


class NpzSource:
    """A scipy sparse matrix in a ``.npz`` file. csr and bsr give rows; csc, coo and dia give triples.

    `blocks` holds at most `max_bytes`, or one row, which may take four times as much and no more. Members, stored or
    deflated, are read in steps and against their checksums, after their declared shapes were compared with each other
    and with the archive's own sizes: one never expands to more than it declares, and may not declare more than 1,032
    times its compressed bytes. An archive may have 64 members, each name once. Names are looked at only: nothing is
    unpacked to disk. Nothing is ever unpickled. Values may be nan and inf.

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
        self._state = FileState.of(path)
        self._members = self._read_members()
        for needed in ("format", "shape", "data"):
            self._member(needed)
        self._format = self._read_format()
        for needed in _MEMBERS[self._format]:
            self._member(needed)
        self._shape = self._read_shape()
        self._check_shapes()
        options.check_rows(self.name, self._shape[0], prod(self._member("data").header.shape))
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
        self._state.check(self._path)
        with ExitStack() as stack:
            yield from self._parts(stack, max_bytes)
        self._state.check(self._path)

    def _parts(self, stack: ExitStack, max_bytes: int) -> Iterator[Block | Triples]:
        data = self._member("data")
        if self._format == "dia":
            triples = layouts.dia_triples(
                self.name,
                self._member("offsets").small(),
                data.reader(stack, prod(data.header.shape)),
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
            triples = make(self.name, *reads, shape=self._shape, n_entries=n, dtype=self._dtype, max_bytes=max_bytes)
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
        members: dict[str, _Member] = {}
        with ExitStack() as stack, _damage(f"{self._path}: not a sound .npz archive"):
            with self._path.open("rb") as file:
                if file.read(4) != _MAGIC:
                    raise SourceError(f"{self._path}: not a sound .npz archive: does not start as one")
            archive = _opened(self._path, stack)
            infos = archive.infolist()
            if len(infos) > _MOST_MEMBERS:
                raise SourceError(f"{self._path}: has {len(infos)} members, expected at most {_MOST_MEMBERS}")
            for info in infos:
                plain = info.filename.removesuffix(".npy")
                if not plain.isidentifier() or not plain.isascii():
                    raise SourceError(f"{self._path}: has a member {shown(info.filename)}, expected names as of numpy")
                name = f"{self._path}: {info.filename}"
                if plain in members:
                    raise SourceError(f"{name}: is in the archive twice")
                if info.flag_bits & 1:
                    raise SourceError(f"{name}: is encrypted")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise SourceError(f"{name}: compression method {info.compress_type}, expected stored or deflated")
                most = info.compress_size * (_DEFLATE if info.compress_type == zipfile.ZIP_DEFLATED else 1)
                if info.file_size > most or info.compress_size > self._state.size:
                    raise SourceError(
                        f"{name}: declares {info.file_size} bytes, more than {info.compress_size} can hold"
                    )
                with archive.open(info) as file:
                    header = read_header(name, file, info.file_size)
                members[plain] = _Member(self._path, info, header)
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
        # as bytes: text of numpy may hold numbers that are no characters
        text = found.tobytes().replace(b"\0", b"").decode("latin-1")
        if text not in _MEMBERS:
            raise SourceError(f"{self.name}: is in scipy's format {shown(text)}, expected one of {', '.join(_MEMBERS)}")
        return text

    def _read_shape(self) -> tuple[int, int]:
        found = self._member("shape").small()
        if found.shape != (2,) or found.dtype.kind not in "iu":
            numbers = found.reshape(-1)[:9].tolist() if found.dtype.kind in "iuf" else f"of dtype {found.dtype}"
            raise SourceError(f"{self.name}: has shape {numbers}, expected two whole numbers: (rows, features)")
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
