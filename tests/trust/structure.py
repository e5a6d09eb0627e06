"""Mutations of what a store says of itself, with every checksum made anew: only the rules of the format are left.

Of 50 cases 49 are read in memory, by the parsers and readers of one kind of object; one is a store in files, read as a
user would. The answer must be a typed error, or what a plain reader finds in the same bytes.
"""

from __future__ import annotations

import functools
import json
import random
import resource
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from google_crc32c import value as crc32c
from numcodecs import blosc, zstd
from numcodecs.vlen import VLenUTF8

import sparsestore as ss
from sparsestore.arrays import ArrayReader
from sparsestore.checksum import PIECE
from sparsestore.documents import dump, parse_json
from sparsestore.errors import CorruptStoreError
from sparsestore.format import ColumnSchema, Manifest, ObjectEntry, PageEntry, SegmentDocument, SegmentLine
from sparsestore.plan import quality
from sparsestore.segment import RowOffsets
from sparsestore.statistics import LabelAccumulator, LabelStatistics, merge
from sparsestore.zarr_format import ArraySpec, Codec
from trust import mutation, plain, small_store
from trust.answers import describe, strict
from trust.campaign import Campaign, Tally

Objects = dict[str, bytes]

_ROOM = 4 << 30
"""Bytes of addresses that a unit may take beside those it has: what is declared is not believed."""


class WrongAnswerError(Exception):
    """There was no error, and there should have been one, or another answer."""


