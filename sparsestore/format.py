"""Format 1 as plain types: store metadata and zarr documents to JSON and back, every problem listed. No I/O.

The normative text is docs/format.md. Zarr documents follow the Zarr v3 core specification
(https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html) and its sharding codec
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparsestore.errors import FormatError

__all__ = [
    "FORMAT",
    "ArraySpec",
    "Codec",
    "ColumnSchema",
    "Manifest",
    "ObjectEntry",
    "PageEntry",
    "SegmentDocument",
    "SegmentLine",
    "column_problem",
    "dump",
    "group_document",
    "key_problem",
    "manifest_key",
    "parse_json",
    "root_document",
    "seal",
    "unseal",
]

FORMAT = 1
INLINE_SEGMENTS = 256
_SEAL = b'{"crc32c":"'
_KEY_PART = re.compile(r"[^/\\\x00-\x1f]+")
_INTEGER_DTYPES = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DTYPES = _INTEGER_DTYPES | {"bool", "float16", "float32", "float64"}


class _Problems:
    """Collects what is wrong with a document, each with its path, and raises once."""

    def __init__(self, document: str) -> None:
        self.document = document
        self.found: list[str] = []

    def add(self, path: str, found: Any, expected: str) -> None:
        self.found.append(f"{path}: found {found!r}, expected {expected}")

    def integer(self, value: Any, path: str, *, least: int = 0, most: int = 2**63 - 1) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.add(path, value, f"an integer from {least} to {most}")
            return least
        return value

    def text(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            self.add(path, value, "a string")
            return ""
        return value

    def mapping(self, value: Any, path: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.add(path, type(value).__name__, "an object")
            return {}
        return value

    def items(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            self.add(path, type(value).__name__, "a list")
            return []
        return value

    def dtype(self, value: Any, path: str, *, strings: bool = False) -> str:
        if isinstance(value, str) and (value in _DTYPES or (strings and value == "string")):
            return value
        self.add(path, value, "a dtype of the format: bool, int8 to uint64, float16 to float64" + strings * ", string")
        return "float32"

    def key(self, value: Any, path: str) -> str:
        problem = key_problem(value)
        if problem:
            self.add(path, value, problem)
            return "invalid"
        return str(value)

    def raise_if_any(self) -> None:
        if self.found:
            raise FormatError(f"{self.document} is not valid:\n  " + "\n  ".join(self.found))


def key_problem(key: Any) -> str | None:
    """What is wrong with an object key that came from a document; None when it stays inside the store."""
    if not isinstance(key, str) or not key:
        return "a relative key"
    parts = key.split("/")
    if any(part in ("", ".", "..") or not _KEY_PART.fullmatch(part) for part in parts):
        return "a relative key of plain parts: no '..', no leading '/', no backslash"
    return None


def column_problem(name: Any) -> str | None:
    """What is wrong with a column name; None when it can be the name of an array."""
    if not isinstance(name, str) or not name:
        return f"a column name must be a non-empty string, found {name!r}"
    if (
        "/" in name
        or key_problem(name)
        or name.startswith((".", "__"))
        or name.endswith(".mask")
        or name == "zarr.json"
    ):
        return (
            f"column name {name!r} can not be stored: it must have no '/', backslash or control character, not start "
            f"with '.' or '__' and not end with '.mask'; rename it"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return f"column name {name!r} is no valid text: rename it"
    if len(name.encode()) > 200:
        return f"column name {name[:40]!r}... is longer than 200 bytes; rename it"
    return None


def dump(document: Any) -> bytes:
    """JSON bytes, compact, ASCII, keys in the order given."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def parse_json(payload: bytes, document: str) -> dict[str, Any]:
    """The JSON object in `payload`; FormatError names the document."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{document} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{document}: found {type(value).__name__}, expected an object")
    return value


def seal(document: Mapping[str, Any], crc32c: Any) -> bytes:
    """JSON bytes that start with a crc32c of all that follows it: ``{"crc32c":"xxxxxxxx",`` then the rest.

    `crc32c` is a function from bytes to int.
    """
    rest = dump(document)[1:]
    return _SEAL + f"{crc32c(rest):08x}".encode() + b'",' + rest


def unseal(payload: bytes, crc32c: Any) -> bool:
    """Whether the crc32c at the start of a sealed document is that of the rest."""
    start = len(_SEAL)
    if payload[:start] != _SEAL or payload[start + 8 : start + 10] != b'",':
        return False
    return payload[start : start + 8] == f"{crc32c(payload[start + 10 :]):08x}".encode()


# ------------------------------------------------------------------------------------------------- zarr documents


@dataclass(frozen=True, slots=True)
class Codec:
    """Bytes-to-bytes codec of inner chunks: "none", "blosc" or "zstd".

    Attributes
    ----------
    name : str
    cname, clevel, shuffle : str, int, str
        As in zarr's blosc codec; `shuffle` is "noshuffle", "shuffle" or "bitshuffle". For zstd only `clevel`.
    """

    name: str = "none"
    cname: str = "lz4"
    clevel: int = 5
    shuffle: str = "shuffle"

    def documents(self, typesize: int) -> list[dict[str, Any]]:
        """The codec as entries of a zarr codec pipeline."""
        if self.name == "none":
            return []
        if self.name == "zstd":
            return [{"name": "zstd", "configuration": {"level": self.clevel, "checksum": False}}]
        configuration = {
            "typesize": typesize,
            "cname": self.cname,
            "clevel": self.clevel,
            "shuffle": self.shuffle,
            "blocksize": 0,
        }
        return [{"name": "blosc", "configuration": configuration}]


def root_document() -> dict[str, Any]:
    """`zarr.json` of the store."""
    return group_document({"sparsestore": {"format": FORMAT}})


def group_document(attributes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array, cut along its first axis into shards of inner chunks.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        numpy's name, or "string".
    chunk, shard : int
        Lengths along the first axis, in rows of the array; `chunk` divides `shard`.
    codec : Codec
    fill_value : int, float, bool or str
    attributes : dict
        Free JSON.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk: int
    shard: int
    codec: Codec = Codec()
    fill_value: Any = 0
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def itemsize(self) -> int:
        """Bytes of one row of the array, before compression; 0 for strings."""
        return 0 if self.dtype == "string" else np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])

    @property
    def n_chunks(self) -> int:
        """Inner chunks that hold elements of the array."""
        return -(-self.shape[0] // self.chunk)

    @property
    def n_shards(self) -> int:
        """Shards that hold elements of the array."""
        return -(-self.shape[0] // self.shard)

    def shard_key(self, number: int) -> str:
        """Key of a shard, relative to the array."""
        return f"c/{number}" + "/0" * (len(self.shape) - 1)

    def to_document(self) -> dict[str, Any]:
        """`zarr.json` of the array."""
        tail = list(self.shape[1:])
        if self.dtype == "string":
            serializer: dict[str, Any] = {"name": "vlen-utf8", "configuration": {}}
        else:
            serializer = {"name": "bytes", "configuration": {"endian": "little"}}
        typesize = 1 if self.dtype == "string" else np.dtype(self.dtype).itemsize
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [self.chunk, *tail],
                "codecs": [serializer, *self.codec.documents(typesize)],
                "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                "index_location": "end",
            },
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard, *tail]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": _fill_to_json(self.fill_value),
            "codecs": [sharding],
            "attributes": self.attributes,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], name: str) -> ArraySpec:
        """The array that `zarr.json` describes; FormatError lists what this format does not allow."""
        problems = _Problems(name)
        if document.get("zarr_format") != 3 or document.get("node_type") != "array":
            problems.add("node_type", document.get("node_type"), "an array of zarr format 3")
        shape = tuple(problems.integer(n, "shape") for n in problems.items(document.get("shape"), "shape"))
        dtype = problems.dtype(document.get("data_type"), "data_type", strings=True)
        grid = problems.mapping(document.get("chunk_grid"), "chunk_grid")
        outer = problems.items(
            problems.mapping(grid.get("configuration"), "chunk_grid").get("chunk_shape"), "chunk_shape"
        )
        encoding = document.get("chunk_key_encoding")
        if encoding != {"name": "default", "configuration": {"separator": "/"}}:
            problems.add("chunk_key_encoding", encoding, "default with separator '/'")
        codecs = problems.items(document.get("codecs"), "codecs")
        if [isinstance(c, dict) and c.get("name") for c in codecs] != ["sharding_indexed"]:
            problems.add("codecs", codecs, "sharding_indexed alone")
            codecs = [{}]
        sharding = problems.mapping(codecs[0].get("configuration"), "codecs[0].configuration")
        inner = problems.items(sharding.get("chunk_shape"), "codecs[0].chunk_shape")
        if not shape or len(outer) != len(shape) or outer[1:] != list(shape[1:]) or inner[1:] != list(shape[1:]):
            problems.add(
                "chunk_shape", [outer, inner], f"lengths along the first axis of {list(shape)} and all of the rest"
            )
        shard = problems.integer(outer[0] if outer else None, "chunk_shape[0]", least=1)
        chunk = problems.integer(inner[0] if inner else None, "codecs[0].chunk_shape[0]", least=1)
        if shard % chunk:
            problems.add("codecs[0].chunk_shape[0]", chunk, f"a divisor of the shard length {shard}")
        if sharding.get("index_location", "end") != "end":
            problems.add("index_location", sharding.get("index_location"), "end")
        codec = _codec_from_documents(problems, sharding.get("codecs"), dtype)
        attributes = dict(problems.mapping(document.get("attributes", {}), "attributes"))
        fill = _fill_from_json(problems, document.get("fill_value"), dtype)
        problems.raise_if_any()
        return cls(shape, dtype, chunk, shard, codec, fill, attributes)


def _codec_from_documents(problems: _Problems, documents: Any, dtype: str) -> Codec:
    names = [c.get("name") for c in documents if isinstance(c, dict)] if isinstance(documents, list) else []
    serializer = "vlen-utf8" if dtype == "string" else "bytes"
    if names[:1] != [serializer] or len(names) > 2 or (names[1:] and names[1] not in ("blosc", "zstd")):
        problems.add("codecs[0].codecs", names, f"{serializer!r}, then nothing, 'blosc' or 'zstd'")
        return Codec()
    if not names[1:]:
        return Codec()
    configuration = problems.mapping(documents[1].get("configuration"), "codecs[0].codecs[1].configuration")
    if names[1] == "zstd":
        return Codec("zstd", clevel=problems.integer(configuration.get("level"), "zstd level", least=-131072))
    return Codec(
        "blosc",
        cname=problems.text(configuration.get("cname"), "cname"),
        clevel=problems.integer(configuration.get("clevel"), "clevel", most=9),
        shuffle=problems.text(configuration.get("shuffle"), "shuffle"),
    )


def _fill_to_json(value: Any) -> Any:
    if isinstance(value, (str, bool, int)):
        return value
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _fill_from_json(problems: _Problems, value: Any, dtype: str) -> Any:
    if dtype == "string" and isinstance(value, str):
        return value
    if dtype == "bool" and isinstance(value, bool):
        return value
    if dtype in _INTEGER_DTYPES and isinstance(value, int) and not isinstance(value, bool):
        info = np.iinfo(dtype)
        return problems.integer(value, "fill_value", least=int(info.min), most=int(info.max))
    if dtype.startswith("float") and not isinstance(value, bool):
        if isinstance(value, (int, float)):
            return float(value)
        if value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
    problems.add("fill_value", value, f"a value of dtype {dtype}")
    return None


# ---------------------------------------------------------------------------------------------------- store metadata


@dataclass(frozen=True, slots=True)
class ColumnSchema:
    """Dtype of a column and what follows the row axis in its shape: () or (k,)."""

    dtype: str
    shape: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """One stored object: key (relative to its segment), length in bytes and crc32c of all its bytes."""

    key: str
    length: int
    crc32c: int

    def to_json(self) -> list[Any]:
        """As it stands in documents: ``[key, length, "crc32c"]``."""
        return [self.key, self.length, f"{self.crc32c:08x}"]

    @classmethod
    def from_json(cls, value: Any, path: str, problems: _Problems) -> ObjectEntry:
        """Back from `to_json`."""
        items = problems.items(value, path)
        if len(items) != 3:
            problems.add(path, value, "[key, length, crc32c]")
            return cls("invalid", 0, 0)
        return cls(
            problems.key(items[0], f"{path}[0]"),
            problems.integer(items[1], f"{path}[1]"),
            _crc_from_json(items[2], f"{path}[2]", problems),
        )


def _crc_from_json(value: Any, path: str, problems: _Problems) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{8}", value):
        return int(value, 16)
    problems.add(path, value, "8 lower-case hexadecimal digits")
    return 0


@dataclass(frozen=True, slots=True)
class SegmentLine:
    """What a manifest says of a segment.

    Attributes
    ----------
    id : str
        Name of its folder under ``segments/``.
    rows, nnz : int
    crc32c : int
        Of its segment.json.
    shuffled : bool
        Whether its rows are in a random order, exactly shuffled when they were written.
    """

    id: str
    rows: int
    nnz: int
    crc32c: int
    shuffled: bool = False

    def to_json(self) -> list[Any]:
        """As it stands in the manifest: ``[id, rows, nnz, "crc32c", shuffled]``."""
        return [self.id, self.rows, self.nnz, f"{self.crc32c:08x}", self.shuffled]

    @classmethod
    def from_json(cls, value: Any, path: str, problems: _Problems) -> SegmentLine:
        """Back from `to_json`."""
        items = problems.items(value, path)
        if len(items) != 5 or "/" in str(items[0]):
            problems.add(path, value, "[id, rows, nnz, crc32c, shuffled]")
            return cls("invalid", 0, 0, 0)
        return cls(
            problems.key(items[0], f"{path}[0]"),
            problems.integer(items[1], f"{path}[1]", least=1),
            problems.integer(items[2], f"{path}[2]"),
            _crc_from_json(items[3], f"{path}[3]", problems),
            items[4] is True,
        )


@dataclass(frozen=True, slots=True)
class PageEntry:
    """An immutable page of older segment lines: its object and how many segments it has."""

    object: ObjectEntry
    segments: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a store.

    Attributes
    ----------
    version : int
        From 1.
    parent : int or None
        The version that this one was made from.
    rows, n_features, nnz : int
    dtype : str
        Logical dtype of the values.
    columns : dict of str to ColumnSchema
    segments : tuple of SegmentLine
        The newest, at most 256; older ones stand in `pages`.
    pages : tuple of PageEntry
        Oldest first.
    features : str or None
        Folder under ``features/`` with feature names; None where there are none.
    shuffled : dict or None
        How rows were shuffled at conversion: ``{"method": "exact", "seed": 0}``.
    profile : str
        Profile for segments to come.
    created : str
        ISO 8601, UTC.
    attrs : dict
        Free JSON: provenance.
    """

    version: int
    parent: int | None
    rows: int
    n_features: int
    nnz: int
    dtype: str
    columns: dict[str, ColumnSchema]
    segments: tuple[SegmentLine, ...]
    pages: tuple[PageEntry, ...] = ()
    features: str | None = None
    shuffled: dict[str, Any] | None = None
    profile: str = "raw"
    created: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def n_segments(self) -> int:
        """Segments of this version, pages included."""
        return len(self.segments) + sum(page.segments for page in self.pages)

    def to_document(self) -> dict[str, Any]:
        """The manifest's JSON, without its own crc32c (see `seal`)."""
        return {
            "format": FORMAT,
            "version": self.version,
            "parent": self.parent,
            "shape": [self.rows, self.n_features],
            "nnz": self.nnz,
            "dtype": self.dtype,
            "columns": {name: schema.to_json() for name, schema in self.columns.items()},
            "features": self.features,
            "shuffled": self.shuffled,
            "profile": self.profile,
            "created": self.created,
            "attrs": self.attrs,
            "pages": [[*page.object.to_json(), page.segments] for page in self.pages],
            "segments": [line.to_json() for line in self.segments],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], name: str) -> Manifest:
        """Back from `to_document`; FormatError lists every problem, or says that the format is not known."""
        found = document.get("format")
        if found != FORMAT:
            raise FormatError(
                f"{name}: format {found!r} is not known to this release, which reads format {FORMAT}: "
                f"upgrade sparsestore, or convert the data again"
            )
        problems = _Problems(name)
        shape = problems.items(document.get("shape"), "shape")
        if len(shape) != 2:
            problems.add("shape", shape, "[rows, features]")
            shape = [0, 0]
        columns: dict[str, ColumnSchema] = {}
        for column, schema in problems.mapping(document.get("columns"), "columns").items():
            bad = column_problem(column)
            if bad:
                problems.add("columns", column, bad)
            schema = problems.mapping(schema, f"columns.{column}")
            tail = problems.items(schema.get("shape"), f"columns.{column}.shape")
            columns[column] = ColumnSchema(
                problems.dtype(schema.get("dtype"), f"columns.{column}.dtype", strings=True),
                tuple(problems.integer(n, f"columns.{column}.shape", least=1) for n in tail),
            )
        pages = []
        for i, page in enumerate(problems.items(document.get("pages"), "pages")):
            page = problems.items(page, f"pages[{i}]")
            entry = ObjectEntry.from_json(page[:3], f"pages[{i}]", problems)
            pages.append(
                PageEntry(entry, problems.integer(page[3] if len(page) == 4 else None, f"pages[{i}][3]", least=1))
            )
        lines = tuple(
            SegmentLine.from_json(line, f"segments[{i}]", problems)
            for i, line in enumerate(problems.items(document.get("segments"), "segments"))
        )
        parent, features, shuffled = document.get("parent"), document.get("features"), document.get("shuffled")
        manifest = cls(
            version=problems.integer(document.get("version"), "version", least=1),
            parent=None if parent is None else problems.integer(parent, "parent", least=1),
            rows=problems.integer(shape[0], "shape[0]"),
            n_features=problems.integer(shape[1], "shape[1]"),
            nnz=problems.integer(document.get("nnz"), "nnz"),
            dtype=problems.dtype(document.get("dtype"), "dtype"),
            columns=columns,
            segments=lines,
            pages=tuple(pages),
            features=None if features is None else problems.key(features, "features"),
            shuffled=None if shuffled is None else dict(problems.mapping(shuffled, "shuffled")),
            profile=problems.text(document.get("profile"), "profile"),
            created=problems.text(document.get("created"), "created"),
            attrs=dict(problems.mapping(document.get("attrs"), "attrs")),
        )
        if not pages:
            totals = sum(line.rows for line in lines), sum(line.nnz for line in lines)
            if totals != (manifest.rows, manifest.nnz):
                problems.add("segments", totals, f"rows and nnz that add up to {(manifest.rows, manifest.nnz)}")
        problems.raise_if_any()
        return manifest

    def page_lines(self, document: Mapping[str, Any], name: str) -> tuple[SegmentLine, ...]:
        """Segment lines of a page's JSON."""
        problems = _Problems(name)
        lines = tuple(
            SegmentLine.from_json(line, f"segments[{i}]", problems)
            for i, line in enumerate(problems.items(document.get("segments"), "segments"))
        )
        problems.raise_if_any()
        return lines

    def with_changes(self, **changes: Any) -> Manifest:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def manifest_key(version: int) -> str:
    """Key of a manifest."""
    return f"versions/{version:08d}.json"


