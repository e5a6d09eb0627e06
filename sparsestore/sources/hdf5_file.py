"""An HDF5 file as a container of arrays: nothing is read beyond it, nothing believed of sizes that it only declares."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import SourceError
from sparsestore.sources.file import LONGEST_TEXT, damage, shown

__all__ = ["Hdf5File"]

Array = NDArray[Any]

_MOST_LINKS = 32
_MOST_ATTRIBUTE = 1 << 20
_GROWTH = 1 << 12  # by which what can not be compressed may grow
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_LONGEST_HEAP = 1 << 24
_REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
"""Of text, as it lies in a dataset."""
_HEADER = struct.Struct("<H6xQ")  # of an object of a heap: its number and length
_KNOWN = {32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2"}


class Hdf5File:
    """Groups and datasets of an open HDF5 file: see `containers.Container`.

    Soft links are followed inside the file. External links, virtual datasets and data kept in other files are refused,
    since they would have this process read whatever file they name. A dataset must be written in whole. HDF5's own
    library parses the file and decodes all filters but gzip, which is inflated here, never beyond the size of a chunk.
    """

    def __init__(self, name: str, file: Any, size: int, most: int) -> None:
        self.name = name
        self._file = file
        self._size = size
        self._most = most

    @classmethod
    @contextmanager
    def opened(cls, path: Path, most: int) -> Iterator[Hdf5File]:
        """Open a file, of which no chunk has more than `most` bytes."""
        h5py = _h5py()
        with damage(f"{path}: is no HDF5 file, or was cut short"):
            file = h5py.File(path, "r")
        with file:
            yield cls(str(path), file, path.stat().st_size, most)

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
            return list(found)

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of a dataset as it is declared."""
        found = self._at(path)
        return tuple(getattr(found, "shape", None) or ())

    def attribute(self, path: str, name: str) -> Any:
        """Give a str, a number or a list; other things, such as references, are as if they were not there."""
        found = self._at(path)
        with damage(f"{self.name}: {path or '/'}: attribute {name}"):
            if found is None or name not in found.attrs:
                return None
            id = found.attrs.get_id(name)
            if prod(id.shape) * id.dtype.itemsize > _MOST_ATTRIBUTE:
                raise SourceError(f"{self.name}: {path or '/'}: attribute {name} has shape {id.shape}: too large")
            value = found.attrs[name]
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, list):
            return [each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in value]
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return value if isinstance(value, (str, int, float)) else None

    def array(self, path: str) -> _Dataset:
        """Give a dataset."""
        found = self._at(path)
        if found is None or not hasattr(found, "shape"):
            what = "has no dataset" if found is None else "has a group, expected a dataset"
            raise SourceError(f"{self.name}: {what} {shown(path, 80)}")
        with damage(f"{self.name}: {path}"):
            return _Dataset(f"{self.name}: {path}", found, self._size, self._most)

    def _at(self, path: str) -> Any:
        """Object at a path, each link of which is looked at before it is followed; None where there is nothing."""
        import h5py

        here, todo, n_links = self._file, [part for part in path.split("/") if part], 0
        while todo:
            if not isinstance(here, h5py.Group):
                return None
            name = todo.pop(0)
            with damage(f"{self.name}: {path}"):
                link = here.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    raise SourceError(
                        f"{self.name}: {path}: is a link to {shown(link.path)} of the file {shown(link.filename)}: "
                        "other files are not read, convert that one"
                    )
                if isinstance(link, h5py.SoftLink):
                    n_links += 1
                    if n_links > _MOST_LINKS:
                        raise SourceError(f"{self.name}: {path}: more than {_MOST_LINKS} links one after the other")
                    todo = [part for part in link.path.split("/") if part] + todo
                    here = self._file if link.path.startswith("/") else here
                elif link is None:
                    return None
                else:
                    here = here[name]
        return here if isinstance(here, (h5py.Group, h5py.Dataset)) else None