def run(cases: Sequence[int], folder: Path) -> Tally:
    """Mutate as each case says, read, compare."""
    tally = Tally()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    folder = small_store.place(folder)
    stores = (
        [Files(folder / profile, profile) for profile in small_store.PROFILES]
        if any(case % 50 == 0 for case in cases)
        else []
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, limits[1]))
    try:
        with strict():
            for case in cases:
                rng = random.Random(case)
                kind, work = _KINDS[case % 50] if case % 50 else ("store", stores[case // 50 % 2].case)
                try:
                    outcome = work(rng)
                except ss.SparsestoreError:
                    outcome = "error"
                except Exception as error:
                    tally.fault(case, f"{kind}: {describe(error)}")
                    outcome = "fault"
                tally.outcomes[outcome] += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        shutil.rmtree(folder, ignore_errors=True) if stores else None
    return tally


# ----------------------------------------------------------------------------------------------------- documents


ROOT = ObjectEntry("zarr.json", 100, 5)


def _manifest() -> dict[str, Any]:
    lines = tuple(SegmentLine(f"{i:032x}", 10 + i, 5 * i, i, i == 1) for i in range(3))
    columns = {"y": ColumnSchema("int64"), "two": ColumnSchema("float32", (2,)), "name": ColumnSchema("string")}
    manifest = Manifest(3, 2, 33, 50, 15, "float32", columns, ROOT, lines, created="2026-01-01T00:00:00+00:00")
    return json.loads(dump({"crc32c": "00000000", **manifest.to_document(), "attrs": {"source": "x.svm"}}))


def _paged() -> dict[str, Any]:
    page = PageEntry(ObjectEntry("versions/pages/ab.json", 77, 1), 2)
    document = {**_manifest(), "pages": [[*page.object.to_json(), page.segments]], "features": ["ab", "01234567"]}
    return {**document, "shuffled": {"method": "exact", "seed": 0}}


def _segment() -> dict[str, Any]:
    objects = tuple(ObjectEntry(f"X/{name}/c/0", 100, 7) for name in ("data", "indices", "indptr"))
    return SegmentDocument(20, 45, 50, "uint16", "uint8", False, 4, "raw", objects).to_document()


def _page() -> dict[str, Any]:
    return {"format": 1, "segments": [SegmentLine(f"{i:032x}", 10, 5, i).to_json() for i in range(2)]}


_SPECS = [
    ArraySpec((40,), "uint16", 8, 16),
    ArraySpec((40, 2), "float32", 8, 16, Codec("blosc", "lz4", 5, "bitshuffle"), 0.5, {"block_rows": 256}),
    ArraySpec((40,), "string", 8, 16, Codec("zstd", clevel=3), ""),
    ArraySpec((0,), "int64", 1, 1, Codec("blosc"), -1),
]


def _read_page(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    lines = Manifest.from_document(_manifest(), "m").page_lines(document, name)
    return {"format": 1, "segments": [line.to_json() for line in lines]}


def _documents(
    bases: Sequence[dict[str, Any]], read: Callable[[Mapping[str, Any], str], dict[str, Any]]
) -> Callable[[random.Random], str]:
    """Cases of one kind of document: `read` gives it back as it was understood."""
    payloads = [dump(base) for base in bases]

    def work(rng: random.Random) -> str:
        which = rng.randrange(len(bases))
        how = rng.random()
        if how < 0.05:
            payload = mutation.with_a_key_twice(rng, payloads[which])
        elif how < 0.5:
            payload = mutation.mutated(rng, payloads[which])
        else:
            payload = json.dumps(mutation.document(rng, bases[which])).encode()
        understood = json.loads(json.dumps(read(parse_json(payload, "d"), "d")))
        meant = _once(payload)
        for key, value in understood.items():
            if not plain.same(_usual(value), _usual(meant.get(key, {} if key == "attributes" else None))):
                raise WrongAnswerError(f"{key} is understood as {str(value)[:80]} in {payload[:400]!r}")
        return "same answer"

    return work


def _once(payload: bytes) -> dict[str, Any]:
    """JSON whose keys come once."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(found)) != len(found):
            raise WrongAnswerError("a key stands there twice")
        return dict(found)

    return dict(json.loads(payload.decode("utf-8"), object_pairs_hook=pairs))


def _usual(value: Any) -> Any:
    """What may be written in several ways in one of them: hints to compressors, whole numbers that are floats."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value) if str(value) != "-0.0" else value
    if isinstance(value, list):
        return [_usual(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("name") in ("blosc", "zstd") and isinstance(value.get("configuration"), dict):
        hints = ("typesize", "blocksize", "checksum")
        kept = {key: item for key, item in value["configuration"].items() if key not in hints}
        return {"name": value["name"], "configuration": {key: kept[key] for key in sorted(kept) if key in _CODEC_KEYS}}
    if value.get("name") == "vlen-utf8":
        return {"name": "vlen-utf8"}
    if value.get("name") == "sharding_indexed" and isinstance(value.get("configuration"), dict):
        configuration = {"index_location": "end", **value["configuration"]}
        return {"name": value["name"], "configuration": {key: _usual(configuration.get(key)) for key in _SHARDING_KEYS}}
    return {key: _usual(item) for key, item in value.items()}


_CODEC_KEYS = ("cname", "clevel", "shuffle", "level")
_SHARDING_KEYS = ("chunk_shape", "codecs", "index_codecs", "index_location")


# ------------------------------------------------------------------------------------------------------- offsets


@dataclass(frozen=True)
class _Decoded:
    """Stands for the reader of an array whose chunks are decoded."""

    values: np.ndarray[Any, Any]
    spec: ArraySpec
    prefix: str = "X/indptr"

    class storage:  # noqa: N801
        name = "memory"

    def each_chunk(self, numbers: np.ndarray[Any, Any]) -> Any:
        for number in numbers.tolist():
            chunk = np.zeros(self.spec.chunk, np.int64)
            part = self.values[number * self.spec.chunk :][: self.spec.chunk]
            chunk[: len(part)] = part
            yield number, chunk


def _offsets(rng: random.Random) -> str:
    """Row offsets with wrong numbers among them."""
    n = rng.choice([1, 7, 8, 20, 40])
    chunk = rng.choice([2, 8, 64])
    lengths = [rng.randrange(5) for _ in range(n)]
    offsets = [sum(lengths[:i]) for i in range(n + 1)]
    longest, nnz = max(lengths), offsets[-1]
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.randrange(8)
        if kind == 0:
            longest = abs(mutation.number(rng, longest)) % 2**63
        elif kind == 1:
            nnz = abs(mutation.number(rng, nnz)) % 2**63
        else:
            i = rng.randrange(n + 1)
            offsets[i] = (mutation.number(rng, offsets[i]) + 2**63) % 2**64 - 2**63
    array = _Decoded(np.array(offsets, np.int64), ArraySpec((n + 1,), "int64", chunk, 1 << 10))
    found = RowOffsets(array, n, longest, nnz)  # type: ignore[arg-type]
    if rng.random() < 0.5:
        found.locate(np.array(sorted(rng.sample(range(n), rng.randrange(1, n + 1)))))
    starts, counts = found.locate(np.arange(n))
    steps = [b - a for a, b in pairwise(offsets)]
    if offsets[0] != 0 or offsets[-1] != nnz or min(steps) < 0 or max(steps) > longest:
        raise WrongAnswerError(f"offsets {offsets} are taken, longest {longest}, entries {nnz}")
    if starts.tolist() != offsets[:-1] or counts.tolist() != steps:
        raise WrongAnswerError(f"offsets {offsets} give {starts.tolist()}, {counts.tolist()}")
    return "same answer"


# -------------------------------------------------------------------------------------------------------- arrays


class MemoryStorage:
    """Objects in a dict, with the face of LocalStorage as far as readers look at it."""

    name = "memory"

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = objects

    def read(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        found = self.read(key)[start:stop]
        if len(found) != stop - start:
            raise CorruptStoreError(f"{key} was cut short")
        return found

    def read_into(self, key: str, parts: Sequence[tuple[int, Any]], *, direct: bool = False) -> None:
        del direct
        for start, out in parts:
            out[:] = np.frombuffer(self.read_range(key, start, start + len(out)), np.uint8)

    def map(self, parts: Sequence[tuple[str, int]]) -> np.ndarray[Any, Any]:
        return np.frombuffer(b"".join(self.read_range(key, 0, length) for key, length in parts), np.uint8)

    def length(self, key: str) -> int:
        return len(self.read(key))


@dataclass(frozen=True)
class _Array:
    """An array in memory."""

    spec: ArraySpec
    n_features: int | None
    payloads: tuple[bytes, ...]

    @classmethod
    def of(cls, dtype: str, codec: Codec, n_features: int | None = None) -> _Array:
        rng = np.random.default_rng(1)
        spec = ArraySpec((37,), dtype, 8, 16, codec, "" if dtype == "string" else 0)
        if dtype == "string":
            values: Any = np.array(["", "a", "bé", "long " * 4, "\x00"], object)[rng.integers(0, 5, 40)]
        else:
            values = rng.integers(0, n_features or 100, 40).astype(dtype)
        return cls(spec, n_features, tuple(_encoded(values[at : at + 8], codec) for at in range(0, 40, 8)))


def _encoded(values: Any, codec: Codec) -> bytes:
    if values.dtype == object:
        return bytes(zstd.compress(VLenUTF8().encode(values), 3))
    if codec.name == "none":
        return bytes(values.tobytes())
    shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[codec.shuffle]
    return bytes(blosc.compress(values, codec.cname.encode(), codec.clevel, shuffle, 0))


@functools.cache
def _arrays() -> list[_Array]:
    lz4, bits = Codec("blosc", "lz4", 5, "shuffle"), Codec("blosc", "lz4hc", 9, "bitshuffle")
    return [
        _Array.of("uint16", Codec(), 50),
        _Array.of("int32", Codec(), 70_000),
        _Array.of("int64", Codec(), 3_000_000_000),
        _Array.of("float32", Codec()),
        _Array.of("uint16", lz4, 50),
        _Array.of("int64", bits, 3_000_000_000),
        _Array.of("float64", bits),
        _Array.of("string", Codec("zstd", clevel=3)),
    ]


def _array(rng: random.Random) -> str:
    """An array with its elements, encoded chunks, shard indexes, objects or zarr.json changed."""
    base = rng.choice(_arrays())
    spec, payloads = base.spec, list(base.payloads)
    document = spec.to_document()
    kind = rng.randrange(7)
    if kind == 0:
        document = mutation.document(rng, document)
    elif kind == 1:  # the numbers of zarr.json, which other documents do not know
        place = rng.choice(["shape", "shard", "chunk"])
        value = mutation.number(rng, 37 if place == "shape" else 16)
        inner = document["codecs"][0]["configuration"]
        target = {"shape": document["shape"], "chunk": inner["chunk_shape"]}
        target.get(place, document["chunk_grid"]["configuration"]["chunk_shape"])[0] = value
    elif kind < 5:
        which = rng.randrange(len(payloads))
        payloads[which] = _changed(rng, base, payloads[which], whole=kind == 2)
    objects = {f"a/c/{i}": plain.shard(payloads[2 * i : 2 * i + 2], 2) for i in range(3)}
    if kind >= 5:
        key = f"a/c/{rng.randrange(3)}"
        objects[key] = _other_shard(rng, objects[key])
    objects["a/zarr.json"] = json.dumps(document).encode()
    found, elements = _read_array(rng, base, objects)
    try:
        expected = plain.array(objects, "a", elements)
    except (plain.UnreadableError, LookupError, ValueError, ZeroDivisionError, TypeError, MemoryError) as error:
        raise WrongAnswerError(f"an array that means nothing is read: {describe(error)}") from None
    if found.tobytes() != expected.tobytes() if found.dtype != object else found.tolist() != expected.tolist():
        raise WrongAnswerError(f"{found} is read of {expected}")
    if base.n_features is not None and len(found) and not 0 <= int(found.min()) <= int(found.max()) < base.n_features:
        raise WrongAnswerError(f"feature numbers {found.min()} to {found.max()} are read, of {base.n_features}")
    return "same answer"


def _changed(rng: random.Random, base: _Array, payload: bytes, *, whole: bool) -> bytes:
    """An encoded chunk with other bytes; with `whole`, one that is well encoded with other elements."""
    if not whole:
        return mutation.mutated(rng, payload)
    if base.spec.dtype == "string":
        return bytes(zstd.compress(mutation.mutated(rng, bytes(zstd.decompress(payload))), 3))
    values = plain.decoded(payload, base.spec.codec.name, base.spec.dtype, 8).copy()
    if values.dtype.kind in "iu":
        wrong = mutation.number(rng, int(values[3])) % 2 ** (8 * values.itemsize)
        values.view(f"u{values.itemsize}")[rng.randrange(8)] = wrong
    return _encoded(values[: rng.choice([8, 8, 8, 7])], base.spec.codec)


def _other_shard(rng: random.Random, stored: bytes) -> bytes:
    """A shard with another index, whose checksum holds, or with other bytes."""
    index = np.frombuffer(stored[-36:-4], "<u8").reshape(2, 2).copy()
    kind = rng.randrange(6)
    if kind == 0:
        index = index[::-1]
    elif kind == 1:
        return stored[: rng.randrange(len(stored))]
    elif kind == 2:
        return rng.randbytes(rng.randrange(1, 64)) + stored
    else:
        i, j = rng.randrange(2), rng.randrange(2)
        index[i, j] = mutation.number(rng, int(index[i, j] % 2**63)) % 2**64
    return stored[:-36] + plain.sealed(index)


def _read_array(rng: random.Random, base: _Array, objects: Objects) -> tuple[Any, Any]:
    """Elements of the array, read in one of the ways that there are, and which they are."""
    spec = ArraySpec.from_document(parse_json(objects["a/zarr.json"], "a"), "a")
    entries = {key: ObjectEntry(key, len(payload), 0) for key, payload in objects.items()}
    raw = spec.codec.name == "none" and spec.dtype != "string"
    reader = ArrayReader(
        MemoryStorage(objects),  # type: ignore[arg-type]
        "a",
        spec,
        entries,
        lambda: _checks(objects, spec, raw),
        "first",
        lambda first, last: f"rows {first} to {last}",
        base.n_features,
        rng.random() < 0.5,
    )
    n = spec.shape[0]
    if len(spec.shape) > 1:
        return reader.take(np.arange(n)), np.arange(n)
    if raw:
        if rng.random() < 0.5:
            reader.verify(np.zeros(1, np.uint64), np.array([n], np.int64))
            return reader.elements(), np.arange(n)
        units = np.arange(-(-n * spec.itemsize // PIECE))
        return reader.pieces(units).view(spec.dtype)[:n], np.arange(n)
    rows = np.array([rng.randrange(n) for _ in range(5)] if n else [], np.int64)
    return (
        (reader.take(rows), rows) if rng.random() < 0.5 else (reader.chunks(np.arange(spec.n_chunks))[:n], np.arange(n))
    )


def _checks(objects: Objects, spec: ArraySpec, raw: bool) -> Any:
    """Checksums beside the array, of what is there."""
    per_shard, found = spec.shard // spec.chunk, []
    for number in range(spec.n_shards):
        stored = objects[spec.shard_key(number).join(["a/", ""])]
        present = min(per_shard, spec.n_chunks - number * per_shard)
        try:
            found += plain.chunks(stored, per_shard, present)
        except plain.UnreadableError:
            found += [b""] * present
    if raw:
        whole = b"".join(found)
        found = [whole[at : at + PIECE] for at in range(0, len(whole), PIECE)]
    return np.array([crc32c(part) for part in found], np.uint32)


# ---------------------------------------------------------------------------------------------------- statistics


@functools.cache
def _labels() -> list[tuple[Any, dict[str, Any]]]:
    found = []
    for dtype, values in (("int64", [0, 1, 1, 2] * 50), ("string", ["a", "b", "b", "c"] * 50), ("float64", None)):
        labels = LabelAccumulator(dtype)
        labels.update(np.array(values, object if dtype == "string" else dtype) if values else np.arange(200) / 7)
        statistics = labels.finish()
        if statistics is not None:
            found.append(statistics.to_arrays())
    return found


def _statistics(rng: random.Random) -> str:
    """Label statistics that no labels have."""
    array, attributes = rng.choice(_labels())
    array = array.copy()
    if rng.random() < 0.6:
        attributes = parse_json(json.dumps(mutation.document(rng, attributes)).encode(), "attributes")
    for _ in range(rng.choice([0, 1, 2])):
        wrong = [np.nan, np.inf, -np.inf, -1.0, 0.0, 1e308, 1e-308, 1e18, rng.random()]
        array[rng.randrange(13), rng.randrange(array.shape[1])] = rng.choice(wrong)
    if rng.random() < 0.1:
        array = array[: rng.randrange(13)]
    try:
        found = LabelStatistics.from_arrays(array, attributes)
        merged = merge([found, LabelStatistics.from_arrays(*_labels()[0])])
    except ValueError:  # which a reader says of the store
        return "error"
    for statistics in (found, merged):
        rows = np.array([200, 200])
        size = quality.auto_block_rows(statistics, rows, 128, shuffled=False)
        quality.shuffle_quality(statistics, rows, batch_size=32, block_rows=size, window_rows=128, shuffled=False)
    told, names = found.to_arrays()
    if isinstance(attributes.get("centre"), list):
        attributes["centre"] = [float(value) for value in attributes["centre"]]
    if not np.array_equal(told, array) or not plain.same(_usual(names), _usual({k: attributes[k] for k in names})):
        raise WrongAnswerError(f"statistics {attributes} are taken for {names}")
    return "same answer"


# -------------------------------------------------------------------------------------------------- whole stores


class Files:
    """A store in files, of one segment, and mutations of it."""

    def __init__(self, root: Path, profile: str) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        x = sp.random_array((24, 30), density=0.1, rng=rng, format="csr", dtype=np.float32)
        columns = {"y": rng.integers(0, 2, 24), "name": np.array(["a", "bé", ""], object)[rng.integers(0, 3, 24)]}
        ss.convert(x, root, columns=columns, profile=profile, progress=False)
        self.objects = small_store.objects(root)
        (self.segment,) = {key.split("/")[1] for key in self.objects if key.startswith("segments/")}
        self.prefix = f"segments/{self.segment}/"
        self.arrays = sorted(
            key[:-10] for key in self.objects if key.endswith("/zarr.json") and b"array" in self.objects[key]
        )

    def case(self, rng: random.Random) -> str:
        """Write a mutation, read it, put back what was there."""
        objects = self._mutated(rng)
        changed = [key for key in objects if objects[key] != self.objects[key]]
        try:
            for key in changed:
                (self.root / key).write_bytes(objects[key])
            return self._judged(objects)
        finally:
            for key in changed:
                (self.root / key).write_bytes(self.objects[key])

    def _mutated(self, rng: random.Random) -> Objects:
        objects = dict(self.objects)
        kind = rng.randrange(8)
        manifest, segment = (
            json.loads(objects["versions/00000001.json"]),
            json.loads(objects[f"{self.prefix}segment.json"]),
        )
        if kind < 2:
            self._values(rng, objects, rng.choice(["X/indptr", "X/indices"]))
        elif kind == 2:
            key = f"{rng.choice(self.arrays)}/zarr.json"
            objects[key] = json.dumps(mutation.document(rng, json.loads(objects[key]))).encode()
        elif kind == 3:
            key = rng.choice([key for key in objects if "/c/" in key])
            objects[key] = mutation.mutated(rng, objects[key])
        elif kind == 4:
            segment = mutation.document(rng, segment)
        elif kind == 5:
            manifest = mutation.document(rng, manifest)
        else:
            self._lie(rng, objects, manifest, segment)
        return self.sealed(objects, manifest, segment)

    def _values(self, rng: random.Random, objects: Objects, path: str) -> None:
        """Other numbers in an array, well encoded, with their checksums."""
        values = plain.array(objects, self.prefix + path).copy()
        for _ in range(rng.choice([1, 2])):
            i = rng.randrange(len(values))
            values[i] = rng.choice(
                [values[rng.randrange(len(values))], values[i] + 1, mutation.number(rng, int(values[i])) % 30]
            )
        document = json.loads(objects[f"{self.prefix}{path}/zarr.json"])
        n = document["codecs"][0]["configuration"]["chunk_shape"][0]
        padded = np.zeros(n, values.dtype)
        padded[: len(values)] = values
        compressed = len(document["codecs"][0]["configuration"]["codecs"]) > 1
        payload = _encoded(padded, Codec("blosc") if compressed else Codec())
        objects[f"{self.prefix}{path}/c/0"] = plain.shard([payload], 1)
        check = np.array([crc32c(payload)], "<u4").tobytes()
        objects[f"{self.prefix}checksums/{path}/c/0"] = plain.shard([check], 1)

    def _lie(self, rng: random.Random, objects: Objects, manifest: dict[str, Any], segment: dict[str, Any]) -> None:
        """One wrong number wherever it stands, so that documents agree."""
        fact = rng.choice(["rows", "nnz", "n_features", "longest_row", "row_id_start"])
        line = manifest["segments"][0]
        new = abs(mutation.number(rng, segment.get(fact, 0))) % 2**63
        if fact in segment:
            segment[fact] = new
        else:
            line[5] = new
        if fact == "rows":
            line[1] = manifest["shape"][0] = new
        elif fact == "nnz":
            line[2] = manifest["nnz"] = new
        elif fact == "n_features":
            manifest["shape"][1] = new
        for prefix in self.arrays:
            document = json.loads(objects[f"{prefix}/zarr.json"])
            shape = document["shape"]
            matrix = "/X/" in prefix and "checksums" not in prefix
            if fact == "rows" and matrix and prefix.endswith("indptr"):
                shape[0] = new + 1
            elif (fact == "rows" and "/columns/" in prefix and "checksums" not in prefix) or (
                fact == "nnz" and matrix and not prefix.endswith("indptr")
            ):
                shape[0] = new
            objects[f"{prefix}/zarr.json"] = dump(document)

    def sealed(self, objects: Objects, manifest: dict[str, Any], segment: dict[str, Any]) -> Objects:
        """All checksums and lengths made anew, as far as the documents still have places for them."""
        for entry in segment["objects"] if isinstance(segment.get("objects"), list) else []:
            key = f"{self.prefix}{entry[0]}" if isinstance(entry, list) and len(entry) == 3 else ""
            if key in objects and objects[key] != self.objects[key]:
                entry[1:] = [len(objects[key]), f"{crc32c(objects[key]):08x}"]
        objects[f"{self.prefix}segment.json"] = payload = json.dumps(segment).encode()
        lines = manifest.get("segments")
        for line in lines if isinstance(lines, list) else []:
            if isinstance(line, list) and len(line) > 3 and line[0] == self.segment:
                line[3] = f"{crc32c(payload):08x}"
        manifest.pop("crc32c", None)
        rest = json.dumps(manifest, separators=(",", ":")).encode()[1:]
        objects["versions/00000001.json"] = b'{"crc32c":"%08x",' % crc32c(rest) + rest
        return objects

    def _judged(self, objects: Objects) -> str:
        """Read all there is, and compare it with what a plain reader finds."""
        with ss.open(self.root) as store:
            meant: Any = None
            try:
                manifest = json.loads(objects["versions/00000001.json"])
                rows, width = manifest["shape"]
                dtype = "float32" if manifest["dtype"] == "float16" else manifest["dtype"]  # which scipy does not have
                if rows <= 1000:  # what is said to be more than that, there is not
                    meant = plain.matrix(objects, self.segment, rows, width, dtype)
            except (plain.UnreadableError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
                why = describe(error)
            else:
                why = "it has more rows than there are"
            problems = store.verify()
            if meant is None and not problems:
                raise WrongAnswerError(f"verify reports nothing, and the matrix is not sound: {why}")
            failed = self._compare(store, objects, meant)
            return failed or ("same answer" if not problems else "reported by verify")

    def _compare(self, store: ss.Store, objects: Objects, meant: Any) -> str:
        failed = ""
        try:
            found = store[:]
            if meant is not None:
                pairs = ((found.indptr, meant.indptr), (found.indices, meant.indices), (found.data, meant.data))
                if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
                    raise WrongAnswerError(f"rows {found.indices} are read of {meant.indices}")
        except ss.SparsestoreError:
            failed = "error"
        for name, schema in store.columns.items():
            try:
                values = store.column(name)[:]
                if np.ma.isMaskedArray(values):
                    continue
                if name == "row_id" and f"{self.prefix}columns/{name}/zarr.json" not in objects:
                    (line,) = store._reader.lines  # type: ignore[attr-defined]
                    expected = np.arange(len(values)) + line.row_id_start
                else:
                    expected = plain.array(objects, f"{self.prefix}columns/{name}")
                if values.tolist() != expected.tolist() or schema.shape != expected.shape[1:]:
                    raise WrongAnswerError(f"column {name!r} is read as {values} of {expected}")
            except ss.SparsestoreError:
                failed = "error"
        try:
            str(store.plan(batch_size=8, seed=0))
        except ss.SparsestoreError:
            failed = "error"
        except ValueError as error:
            if "no rows" not in str(error):
                raise
        return failed


_KINDS: list[tuple[str, Callable[[random.Random], str]]] = [
    ("store", lambda _: ""),
    *[("manifest", _documents([_manifest(), _paged()], lambda d, n: Manifest.from_document(d, n).to_document()))] * 10,
    *[("segment.json", _documents([_segment()], lambda d, n: SegmentDocument.from_document(d, n).to_document()))] * 6,
    *[
        (
            "zarr.json",
            _documents(
                [spec.to_document() for spec in _SPECS], lambda d, n: ArraySpec.from_document(d, n).to_document()
            ),
        )
    ]
    * 8,
    *[("page", _documents([_page()], _read_page))] * 2,
    *[("offsets", _offsets)] * 8,
    *[("array", _array)] * 12,
    *[("statistics", _statistics)] * 3,
]

CAMPAIGN = Campaign(
    name="structure",
    about="what a store says of itself, changed and sealed anew",
    total=10_000_000,
    sample=80_000,
    few=3000,
    unit=60_000,
    run=run,
)
