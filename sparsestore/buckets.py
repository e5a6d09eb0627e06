"""Dicts of arrays on their way through a bucket sort: held, batched, and spilled to one file a bucket.

A dict has one array for each thing that travels with a row or an entry. What they are is the business of
`sparsestore.sort`; here they are moved and counted.
"""

from __future__ import annotations

import errno
import json
import resource
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader, BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore import storage
from sparsestore.errors import ResourceError

__all__ = [
    "COLUMN",
    "Arrays",
    "BucketFiles",
    "batched",
    "chained",
    "drained",
    "filled",
    "joined",
    "nbytes",
    "number_of_files",
    "power_below",
    "scratch_folder",
]

Array = NDArray[Any]
Arrays = dict[str, Array]

COLUMN = "column."  # sets columns apart from the arrays of the matrix
MAX_FILES = 256  # more would make the pieces written to each small and meet the limit of open files
UNKNOWN_FILES = 64  # where the input doesn't tell its size
BUFFER_BYTES = 64 << 10  # of a file: shorter arrays are written together
TEXT, TEXT_BYTES = "text.", "text-bytes."  # a column of strings travels as lengths (-1: missing) and utf-8


# ------------------------------------------------------------------------------------------------ dicts of arrays


def nbytes(arrays: Arrays) -> int:
    """Bytes of memory; a string counts with its characters and what Python adds to it."""
    total = 0
    for array in arrays.values():
        total += array.nbytes
        if array.dtype.kind == "O":
            total += sum(57 + len(text) for text in array.ravel() if isinstance(text, str))
    return total


def joined(pieces: deque[Arrays]) -> Arrays:
    """One dict of the concatenated arrays; empties `pieces`, an array at a time to save memory."""
    parts = list(pieces)
    pieces.clear()
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def filled(stream: Iterator[tuple[Arrays, int]], max_bytes: int) -> tuple[deque[Arrays], int, int]:
    """Items until they take more than `max_bytes` or the stream ends, their bytes, and the position after them."""
    held: deque[Arrays] = deque()
    n_bytes, position = 0, 0
    for arrays, position in stream:  # noqa: B007
        held.append(arrays)
        n_bytes += nbytes(arrays)
        if n_bytes > max_bytes:
            break
    return held, n_bytes, position


def drained(held: deque[Arrays]) -> Iterator[Arrays]:
    """Give up one item after the other, so that each can be freed when it has been used."""
    while held:
        yield held.popleft()


def chained(held: deque[Arrays], rest: Iterable[Arrays]) -> Iterator[Arrays]:
    """Give up the items held one after the other, then the rest."""
    yield from drained(held)
    yield from rest


def batched(stream: Iterable[Arrays], max_bytes: int) -> Iterator[deque[Arrays]]:
    """Items in batches of more than `max_bytes`, the last one of less; the taker empties each to free its memory."""
    batch: deque[Arrays] = deque()
    n_bytes = 0
    for arrays in stream:
        batch.append(arrays)
        n_bytes += nbytes(arrays)
        del arrays
        if n_bytes > max_bytes:
            yield batch
            batch, n_bytes = deque(), 0
    if batch:
        yield batch


# ------------------------------------------------------------------------------------------------------ bucket files


@contextmanager
def scratch_folder(scratch: Path, n_bytes: int | None) -> Iterator[Path]:
    """Give a fresh folder inside `scratch`, removed with all it holds; about `n_bytes` will be written to it."""
    made = not scratch.exists()
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        if n_bytes is not None:
            free = storage.free_disk_bytes(scratch)
            if free < n_bytes:
                raise ResourceError(
                    f"{scratch} has {free} bytes free, its bucket files will take about {n_bytes}: "
                    "free some, or pass a max_bytes that all fits in"
                )
        # not tempfile's, which calls itself for ever where the permission to remove a file is refused (Python 3.11)
        with storage.scratch_folder(scratch / f"sort-{uuid.uuid4().hex}") as folder:
            folder.mkdir()
            yield folder
    finally:
        if made:
            with suppress(OSError):  # another sort may be using it
                scratch.rmdir()