class _Dataset:
    """A dataset that was found fit to be read: see `containers.Stored`."""

    def __init__(self, name: str, dataset: Any, size: int, most: int) -> None:
        self.name = name
        self._dataset = dataset
        self._filters: list[int] = []
        self._heaps = set[int]()  # that the last read was of
        self._last: tuple[tuple[int, ...], Array] | None = None  # a chunk that was inflated
        if dataset.shape is None:
            raise SourceError(f"{name}: is empty, it has not even a shape")
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype
        # elements as they lie in the file: of text its length, and where it is
        self._stored_type = np.dtype("V16") if self.dtype.kind == "O" else self.dtype
        self._chunks: tuple[int, ...] | None = dataset.chunks
        self.chunk = self._chunks[0] if self._chunks else 1
        self._check_dtype()
        self._check_written(size)
        if self._chunks:
            n_bytes = prod(self._chunks) * self._stored_type.itemsize
            if n_bytes > most:
                raise SourceError(
                    f"{name}: has chunks of {n_bytes} bytes, which are read whole, expected at most {most}: give a "
                    "larger max_bytes, or write it with smaller chunks (h5repack -l)"
                )
            self._check_filters()

    def rows(self, start: int, stop: int) -> Array:
        """Read elements start to stop along the first axis."""
        with damage(f"{self.name}: rows {start} to {stop}: damaged"):
            if self.dtype.kind == "O" and start < stop:
                self._check_lengths(start, stop)
            if _DEFLATE not in self._filters or self.dtype.kind == "O" or start >= stop:
                found: Array = self._dataset[start:stop]
                return found
            return self._inflated_rows(start, stop)

    def _check_lengths(self, start: int, stop: int) -> None:
        """Text may lie anywhere, many strings at one place: how long it is stands in the file, so look before reading.

        Where the chunks have other filters than gzip they are believed.
        """
        if any(code > _FLETCHER32 for code in self._filters):
            return
        if self._chunks:
            found = self._inflated_rows(start, stop)
        elif (offset := self._dataset.id.get_offset()) is None:
            return
        else:
            with Path(self._dataset.file.filename).open("rb") as file:
                file.seek(offset + 16 * start)
                found = np.frombuffer(file.read(16 * (stop - start)), self._stored_type)
        references = np.ascontiguousarray(found).view(_REFERENCE).reshape(-1)
        lengths = references["length"]
        if len(lengths) and int(lengths.max()) > LONGEST_TEXT:
            raise SourceError(f"{self.name}: has text of {lengths.max()} bytes, expected at most {LONGEST_TEXT}")
        self._check_heaps(np.unique(references["heap"][lengths > 0]).tolist())

    def _check_heaps(self, addresses: list[int]) -> None:
        """HDF5 goes round in a circle where a heap of text says that nothing is left, and nothing of that."""
        base = self._dataset.file.id.get_create_plist().get_userblock()
        with Path(self._dataset.file.filename).open("rb") as file:
            for address in addresses:
                if address in self._heaps:
                    continue
                file.seek(base + address)
                head = file.read(16)
                size = int.from_bytes(head[8:16], "little")
                if head[:4] != b"GCOL" or not 16 <= size <= _LONGEST_HEAP:
                    raise SourceError(f"{self.name}: damaged: no heap of text is at byte {address}, where it should be")
                heap, at = file.read(size - 16), 0
                while at + 16 <= len(heap):
                    number, length = _HEADER.unpack_from(heap, at)
                    if not number and not length:
                        raise SourceError(f"{self.name}: damaged: the heap of text at byte {address} has no end")
                    at += 16 + (length + 7) // 8 * 8 if number else length
        self._heaps = set(addresses)

    def _inflated_rows(self, start: int, stop: int) -> Array:
        chunks = self._chunks or ()
        out = np.empty((stop - start, *self.shape[1:]), self._stored_type)
        others = [range(0, length, chunk) for length, chunk in zip(self.shape[1:], chunks[1:], strict=True)]
        for first in range(start - start % chunks[0], stop, chunks[0]):
            for rest in np.ndindex(*[len(other) for other in others]):
                at = (first, *(other[i] for other, i in zip(others, rest, strict=True)))
                low, high = max(start, first), min(stop, first + chunks[0])
                ends = zip(at[1:], chunks[1:], self.shape[1:], strict=True)
                inner = tuple(slice(a, min(a + chunk, length)) for a, chunk, length in ends)
                cut = (slice(low - first, high - first), *(slice(0, part.stop - part.start) for part in inner))
                out[(slice(low - start, high - start), *inner)] = self._chunk(at)[cut]
        return out

    def _chunk(self, at: tuple[int, ...]) -> Array:
        """A chunk, inflated to its declared size and no further; the last one is kept, as the next read may want it."""
        if self._last is not None and self._last[0] == at:
            return self._last[1]
        self._last = None
        chunks, width = self._chunks or (), self._stored_type.itemsize
        n_bytes = prod(chunks) * width
        stored = self._dataset.id.get_chunk_info_by_coord(at).size
        if stored > n_bytes + n_bytes // 8 + _GROWTH:
            raise SourceError(f"{self.name}: the chunk at {at} is stored as {stored} bytes, expected about {n_bytes}")
        skipped, raw = self._dataset.id.read_direct_chunk(at)
        for number, code in reversed(list(enumerate(self._filters))):
            if skipped >> number & 1 or code == _FLETCHER32:
                continue  # the sum's 4 bytes at the end are left over; zlib has a sum of its own
            if code == _DEFLATE:
                inflate = zlib.decompressobj()
                raw = inflate.decompress(raw, n_bytes + 1)
                if len(raw) != n_bytes or not inflate.eof:
                    more = "more" if len(raw) > n_bytes else len(raw)
                    raise SourceError(f"{self.name}: the chunk at {at} has {more} bytes, expected {n_bytes}")
            else:
                raw = np.frombuffer(raw, np.uint8)[:n_bytes].reshape(width, -1).T.tobytes()
        chunk = np.frombuffer(raw, self._stored_type, prod(chunks)).reshape(chunks)
        self._last = at, chunk
        return chunk

    def _check_dtype(self) -> None:
        """Numbers, text, or records of these; HDF5 has much more."""
        fields = self.dtype.fields
        for dtype in [self.dtype] if fields is None else [field[0] for field in fields.values()]:
            base = dtype.subdtype[0] if dtype.subdtype else dtype
            known = base.kind in "biufS" or (
                fields is None and base.kind == "O" and dict(base.metadata or {}).get("vlen") in (str, bytes)
            )
            if not known or dtype.itemsize > LONGEST_TEXT:
                raise SourceError(f"{self.name}: is of dtype {shown(str(dtype), 80)}, expected numbers or text")

    def _check_written(self, size: int) -> None:
        """A file of some bytes can declare any shape."""
        dataset, created = self._dataset, self._dataset.id.get_create_plist()
        if dataset.is_virtual:
            raise SourceError(f"{self.name}: is a virtual dataset, whose data are in other files: they are not read")
        if created.get_external_count():
            other = shown(created.get_external(0)[0])
            raise SourceError(f"{self.name}: has its data in another file, {other}, which is not read")
        n_bytes, stored = prod(self.shape) * self._stored_type.itemsize, dataset.id.get_storage_size()
        if stored > size:
            raise SourceError(f"{self.name}: has {stored} bytes of data, but the file has {size}: it was cut short")
        if not self._chunks:
            if stored < n_bytes:
                raise SourceError(f"{self.name}: has shape {self.shape}, but {stored} of its {n_bytes} bytes of data")
            return
        wanted = prod(-(-length // chunk) for length, chunk in zip(self.shape, self._chunks, strict=True))
        found = dataset.id.get_num_chunks() if wanted else 0
        if found < wanted:
            raise SourceError(
                f"{self.name}: has shape {self.shape}, but {found} of its {wanted} chunks were written: it was cut "
                "short, or never filled"
            )

    def _check_filters(self) -> None:
        """All filters must be there; gzip may stand where it can be undone here."""
        import h5py

        found = self._dataset.id.get_type()
        created = self._dataset.id.get_create_plist()
        self._filters = [created.get_filter(number)[0] for number in range(created.get_nfilters())]
        for code in self._filters:
            if not h5py.h5z.filter_avail(code):
                with suppress(ImportError):
                    import hdf5plugin  # noqa: F401  # makes its filters known
            if not h5py.h5z.filter_avail(code):
                raise SourceError(
                    f"{self.name}: is compressed with filter {code} ({_KNOWN.get(code, 'unknown')}), which this HDF5 "
                    "lacks: pip install hdf5plugin, or write the file with gzip (h5repack -f GZIP=1)"
                )
        plain = [code for code in self._filters if code != _FLETCHER32]
        if _DEFLATE in plain and (plain not in ([_DEFLATE], [_SHUFFLE, _DEFLATE]) or self._filters[0] == _FLETCHER32):
            raise SourceError(
                f"{self.name}: has the filters {self._filters}, expected gzip (1), or shuffle (2) and gzip"
            )
        if _DEFLATE in plain and self.dtype.kind in "iuf" and h5py.h5t.py_create(self.dtype) != found:
            raise SourceError(f"{self.name}: has numbers of an uncommon form, expected those of {self.dtype}")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need h5py: pip install "sparsestore[hdf5]"') from error
    return h5py
