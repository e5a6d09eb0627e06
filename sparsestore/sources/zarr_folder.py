"""A zarr hierarchy of format 2 or 3, in a folder or a zip file, as a container of arrays; zarr-python reads it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import SourceError
from sparsestore.sources.file import damage, shown

__all__ = ["ZarrFolder"]

Array = NDArray[Any]

_CHUNKS = 1024  # that may be missing: those of zeros alone need not be written
_DEFLATE = 1032  # a byte of a zip file makes at most so many
# codecs that decode bytes and nothing else: numcodecs has one that unpickles, which runs code
_CODECS = {"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd", "shuffle", "delta", "crc32", "crc32c"}
_CODECS |= {"bytes", "transpose", "sharding_indexed", "vlen-utf8", "vlen-bytes"}


class ZarrFolder:
    """Groups and arrays of a zarr hierarchy, with consolidated metadata or without: see `containers.Container`.

    zarr-python decodes up to ten chunks at a time, each of which may have `most` bytes. Codecs that could run code are
    refused. What a compressed chunk expands to is its codec's business.
    """

    def __init__(self, name: str, root: Any, most: int) -> None:
        self.name = name
        self._root = root
        self._most = most

    @classmethod
    @contextmanager
    def opened(cls, path: Path, most: int) -> Iterator[ZarrFolder]:
        """Open a folder or a zip file, of which no chunk has more than `most` bytes."""
        try:
            import zarr
            from zarr.storage import LocalStore, ZipStore
        except ImportError as error:
            raise ImportError('zarr folders need zarr-python: pip install "sparsestore[zarr]"') from error

        if path.is_file():
            _check_zip(path, most)
        store = ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True)
        try:
            with damage(f"{path}: has no zarr hierarchy that can be read"):
                try:
                    root = zarr.open_group(store, mode="r")
                except FileNotFoundError as error:
                    raise SourceError(f"{path}: has no zarr group: {error}") from None
            yield cls(str(path), root, most)
        finally:
            store.close()

    def kind(self, path: str) -> str:
        """Tell what is there."""
        found = self._at(path)
        return "" if found is None else "array" if hasattr(found, "shape") else "group"

    def children(self, path: str) -> list[str]:
        """Names in a group."""
        found = self._at(path)
        if found is None or hasattr(found, "shape"):
            return []
        with damage(f"{self.name}: {path or '/'}"):
            return sorted(found.keys())

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of an array as it is declared."""
        return tuple(getattr(self._at(path), "shape", ()))

    def attribute(self, path: str, name: str) -> Any:
        """Give an attribute, which is JSON."""
        found = self._at(path)
        return None if found is None else found.attrs.get(name)

    def array(self, path: str) -> _Array:
        """Give an array."""
        found = self._at(path)
        if found is None or not hasattr(found, "shape"):
            what = "has no array" if found is None else "has a group, expected an array"
            raise SourceError(f"{self.name}: {what} {shown(path, 80)}")
        with damage(f"{self.name}: {path}"):
            return _Array(f"{self.name}: {path}", found, self._most)

    def _at(self, path: str) -> Any:
        parts = [part for part in path.split("/") if part]
        if any(part in (".", "..") for part in parts):
            raise SourceError(f"{self.name}: {shown(path, 80)} leads out of the folder")
        if not parts:
            return self._root
        with damage(f"{self.name}: {path}"):
            try:
                return self._root["/".join(parts)]
            except KeyError:
                return None


class _Array:
    """An array that was found fit to be read: see `containers.Stored`."""

    def __init__(self, name: str, array: Any, most: int) -> None:
        self.name = name
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(object) if array.dtype.kind == "T" else array.dtype
        if self.dtype.kind not in "biufSUO":
            raise SourceError(f"{name}: is of dtype {shown(str(self.dtype), 80)}, expected numbers or text")
        unknown = sorted({codec for codec in _codecs(array.metadata.to_dict()) if codec not in _CODECS})
        if unknown:
            raise SourceError(f"{name}: has the codecs {', '.join(map(shown, unknown))}, which are not read")
        self.chunk = array.chunks[0] if array.chunks else 1
        n_bytes = prod(array.chunks) * max(1, self.dtype.itemsize)
        if n_bytes > most:
            raise SourceError(
                f"{name}: has chunks of {n_bytes} bytes, which are read whole, expected at most {most}: give a larger "
                "max_bytes, or write it with smaller chunks"
            )
        if array.nchunks > _CHUNKS and array.nchunks > array.nbytes_stored():
            raise SourceError(
                f"{name}: has shape {self.shape}, but its {array.nchunks} chunks take {array.nbytes_stored()} bytes: "
                "most were never written"
            )
        self._last = 0, np.empty(0, array.dtype)  # of the chunk that was cut last: the next read wants it

    def rows(self, start: int, stop: int) -> Array:
        """Read elements start to stop along the first axis."""
        with damage(f"{self.name}: rows {start} to {stop}: damaged"):
            if len(self.shape) != 1:
                return np.asarray(self._array[start:stop])
            first, held = self._last
            if not first <= start <= first + len(held):
                first, held = start, held[:0]
            more = first + len(held)
            if stop > more:
                upto = min(-(-stop // self.chunk) * self.chunk, self.shape[0])
                held = np.concatenate([held[start - first :], np.asarray(self._array[more:upto])])
                first = start
            out, rest = held[start - first : stop - first], held[stop - first :]
            self._last = stop, rest if len(rest) > len(held) // 2 else rest.copy()
            return out


def _codecs(found: Any) -> Iterator[str]:
    """Names of all codecs, filters and compressors in an array's metadata."""
    if isinstance(found, dict):
        for key in ("filters", "codecs", "index_codecs"):
            for each in found.get(key) or ():
                yield str(each.get("id", each.get("name"))).removeprefix("numcodecs.")
                yield from _codecs(each.get("configuration"))
        if found.get("compressor"):
            yield str(found["compressor"].get("id"))


def _check_zip(path: Path, most: int) -> None:
    """Members of a zip file are read whole."""
    with damage(f"{path}: is no sound zip file"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            held = min(info.file_size, _DEFLATE * info.compress_size)
            if info.compress_type != zipfile.ZIP_STORED and held > 2 * most:
                raise SourceError(
                    f"{path}: {shown(info.filename)}: expands to {held} bytes, expected {2 * most} at most"
                )
            if info.flag_bits & 1:
                raise SourceError(f"{path}: {shown(info.filename)}: is encrypted")