@dataclass(frozen=True, slots=True)
class SegmentDocument:
    """segment.json: what an immutable segment holds.

    Attributes
    ----------
    rows, nnz, n_features : int
        `n_features` is the segment's own width; the store may be wider.
    indices_dtype, data_dtype : str
        As stored.
    constant : bool
        All values are equal: they stand as the fill_value of ``X/data``, which has no chunk.
    longest_row : int
        Most entries in a row.
    row_id_start : int
        Number of the first row in all the rows ever appended; row i has ``row_id_start + i`` where the segment has no
        column ``row_id`` of its own.
    profile : str
    objects : tuple of ObjectEntry
        Every object of the segment but segment.json, keys relative to the segment.
    """

    rows: int
    nnz: int
    n_features: int
    indices_dtype: str
    data_dtype: str
    constant: bool
    longest_row: int
    row_id_start: int
    profile: str
    objects: tuple[ObjectEntry, ...]

    def to_document(self) -> dict[str, Any]:
        """The JSON of segment.json."""
        return {
            "format": FORMAT,
            "rows": self.rows,
            "nnz": self.nnz,
            "n_features": self.n_features,
            "indices_dtype": self.indices_dtype,
            "data_dtype": self.data_dtype,
            "constant": self.constant,
            "longest_row": self.longest_row,
            "row_id_start": self.row_id_start,
            "profile": self.profile,
            "objects": [entry.to_json() for entry in self.objects],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], name: str) -> SegmentDocument:
        """Back from `to_document`; FormatError lists every problem."""
        problems = _Problems(name)
        if document.get("format") != FORMAT:
            problems.add("format", document.get("format"), str(FORMAT))
        segment = cls(
            rows=problems.integer(document.get("rows"), "rows", least=1),
            nnz=problems.integer(document.get("nnz"), "nnz"),
            n_features=problems.integer(document.get("n_features"), "n_features"),
            indices_dtype=problems.dtype(document.get("indices_dtype"), "indices_dtype"),
            data_dtype=problems.dtype(document.get("data_dtype"), "data_dtype"),
            constant=document.get("constant") is True,
            longest_row=problems.integer(document.get("longest_row"), "longest_row"),
            row_id_start=problems.integer(document.get("row_id_start"), "row_id_start"),
            profile=problems.text(document.get("profile"), "profile"),
            objects=tuple(
                ObjectEntry.from_json(entry, f"objects[{i}]", problems)
                for i, entry in enumerate(problems.items(document.get("objects"), "objects"))
            ),
        )
        problems.raise_if_any()
        return segment