def number_of_files(n_bytes: int | None, bucket_bytes: int) -> int:
    """Power of two from 2 to 256: enough that buckets come out at half of `bucket_bytes`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = MAX_FILES if soft == resource.RLIM_INFINITY else soft // 2  # the other half is the caller's
    wanted = UNKNOWN_FILES if n_bytes is None else 2 * n_bytes // max(1, bucket_bytes) + 1
    return max(2, min(1 << (wanted - 1).bit_length(), MAX_FILES, power_below(max(2, spare))))


def power_below(n: int) -> int:
    """Largest power of two that is at most n."""
    return 1 << (n.bit_length() - 1)


class BucketFiles:
    """Files of frames, one a bucket. A frame is a dict of arrays: a line of JSON (names, dtypes, shapes), bytes."""

    def __init__(self, folder: Path, n_buckets: int) -> None:
        self.folder = folder
        self.dtypes: dict[str, np.dtype[Any]] = {}
        self._files: dict[int, BufferedWriter] = {}
        self._lengths: list[dict[str, int]] = [{} for _ in range(n_buckets)]
        self._bytes = [0] * n_buckets
        folder.mkdir(exist_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The time in which frames are appended; closes the files."""
        try:
            yield
            for file in self._files.values():
                with _named_disk_errors(self.folder):
                    file.flush()
        finally:
            with _named_disk_errors(self.folder), ExitStack() as stack:
                for file in self._files.values():
                    stack.callback(file.close)  # each, though one fails
                self._files.clear()

    def append(self, bucket: int, arrays: Arrays) -> None:
        """Append one frame to a bucket."""
        self._bytes[bucket] += nbytes(arrays)
        encoded = _encoded(arrays)
        lengths = self._lengths[bucket]
        for name, array in encoded.items():
            known = self.dtypes.get(name, array.dtype)
            self.dtypes[name] = np.promote_types(known, array.dtype)
            lengths[name] = lengths.get(name, 0) + len(array)
        head = json.dumps([[name, array.dtype.str, array.shape] for name, array in encoded.items()]).encode()
        with _named_disk_errors(self.folder):
            if bucket not in self._files:
                self._files[bucket] = BufferedWriter(FileIO(self._path(bucket), "wb"), BUFFER_BYTES)
            file = self._files[bucket]
            file.write(head + b"\n")
            for array in encoded.values():
                if array.size:
                    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def n_entries(self, bucket: int, name: str | None = None) -> int:
        """Length of one of a bucket's arrays, by default of the first."""
        lengths = self._lengths[bucket]
        return next(iter(lengths.values()), 0) if name is None else lengths.get(name, 0)

    def n_bytes(self, bucket: int) -> int:
        """Bytes of memory that a bucket's arrays take."""
        return self._bytes[bucket]

    def frames(self, bucket: int) -> Iterator[Arrays]:
        """Frames of a bucket in the order they were appended."""
        with _named_disk_errors(self.folder), self._path(bucket).open("rb") as file:
            while line := file.readline():
                arrays = {}
                for name, dtype, shape in json.loads(line):
                    arrays[name] = np.empty(shape, dtype)
                    _fill(file, arrays[name])
                yield _decoded(arrays)

    def load(self, bucket: int) -> Arrays:
        """A bucket's arrays, each in one piece, in the dtype that all frames of all buckets fit."""
        out: Arrays = {}
        at: dict[str, int] = {}
        if not self._lengths[bucket]:
            return {name: np.zeros(0, dtype) for name, dtype in self.dtypes.items()}
        with _named_disk_errors(self.folder), self._path(bucket).open("rb") as file:
            while line := file.readline():
                for name, dtype, shape in json.loads(line):
                    if name not in out:
                        out[name] = np.empty((self._lengths[bucket][name], *shape[1:]), self.dtypes[name])
                    start = at.get(name, 0)
                    at[name] = start + shape[0]
                    part = out[name][start : at[name]]
                    if part.dtype == dtype:
                        _fill(file, part)
                    else:
                        piece = np.empty(shape, dtype)
                        _fill(file, piece)
                        part[...] = piece
        return _decoded(out)

    def remove(self, bucket: int) -> None:
        """Give a bucket's disk space back."""
        self._path(bucket).unlink(missing_ok=True)

    def _path(self, bucket: int) -> Path:
        return self.folder / f"{bucket}.bin"


def _fill(file: BufferedReader, array: Array) -> None:
    """Read exactly the array's bytes into it."""
    if not array.size:
        return
    found = file.readinto(array.reshape(-1).view(np.uint8).data)
    if found != array.nbytes:
        raise OSError(errno.EIO, f"bucket file cut short: {found} of {array.nbytes} bytes", file.name)


@contextmanager
def _named_disk_errors(folder: Path) -> Iterator[None]:
    """Make errors name the folder, and a full disk one of resources."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = storage.free_disk_bytes(folder)
            raise ResourceError(f"no space left for bucket files in {folder} ({free} bytes free)") from error
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _encoded(arrays: Arrays) -> Arrays:
    """Arrays with those of strings replaced by two of numbers."""
    out: Arrays = {}
    for name, array in arrays.items():
        if array.dtype.kind != "O":
            out[name] = array
            continue
        if array.ndim != 1:
            raise ValueError(
                f"column {name.removeprefix(COLUMN)!r} of strings has shape {array.shape}, expected one a row"
            )
        texts: list[bytes] = []
        lengths = np.empty(len(array), np.int64)
        for i, text in enumerate(array):
            if isinstance(text, str):
                texts.append(text.encode("utf-8", "surrogatepass"))
                lengths[i] = len(texts[-1])
            elif text is None or text != text:  # NaN is how pandas marks a missing string
                lengths[i] = -1
            else:
                raise ValueError(f"column {name.removeprefix(COLUMN)!r} holds {text!r}, expected strings")
        out[TEXT + name] = lengths
        out[TEXT_BYTES + name] = np.frombuffer(b"".join(texts), np.uint8)
    return out


def _decoded(arrays: Arrays) -> Arrays:
    """The opposite of `_encoded`; missing strings are None."""
    out: Arrays = {}
    for name, array in arrays.items():
        if name.startswith(TEXT_BYTES):
            continue
        if not name.startswith(TEXT):
            out[name] = array
            continue
        name = name.removeprefix(TEXT)
        buffer = arrays[TEXT_BYTES + name].tobytes()
        texts = np.empty(len(array), object)
        at = 0
        for i, length in enumerate(array.tolist()):
            if length >= 0:
                texts[i] = buffer[at : at + length].decode("utf-8", "surrogatepass")
                at += length
        out[name] = texts
    return out
