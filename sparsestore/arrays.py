"""One zarr v3 array on disk: written chunk by chunk in bounded memory, read by chunk, piece or map, every byte checked.

Only sharded arrays cut along their first axis. The bytes are those of the Zarr v3 core specification and its sharding
codec, so any zarr reader opens them; docs/decisions/0002 says why zarr-python is not used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsestore.checksum import PIECE, crc32c, piece_crc32c
from sparsestore.documents import dump
from sparsestore.errors import CorruptStoreError
from sparsestore.forking import Lock, imported
from sparsestore.format import ObjectEntry
from sparsestore.kernels import checks, frames
from sparsestore.layout import CHUNK, SHARD, chunk_and_shard
from sparsestore.parallel import over_ranges
from sparsestore.storage import Advice, LocalStorage, ObjectWriter
from sparsestore.zarr_format import ArraySpec, Codec

__all__ = ["ArrayReader", "ArrayWriter", "decode", "size_problem"]

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
_ABSENT = 2**64 - 1  # the sharding codec's mark of a chunk that is not there
_GAP = 1 << 16  # a disk reads over this as fast as it would seek
_MOST_RUNS = 1 << 12
_STRING_CHUNK_BYTES = 1 << 28
_ROWS = 1 << 20  # looked at in one call: for each there must be room for two numbers
_LEAST_READ = (1 << 18) // PIECE  # pieces for which a thread that reads them is worth starting
_READERS = 2  # threads that mostly wait for the disk: more of them only wait for each other
_LEAST_PIECES = (2 << 20) // PIECE  # for which a thread is worth starting
_LEAST_ELEMENTS = 1 << 17  # to decode, for which a thread is worth starting
_TURN_ELEMENTS = 1 << 18  # decoded before they are checked: still in the processor's cache
_FEW = 64  # rows of a run that are faster copied as one than one by one
_TAKEN_BYTES = 32 << 20  # decoded at once of chunks of which few rows are wanted
_STRING_BYTES = 64  # of a string, about, as an object of Python


class ArrayWriter:
    """Writes one array front to back. Holds one inner chunk.

    Parameters
    ----------
    storage : LocalStorage
    prefix : str
        Key of the array, e.g. ``segments/<id>/X/indices``.
    dtype : str
        Stored dtype, or "string".
    tail : tuple of int
        Shape after the first axis.
    codec : Codec
    chunk, shard : int
        Most rows of an inner chunk and of a shard; a short array gets shorter ones.
    fill_value : scalar
        What the end of the last inner chunk is padded with.
    """

    def __init__(
        self,
        storage: LocalStorage,
        prefix: str,
        dtype: str,
        tail: tuple[int, ...] = (),
        codec: Codec | None = None,
        chunk: int = CHUNK,
        shard: int = SHARD,
        fill_value: Any = 0,
    ) -> None:
        self._storage = storage
        self.prefix = prefix
        self._limits = (chunk, shard)
        self._spec = ArraySpec((0, *tail), dtype, chunk, shard, codec or Codec(), fill_value)
        self._pending = self._empty(0)
        self._filled = 0
        self._file: ObjectWriter | None = None
        self._index: list[tuple[int, int]] = []
        self.length = 0
        self.objects: list[ObjectEntry] = []
        self._checks: list[NDArray[np.uint32]] = []

    def _empty(self, n: int) -> Array:
        if self._spec.dtype == "string":
            return np.full(n, "", object)
        return np.empty((n, *self._spec.shape[1:]), self._spec.dtype)

    @property
    def checks(self) -> NDArray[np.uint32]:
        """crc32c of each 16 KiB piece (uncompressed) or inner chunk (compressed) written so far."""
        return np.concatenate(self._checks) if self._checks else np.empty(0, np.uint32)

    def append(self, values: Array) -> None:
        """Write more rows of the array; they are copied, or on disk, when this returns."""
        chunk = self._spec.chunk
        at, n = 0, len(values)
        self.length += n
        while at < n:
            if self._filled == 0 and n - at >= chunk:
                room = self._spec.shard - len(self._index) * chunk
                stop = at + min((n - at) // chunk * chunk, room)
                self._write_chunks(values[at:stop])
                at = stop
                continue
            if len(self._pending) < min(chunk, self._filled + n - at):
                self._grow(self._filled + n - at)
            stop = min(n, at + chunk - self._filled)
            self._pending[self._filled : self._filled + stop - at] = values[at:stop]
            self._filled += stop - at
            at = stop
            if self._filled == chunk:
                self._write_chunks(self._pending)
                self._filled = 0

    def _grow(self, needed: int) -> None:
        # a small segment must not pay for a whole chunk of each of its arrays
        pending = self._empty(min(self._spec.chunk, max(1024, 1 << (needed - 1).bit_length())))
        pending[: self._filled] = self._pending[: self._filled]
        self._pending = pending

    def _write_chunks(self, values: Array) -> None:
        """Write whole chunks, all of the current shard."""
        if self._file is None:
            self._file = self._storage.create(f"{self.prefix}/{self._spec.shard_key(len(self.objects))}")
        chunk = self._spec.chunk
        if self._spec.codec.name == "none" and self._spec.dtype != "string":
            payload = np.ascontiguousarray(values, self._spec.dtype).reshape(-1).view(np.uint8)
            size = chunk * self._spec.itemsize
            for start in range(0, len(payload), size):
                self._index.append((self._file.length + start, size))
            self._checks.append(piece_crc32c(payload))
            self._file.write(payload, self._checks[-1])
        else:
            encoded = [b""] * (len(values) // chunk)

            def work(start: int, stop: int) -> None:
                for at in range(start, stop):
                    encoded[at] = _encode(values[at * chunk : (at + 1) * chunk], self._spec)

            over_ranges(work, len(encoded), max(_LEAST_ELEMENTS // chunk, 1))
            for part in encoded:
                self._index.append((self._file.length, len(part)))
                self._checks.append(np.array([crc32c(part)], np.uint32))
                self._file.write(part)
        if len(self._index) * chunk == self._spec.shard:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._file is None:
            return
        index = np.full((self._spec.shard // self._spec.chunk, 2), _ABSENT, "<u8")
        index[: len(self._index)] = self._index
        payload = index.tobytes()
        self._file.write(payload + crc32c(payload).to_bytes(4, "little"))
        self._file.close()
        self.objects.append(ObjectEntry(self._file.key, self._file.length, self._file.crc32c))
        self._file, self._index = None, []

    def finish(self, attributes: dict[str, Any] | None = None) -> ArraySpec:
        """Write what is pending, the last shard's index and zarr.json; gives the array's final description."""
        chunk, shard = chunk_and_shard(self.length, *self._limits)
        if self._file is None and not self.objects:
            self._spec = _replace(self._spec, chunk=chunk)  # nothing is on disk yet: still free to choose
        if self._filled:
            padded = self._empty(self._spec.chunk)
            padded[: self._filled] = self._pending[: self._filled]
            padded[self._filled :] = self._spec.fill_value
            if not self.objects:
                self._spec = _replace(self._spec, shard=max(shard, self._spec.chunk))
            self._write_chunks(padded)
            self._filled = 0
        elif not self.objects:
            self._spec = _replace(self._spec, shard=max(shard, self._spec.chunk))
        self._close_shard()
        self._pending = self._empty(0)
        self._spec = _replace(self._spec, shape=(self.length, *self._spec.shape[1:]), attributes=dict(attributes or {}))
        document = self._storage.put(f"{self.prefix}/zarr.json", dump(self._spec.to_document()))
        self.objects.append(ObjectEntry(document.key, document.length, document.crc32c))
        return self._spec

    def discard(self) -> None:
        """Let go of the open file, if any."""
        if self._file is not None:
            self._file.discard()
            self._file = None


def _replace(spec: ArraySpec, **changes: Any) -> ArraySpec:
    fields = {name: getattr(spec, name) for name in ArraySpec.__dataclass_fields__}
    return ArraySpec(**{**fields, **changes})


def _encode(values: Array, spec: ArraySpec) -> bytes:
    """Bytes of one inner chunk."""
    if spec.dtype == "string":
        payload: Any = bytes(imported("numcodecs.vlen").VLenUTF8().encode(values))
        if len(payload) > _STRING_CHUNK_BYTES:
            raise ValueError(f"{len(values)} strings take {len(payload)} bytes, expected at most {_STRING_CHUNK_BYTES}")
    else:
        payload = np.ascontiguousarray(values, spec.dtype)
    if spec.codec.name == "zstd":
        return bytes(imported("numcodecs.zstd").compress(payload, spec.codec.clevel))
    if spec.codec.name == "blosc":
        blosc = imported("numcodecs.blosc")
        shuffle = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
        mode = shuffle[spec.codec.shuffle]
        try:
            return bytes(blosc.compress(payload, spec.codec.cname.encode(), spec.codec.clevel, mode, 0))
        except BaseException:
            _let_go(blosc)
            raise
    return bytes(payload)


def _let_go(blosc: Any) -> None:
    """An interrupt that came as numcodecs took its lock left it taken: whoever compresses next would wait for ever."""
    lock = blosc.get_mutex() if hasattr(blosc, "get_mutex") else getattr(blosc, "mutex", None)  # 0.17.1 has none
    if lock is not None and lock._semlock._is_mine():
        lock.release()


class _Encoded(NamedTuple):
    """Chunks of one shard, not decoded yet."""

    shard: int
    numbers: NDArray[np.int64]
    source: Bytes
    starts: NDArray[np.int64]
    """Where they start in `source`."""
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]
    """Where they start in the shard."""


class ArrayReader:
    """Reads one array of an immutable segment. Methods may be called from several threads at once.

    Parameters
    ----------
    storage : LocalStorage
    prefix : str
        Key of the array in the storage.
    spec : ArraySpec
    entries : mapping of str to ObjectEntry
        The array's objects by key in the storage: their lengths are checked when the array is opened.
    checks : (pieces or chunks,) uint32 array or callable that gives it, or None
        None: the array is small and checked by the crc32c of its whole objects.
    check : str
        "first", "always" or "never".
    describe : callable (start, stop) -> str
        Says which rows of the store the elements start to stop belong to; for messages.
    n_features : int, optional
        The elements are feature numbers: all that are read must be from 0 to this. That is checked when they are first
        touched, whatever `check` says, and each time where it says "always".
    mmap : bool
        Encoded chunks are decoded straight from a map; else they are read first.
    why_missing : callable
        What to say of an object that is not there.
    """

    def __init__(
        self,
        storage: LocalStorage,
        prefix: str,
        spec: ArraySpec,
        entries: Mapping[str, ObjectEntry],
        checks: Callable[[], NDArray[np.uint32]] | None,
        check: str,
        describe: Callable[[int, int], str],
        n_features: int | None = None,
        mmap: bool = True,
        why_missing: Callable[[], str] = lambda: "the object is missing",
    ) -> None:
        self._why_missing = why_missing
        self.storage = storage
        self.prefix = prefix
        self.spec = spec
        self._check = check
        self._describe = describe
        self._load_checks = checks
        self._checks: NDArray[np.uint32] | None = None
        self._lock = Lock()
        self._indexes: dict[int, NDArray[np.uint64]] = {}
        self._mapped: Array | None = None
        self._mmap = mmap
        self._stored: dict[int, Bytes] = {}
        self._entries: list[ObjectEntry] = []
        for number in range(spec.n_shards):
            entry = entries.get(f"{prefix}/{spec.shard_key(number)}")
            if entry is None:
                raise CorruptStoreError(f"{storage.name}: {prefix} has no shard {number} in its segment.json")
            self._entries.append(entry)
        self._raw = spec.codec.name == "none" and spec.dtype != "string"
        self._check_sizes()
        self.n_pieces = -(-spec.n_chunks * spec.chunk * spec.itemsize // PIECE) if self._raw else 0
        self._verified = np.zeros(self.n_pieces if self._raw else spec.n_chunks, bool)
        self._n_features = 0
        self._limit: int | None = None  # all elements, seen as unsigned, must be below it: a negative one is not
        if n_features is not None:
            if spec.dtype == "string" or np.dtype(spec.dtype).kind not in "iu":
                raise CorruptStoreError(f"{storage.name}: {prefix} has {spec.dtype}, expected feature numbers")
            known = np.iinfo(spec.dtype)
            self._n_features = n_features
            if known.min < 0 or known.max >= n_features:
                self._limit = min(n_features, known.max + 1)
        self._known = np.zeros(spec.n_chunks, bool)  # chunks that were checked when they were decoded
        self._sound = check == "never" and self._limit is None

    def _check_sizes(self) -> None:
        """Compare what the array declares with the lengths of its objects, before memory is made for it."""
        for number, entry in enumerate(self._entries):
            reason = size_problem(self.spec, number, entry.length)
            if reason:
                raise self._fail(number, 0, entry.length, self._elements_of(number), reason)

    def _elements_of(self, number: int) -> tuple[int, int]:
        """Elements of a shard."""
        return number * self.spec.shard, min((number + 1) * self.spec.shard, self.spec.shape[0])

    def _fail(self, number: int, start: int, stop: int, elements: tuple[int, int], reason: str) -> CorruptStoreError:
        key = self._entries[number].key
        rows = self._describe(*elements)
        return CorruptStoreError(f"{self.storage.name}: {key}, bytes {start} to {stop} ({rows}): {reason}")

    def _index(self, number: int) -> NDArray[np.uint64]:
        """(offset, length) of each inner chunk of a shard; checked once."""
        with self._lock():
            if number in self._indexes:
                return self._indexes[number]
        entry = self._entries[number]
        spec = self.spec
        per_shard = spec.shard // spec.chunk
        present = min(per_shard, spec.n_chunks - number * per_shard)
        elements = self._elements_of(number)
        start = entry.length - (per_shard * 16 + 4)
        stored = self._stored.get(number)
        payload = self._read(number, start, entry.length, elements) if stored is None else stored[start:].tobytes()
        if crc32c(payload[:-4]) != int.from_bytes(payload[-4:], "little"):
            raise self._fail(number, start, entry.length, elements, "the shard's index does not match its crc32c")
        index = np.frombuffer(payload[:-4], "<u8").reshape(-1, 2)
        offsets, lengths = index[:present, 0], index[:present, 1]
        # a chunk that is not there has both numbers 2**64 - 1; the difference, unlike a sum, can not wrap around
        if (offsets > start).any() or (lengths > np.uint64(start) - offsets).any():
            raise self._fail(number, start, entry.length, elements, "the index names chunks outside the shard")
        if self._raw:
            expected = np.arange(present, dtype=np.uint64) * np.uint64(spec.chunk * spec.itemsize)
            if (
                not (index[:present, 0] == expected).all()
                or not (index[:present, 1] == spec.chunk * spec.itemsize).all()
            ):
                raise self._fail(number, start, entry.length, elements, "uncompressed chunks do not lie end to end")
        with self._lock():
            self._indexes[number] = index
        return index

    def _read(self, number: int, start: int, stop: int, elements: tuple[int, int]) -> bytes:
        """Bytes of a shard, which may have gone or shrunk since its length was checked."""
        try:
            return self.storage.read_range(self._entries[number].key, start, stop)
        except (FileNotFoundError, CorruptStoreError) as error:
            raise self._unread(number, start, stop, elements, error) from None

    def _read_into(self, number: int, parts: list[tuple[int, Bytes]], direct: bool) -> None:
        """Bytes of a shard from some places on, into arrays."""
        start, stop = parts[0][0], parts[-1][0] + len(parts[-1][1])
        first = number * self.spec.shard
        elements = first + start // self.spec.itemsize, min(first + -(-stop // self.spec.itemsize), self.spec.shape[0])
        try:
            self.storage.read_into(self._entries[number].key, parts, direct=direct)
        except (FileNotFoundError, CorruptStoreError) as error:
            raise self._unread(number, start, stop, elements, error) from None

    def _unread(
        self, number: int, start: int, stop: int, elements: tuple[int, int], error: Exception
    ) -> CorruptStoreError:
        """Bytes of a shard that could not be read."""
        reason = self._why_missing() if isinstance(error, FileNotFoundError) else str(error)
        return self._fail(number, start, stop, elements, reason)

    def _expected(self, unit: int) -> int:
        return int(self._checksums()[unit])

    def _checksums(self) -> NDArray[np.uint32]:
        """Of each unit; read once."""
        with self._lock():
            if self._checks is None:
                if self._load_checks is None:
                    raise CorruptStoreError(f"{self.storage.name}: {self.prefix} has no checksums")
                checks, n = self._load_checks(), len(self._verified)
                if checks.dtype != np.uint32 or checks.shape != (n,):
                    raise CorruptStoreError(
                        f"{self.storage.name}: {self.prefix} has {len(checks)} checksums of {checks.dtype}, "
                        f"expected {n} of uint32"
                    )
                self._checks = checks
            return self._checks

    # ------------------------------------------------------------------ uncompressed

    def mapped(self) -> Array:
        """The whole array over its mapped shards, read-only; not checked: see `verify`."""
        with self._lock():
            if self._mapped is not None:
                return self._mapped
        spec = self.spec
        per_shard = spec.shard // spec.chunk
        parts = []
        for number, entry in enumerate(self._entries):
            self._index(number)
            present = min(per_shard, spec.n_chunks - number * per_shard)
            parts.append((entry.key, present * spec.chunk * spec.itemsize))
        try:
            stored = self.storage.map(parts)
        except FileNotFoundError as error:
            raise self._unread(0, 0, parts[0][1], (0, spec.shape[0]), error) from None
        with self._lock():
            self._mapped = stored
        return self._mapped

    def elements(self) -> Array:
        """The mapped array's elements, without the padding of the last chunk."""
        values = self.mapped().view(self.spec.dtype)
        return values.reshape(-1, *self.spec.shape[1:])[: self.spec.shape[0]]

    def verify(self, starts: NDArray[np.uint64], lengths: NDArray[np.int64]) -> None:
        """Check the mapped pieces that hold elements [starts[i], starts[i] + lengths[i]), those not checked before.

        Their crc32c, unless `check` is "never", and that feature numbers are in range. Ascending starts are fastest.

        Raises
        ------
        CorruptStoreError
        """
        for at in range(0, len(starts), _ROWS):
            if self._sound:
                return
            units = self._due(starts[at : at + _ROWS], lengths[at : at + _ROWS])
            if len(units):
                stored = self.mapped()
                elements = stored[: self.spec.shape[0] * self.spec.itemsize]
                self._check_pieces(stored, elements, units, units)

    def advise(self, starts: NDArray[np.uint64], lengths: NDArray[np.int64], advice: Advice) -> None:
        """Tell the system what will be done with elements [starts[i], starts[i] + lengths[i]) of the map, ascending.

        Runs of pieces with less than `_GAP` bytes between them are one; many runs are not worth a call each.
        """
        if advice is Advice.RANDOM:
            self.storage.advise(self.mapped(), 0, self.mapped().nbytes, advice)
            return
        itemsize = self.spec.itemsize
        # whole pieces: checks need these, and one page that is missing has the system read megabytes around it
        first = starts.astype(np.int64) * itemsize // PIECE * PIECE
        last = -(-(starts.astype(np.int64) + lengths) * itemsize // PIECE) * PIECE
        cuts = np.flatnonzero(first[1:] - last[:-1] > _GAP) + 1
        if len(cuts) >= _MOST_RUNS:
            return
        stored = self.mapped()
        begins, ends = first[np.append(0, cuts)].tolist(), last[np.append(cuts - 1, len(last) - 1)].tolist()
        for begin, end in zip(begins, ends, strict=True):
            self.storage.advise(stored, begin, min(end, stored.nbytes), advice)

    def _due(self, starts: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pieces that hold these elements and are to be checked, ascending."""
        n, itemsize = self.spec.shape[0], self.spec.itemsize
        units = np.empty(2 * len(starts) + int(lengths.sum()) * itemsize // PIECE, np.int64)
        found = checks.touched(starts, lengths, n, itemsize, self._verified, units)
        if found < 0:
            raise CorruptStoreError(f"{self.storage.name}: {self.prefix}: rows end past its {n} elements")
        units = units[:found]
        return units if bool((units[1:] > units[:-1]).all()) else np.unique(units)

    def pieces(self, units: NDArray[np.int64], out: Bytes | None = None, *, direct: bool = False) -> Bytes:
        """Bytes of the given 16 KiB pieces, ascending, end to end, read without a map and checked as `verify` does.

        They are read into `out` where that is given; with `direct` around the page cache.
        """
        if out is None:
            out = np.empty(len(units) * PIECE, np.uint8)
        into = out

        def read(start: int, stop: int) -> None:
            self._read_pieces(units[start:stop], into[start * PIECE : stop * PIECE], direct=direct)

        over_ranges(read, len(units), _LEAST_READ, _READERS)
        return out

    def _read_pieces(self, units: NDArray[np.int64], out: Bytes, *, direct: bool) -> None:
        """Read some pieces, none of which lies in two shards, and check them."""
        if not len(units):
            return
        itemsize = self.spec.itemsize
        total = self.spec.n_chunks * self.spec.chunk * itemsize
        shard_bytes = self.spec.shard * itemsize
        cuts = np.flatnonzero((np.diff(units) != 1) | ((units[1:] * PIECE) % shard_bytes == 0)) + 1
        runs = [
            (int(units[first]) * PIECE, out[first * PIECE : last * PIECE][: total - int(units[first]) * PIECE])
            for first, last in pairwise([0, *cuts.tolist(), len(units)])
        ]
        for number, group in groupby(runs, lambda run: run[0] // shard_bytes):
            self._index(number)
            self._read_into(number, [(start - number * shard_bytes, part) for start, part in group], direct)
        if not self._sound:
            places = np.flatnonzero(~self._verified[units])
            last, rest = divmod(self.spec.shape[0] * itemsize, PIECE)  # where the padding begins
            k = int(np.searchsorted(units, last))
            filled = k * PIECE + (rest if k < len(units) and units[k] == last else 0)
            short = max((int(units[-1]) + 1) * PIECE - total, 0)
            self._check_pieces(out[: len(out) - short], out[:filled], places, units[places])

    def _check_pieces(
        self, stored: Bytes, elements: Bytes, places: NDArray[np.int64], units: NDArray[np.int64]
    ) -> None:
        """Check pieces `units` of the array, which are those at `places` of bytes; all but padding are elements."""
        expected = np.empty(0, np.uint32) if self._check == "never" else self._checksums()[units]
        numbers = np.empty(0, np.uint32) if self._limit is None else elements.view(f"u{self.spec.itemsize}")
        faults: list[int] = []

        def work(start: int, stop: int) -> None:
            part = slice(start, stop)
            fault = checks.first_fault(stored, numbers, places[part], expected[part], self._limit or 0)
            if fault >= 0:
                faults.append(start + fault)

        over_ranges(work, len(places), _LEAST_PIECES)
        if faults:
            i = min(faults)
            raise self._piece_fault(int(units[i]), stored[int(places[i]) * PIECE :][:PIECE])
        if self._check != "always":
            self._verified[units] = True
            self._sound = bool(self._verified[: -(-self.spec.shape[0] * self.spec.itemsize // PIECE)].all())

    def _piece_fault(self, unit: int, piece: Bytes) -> CorruptStoreError:
        """What is wrong with a piece of these bytes."""
        itemsize = self.spec.itemsize
        first = unit * PIECE // itemsize
        last = max(first, min(first + PIECE // itemsize, self.spec.shape[0]))
        number, start = divmod(unit * PIECE, self.spec.shard * itemsize)
        if self._check == "never" or crc32c(piece) == self._expected(unit):
            at, reason = self._out_of_range(piece.view(self.spec.dtype)[: last - first])
            if reason:
                start += at * itemsize
                return self._fail(number, start, start + itemsize, (first + at, first + at + 1), reason)
        return self._fail(number, start, start + len(piece), (first, last), "the bytes do not match their crc32c")

    def _out_of_range(self, values: Array) -> tuple[int, str]:
        """Place of the first feature number out of range and what to say of it; nothing where all are in range."""
        bad = np.flatnonzero(values.view(f"u{values.itemsize}") >= self._limit)
        if not len(bad):
            return 0, ""
        return int(bad[0]), f"feature number {int(values[bad[0]])}, expected 0 to {self._n_features - 1}"

    # ------------------------------------------------------------------ any codec

    def chunks(self, numbers: NDArray[np.int64], out: Array | None = None) -> Array:
        """The given inner chunks, ascending, decoded end to end, with the padding of the last: (n * chunk, ...).

        Parameters
        ----------
        numbers : (n,) int64 array
        out : (n * chunk, ...) array, optional
            Where to decode them, contiguous and of the array's dtype. Fresh memory costs more than decoding into it.

        Raises
        ------
        CorruptStoreError
        """
        spec = self.spec
        if out is None:
            out = self._room(len(numbers) * spec.chunk)
        groups = list(self._groups(numbers))

        def work(start: int, stop: int) -> None:
            for first, last, encoded in groups:
                low, high = max(start, first), min(stop, last)
                if low < high:
                    self._decode(encoded, low - first, high - first, out[low * spec.chunk : high * spec.chunk])

        elements = max(spec.chunk * math.prod(spec.shape[1:]), 1)
        over_ranges(work, len(numbers), max(_LEAST_ELEMENTS // elements, 1))
        return out

    def each_chunk(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, Array]]:
        """The given inner chunks, ascending, one after the other: (number, elements), which live until the next one."""
        out: Array = np.empty((self.spec.chunk, *self.spec.shape[1:]), self.spec.dtype)
        for first, last, encoded in self._groups(numbers):
            for at in range(last - first):
                self._decode(encoded, at, at + 1, out)
                yield int(encoded.numbers[at]), out

    def _groups(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, int, _Encoded]]:
        """Chunks, shard by shard: from which of `numbers` to which, and where they are."""
        cuts = np.flatnonzero(np.diff(numbers // (self.spec.shard // self.spec.chunk))) + 1
        for first, last in pairwise([0, *cuts.tolist(), len(numbers)]):
            if first < last:
                yield first, last, self._payloads(numbers[first:last])

    def _payloads(self, numbers: NDArray[np.int64]) -> _Encoded:
        """Find chunks of one shard; where they have to be read, neighbours come in one read."""
        per_shard = self.spec.shard // self.spec.chunk
        number = int(numbers[0]) // per_shard
        index = self._index(number)[numbers - number * per_shard].astype(np.int64)
        starts, lengths = np.ascontiguousarray(index.T)
        if self._mmap and number not in self._stored:
            self._map_shard(number)
        source = self._stored.get(number)
        if source is not None:
            return _Encoded(number, numbers, source, starts, lengths, starts)
        ends = starts + lengths
        cuts = np.flatnonzero(starts[1:] != ends[:-1])
        firsts, lasts = starts[np.append(0, cuts + 1)].tolist(), ends[np.append(cuts, -1)].tolist()
        elements = self._elements(int(numbers[0]), int(numbers[-1]))
        payloads = [
            np.frombuffer(self._read(number, start, stop, elements), np.uint8)
            for start, stop in zip(firsts, lasts, strict=True)
        ]
        places = np.cumsum(lengths) - lengths
        return _Encoded(number, numbers, np.concatenate(payloads), places, lengths, starts)

    def _map_shard(self, number: int) -> None:
        entry, per_shard = self._entries[number], self.spec.shard // self.spec.chunk
        elements = self._elements(number * per_shard, (number + 1) * per_shard - 1)
        try:
            stored = self.storage.map([(entry.key, entry.length)])
        except FileNotFoundError:
            raise self._fail(number, 0, entry.length, elements, self._why_missing()) from None
        except CorruptStoreError as error:
            raise self._fail(number, 0, entry.length, elements, str(error)) from None
        with self._lock():
            self._stored.setdefault(number, stored)

    def _elements(self, first: int, last: int) -> tuple[int, int]:
        """Elements of the chunks from `first` to `last`, that included."""
        return first * self.spec.chunk, min((last + 1) * self.spec.chunk, self.spec.shape[0])

    def _decode(self, encoded: _Encoded, start: int, stop: int, out: Array) -> None:
        """Check and decode chunks start to stop of some that were found."""
        numbers, chunk = encoded.numbers, self.spec.chunk
        new = not (self._known[numbers[start:stop]].all() and self._check != "always")
        # what is checked and decoded in turns is still in the processor's cache
        step = max(_TURN_ELEMENTS // chunk, 1) if new else stop - start
        for at in range(start, stop, step):
            end = min(at + step, stop)
            target = out[(at - start) * chunk : (end - start) * chunk]
            if new:
                self._check_encoded(encoded, at, end)
            self._decode_checked(encoded, at, end, target)
            if new:
                self._check_features(encoded, at, end, target)
                self._known[numbers[at:end]] = True

    def _chunk_fault(self, encoded: _Encoded, at: int, reason: str) -> CorruptStoreError:
        chunk, start = int(encoded.numbers[at]), int(encoded.places[at])
        return self._fail(encoded.shard, start, start + int(encoded.lengths[at]), self._elements(chunk, chunk), reason)

    def _check_encoded(self, encoded: _Encoded, start: int, stop: int) -> None:
        """Check the encoded bytes of chunks."""
        if self._load_checks is None or self._check == "never" or self._raw:
            return
        part = slice(start, stop)
        expected = self._checksums()[encoded.numbers[part]]
        bad = frames.first_damaged(encoded.source, encoded.starts[part], encoded.lengths[part], expected)
        if bad >= 0:
            raise self._chunk_fault(encoded, start + bad, "the bytes do not match their crc32c")

    def _decode_checked(self, encoded: _Encoded, start: int, stop: int, out: Array) -> None:
        starts, lengths = encoded.starts[start:stop], encoded.lengths[start:stop]
        done, reason = decode(encoded.source, starts, lengths, self.spec, out)
        if reason:
            raise self._chunk_fault(encoded, start + done, f"the chunk can not be decoded: {reason}")

    def _check_features(self, encoded: _Encoded, start: int, stop: int, values: Array) -> None:
        """Check that the feature numbers of decoded chunks are in range."""
        if self._limit is None:
            return
        numbers, chunk = encoded.numbers[start:stop], self.spec.chunk
        values = values[: len(values) - max(int(numbers[-1] + 1) * chunk - self.spec.shape[0], 0)]  # no padding
        if int(values.view(f"u{self.spec.itemsize}").max()) >= self._limit:
            at, reason = self._out_of_range(values)
            first, place = int(numbers[at // chunk]) * chunk + at % chunk, start + at // chunk
            begin = int(encoded.places[place])
            size = int(encoded.lengths[place])
            raise self._fail(encoded.shard, begin, begin + size, (first, first + 1), reason)

    def read_all(self) -> Array:
        """The whole array. Where there are no checksums beside it, its objects are checked whole."""
        if self._load_checks is None:
            per_shard = self.spec.shard // self.spec.chunk
            for number, entry in enumerate(self._entries):
                elements = self._elements(number * per_shard, (number + 1) * per_shard - 1)
                payload = self._read(number, 0, entry.length, elements)
                if self._check != "never" and crc32c(payload) != entry.crc32c:
                    raise self._fail(number, 0, entry.length, elements, "the bytes do not match their crc32c")
                self._stored[number] = np.frombuffer(payload, np.uint8)
        values = self.chunks(np.arange(self.spec.n_chunks))[: self.spec.shape[0]]
        if self._load_checks is None:
            self._stored.clear()
        return values

    def take(self, rows: NDArray[np.int64]) -> Array:
        """Rows of the array by number, in any order; each chunk that they touch is decoded once.

        Where these have far more rows than are wanted they are decoded some MiB at a time.
        """
        chunk = self.spec.chunk
        if not len(rows):
            return self.chunks(np.empty(0, np.int64))
        most = max(_TAKEN_BYTES // (chunk * (self.spec.itemsize or _STRING_BYTES)), 1)
        if min(self.spec.n_chunks, len(rows)) <= most:
            return self._take(rows)
        wanted = rows // chunk
        if not bool((wanted[1:] >= wanted[:-1]).all()):
            order = np.argsort(rows)
            out = self._room(len(rows))
            out[order] = self.take(rows[order])
            return out
        slots = np.cumsum(np.diff(wanted, prepend=wanted[:1]) != 0)  # numbers of their chunks among those touched
        n = int(slots[-1]) + 1
        if n <= most or n * chunk <= 2 * len(rows):
            return self._take(rows)
        out = self._room(len(rows))
        for first, last in pairwise([*np.searchsorted(slots, np.arange(0, n, most)).tolist(), len(rows)]):
            out[first:last] = self._take(rows[first:last])
        return out

    def _room(self, n: int) -> Array:
        return np.empty((n, *self.spec.shape[1:]), object if self.spec.dtype == "string" else self.spec.dtype)

    def _take(self, rows: NDArray[np.int64]) -> Array:
        """As `take`, of one row or more, with all chunks that they touch decoded together."""
        chunk = self.spec.chunk
        cuts = np.flatnonzero(rows[1:] != rows[:-1] + 1) + 1
        firsts, lasts = rows[np.append(0, cuts)], rows[np.append(cuts, len(rows)) - 1]
        if len(cuts) * _FEW < len(rows) and bool((firsts[1:] > lasts[:-1]).all()):
            # long runs of rows that follow each other, as shuffled blocks are
            numbers = _ranges(firsts // chunk, lasts // chunk + 1)
            decoded = self.chunks(numbers)
            if len(decoded) == len(rows):
                return decoded
            out = self._room(len(rows))
            starts = np.searchsorted(numbers, firsts // chunk) * chunk + firsts % chunk
            for start, low, high in zip(starts.tolist(), [0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
                out[low:high] = decoded[start : start + high - low]
            return out
        wanted = rows // chunk
        if bool((wanted[1:] >= wanted[:-1]).all()):
            keep = np.empty(len(wanted), bool)
            keep[0] = True
            np.not_equal(wanted[1:], wanted[:-1], out=keep[1:])
            numbers, slots = wanted[keep], np.cumsum(keep) - 1
        else:
            numbers, slots = np.unique(wanted, return_inverse=True)
        return np.asarray(self.chunks(numbers)[slots * chunk + (rows - wanted * chunk)])


def size_problem(spec: ArraySpec, number: int, length: int) -> str | None:
    """Why a shard of this length can not be that shard of an array; None where it can."""
    per_shard = spec.shard // spec.chunk
    chunks = min(per_shard, spec.n_chunks - number * per_shard)
    stored, plain = length - (per_shard * 16 + 4), chunks * spec.chunk * spec.itemsize
    if stored < 0:
        return f"too short for an index of {per_shard * 16 + 4} bytes"
    raw = spec.codec.name == "none" and spec.dtype != "string"
    if plain != stored if raw else plain > stored * _expansion(spec.codec):
        return f"{stored} bytes can not be the {chunks} chunks of {spec.chunk} x {spec.itemsize} bytes declared"
    return None


def _expansion(codec: Codec) -> int:
    """How many bytes one encoded byte may stand for: 255 in LZ4, 32 KiB in Zstandard."""
    if codec.name == "none":
        return 1
    return 256 if codec.name == "blosc" and codec.cname in ("lz4", "lz4hc") else 1 << 15


def _ranges(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Distinct integers of half-open ranges given in ascending order of their starts, ascending."""
    first = first.copy()
    first[1:] = np.maximum(first[1:], np.maximum.accumulate(last)[:-1])  # what an earlier range has is not repeated
    lengths = np.maximum(last - first, 0)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    found: NDArray[np.int64] = np.arange(total, dtype=np.int64) + np.repeat(first - (ends - lengths), lengths)
    return found


def decode(
    source: Bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64], spec: ArraySpec, out: Array
) -> tuple[int, str]:
    """Decode inner chunks end to end; how many there were before one that can not be, and why that can not.

    Parameters
    ----------
    source : (n,) uint8 array
    starts, lengths : (m,) int64 arrays
        Where the chunks lie in `source`; inside of it, which is not checked.
    spec : ArraySpec
    out : (m * chunk, ...) array
    """
    at, n = 0, len(starts)
    while at < n:
        if spec.codec.name == "blosc" and spec.codec.cname in ("lz4", "lz4hc"):
            plain = out[at * spec.chunk :].reshape(-1).view(np.uint8)
            at += frames.unpack(source, starts[at:], lengths[at:], spec.chunk * spec.itemsize, plain)
            if at == n:
                break
        try:
            payload = source[starts[at] : starts[at] + lengths[at]]
            _decode_into(payload, spec, out[at * spec.chunk : (at + 1) * spec.chunk])
        except (ValueError, RuntimeError) as error:
            return at, str(error)[:200]  # it may quote what it could not read
        at += 1
    return n, ""


def _decode_into(payload: NDArray[np.uint8], spec: ArraySpec, target: Array) -> None:
    """Decode one inner chunk; ValueError or RuntimeError where it does not give exactly the declared bytes."""
    expected = target.nbytes
    if spec.codec.name == "blosc":
        # the declared size stands in bytes 4 to 8 of a blosc frame: a bomb is refused before it is unpacked
        declared = int.from_bytes(payload[4:8].tobytes(), "little")
        if len(payload) < 16 or declared != expected:
            raise ValueError(f"it declares {declared} bytes, expected {expected}")
        if int.from_bytes(payload[12:16].tobytes(), "little") != len(payload):
            raise ValueError("its length is not the one that it declares")
        imported("numcodecs.blosc").decompress(payload, target)
        return
    if spec.codec.name == "zstd":
        zstandard, limit = imported("zstandard"), _STRING_CHUNK_BYTES if spec.dtype == "string" else expected
        try:
            declared = zstandard.frame_content_size(payload.tobytes())
            if declared < 0 or declared > limit:
                raise ValueError(f"it declares {declared} bytes, expected at most {limit}")
            decompress = zstandard.ZstdDecompressor().decompress
            data = decompress(payload.tobytes(), max_output_size=declared, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None
    else:
        data = payload.tobytes()
    if spec.dtype == "string":
        n = int.from_bytes(data[:4], "little")  # looked at first: the decoder makes room for as many
        if n != len(target):
            raise ValueError(f"it holds {n} strings, expected {len(target)}")
        target[:] = imported("numcodecs.vlen").VLenUTF8().decode(data)
        return
    if len(data) != expected:
        raise ValueError(f"it holds {len(data)} bytes, expected {expected}")
    target[...] = np.frombuffer(data, spec.dtype).reshape(-1, *spec.shape[1:])
