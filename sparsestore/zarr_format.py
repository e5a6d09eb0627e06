"""Zarr v3 metadata as plain types: the arrays and groups that format 1 is made of. No I/O.

After the Zarr v3 core specification (https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html) and its sharding
codec (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsestore.documents import Problems

__all__ = ["MOST_CHUNK", "MOST_SHARD", "ArraySpec", "Codec", "group_document"]

MOST_CHUNK = 1 << 16
MOST_SHARD = 1 << 24
"""Lengths that inner chunks and shards have at most, in rows of the array."""
_PAGE = 1 << 16
"""Bytes: a multiple of a page of memory on every machine."""
_COMPRESSORS = ("lz4", "lz4hc", "blosclz", "zlib", "zstd", "snappy")
_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
_KEYS = frozenset(
    {
        "attributes",
        "chunk_grid",
        "chunk_key_encoding",
        "codecs",
        "data_type",
        "dimension_names",
        "fill_value",
        "node_type",
        "shape",
        "storage_transformers",
        "zarr_format",
    }
)  # what a reader does not know it may not leave out of account
_SHARDING_KEYS = ("chunk_shape", "codecs", "index_codecs", "index_location")
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


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

    @property
    def border_problem(self) -> str:
        """Why shards that are not compressed can not be mapped end to end; empty where they can."""
        n_bytes = self.shard * self.itemsize
        if self.n_shards < 2 or n_bytes % _PAGE == 0:
            return ""
        return f"{self.n_shards} shards hold {n_bytes} bytes of chunks each, expected one, or a multiple of {_PAGE}"

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
                "index_codecs": _INDEX_CODECS,
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
        problems = Problems(name)
        if not _is_three(document.get("zarr_format")) or document.get("node_type") != "array":
            problems.add("node_type", document.get("node_type"), "an array of zarr format 3")
        for key in sorted(document.keys() - _KEYS):
            problems.add(key, document[key], "no such key")
        if document.get("storage_transformers", []) != []:
            problems.add("storage_transformers", document["storage_transformers"], "none")
        shape = tuple(problems.integer(n, "shape") for n in problems.items(document.get("shape"), "shape"))
        dtype = problems.dtype(document.get("data_type"), "data_type", strings=True)
        if dtype == "string" and len(shape) > 1:
            problems.add("shape", list(shape), "one axis, as elements are strings")
        grid = problems.mapping(document.get("chunk_grid"), "chunk_grid")
        if grid.get("name") != "regular":
            problems.add("chunk_grid.name", grid.get("name"), "regular")
        _only(problems, grid, "chunk_grid", ("name", "configuration"))
        _only(problems, grid.get("configuration"), "chunk_grid.configuration", ("chunk_shape",))
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
        _only(problems, codecs[0], "codecs[0]", ("name", "configuration"))
        sharding = problems.mapping(codecs[0].get("configuration"), "codecs[0].configuration")
        _only(problems, sharding, "codecs[0].configuration", _SHARDING_KEYS)
        inner = problems.items(sharding.get("chunk_shape"), "codecs[0].chunk_shape")
        if not shape or any(not _the_same(lengths[1:], shape[1:]) for lengths in (outer, inner)):
            problems.add(
                "chunk_shape", [outer, inner], f"lengths along the first axis of {list(shape)} and all of the rest"
            )
        shard = problems.integer(outer[0] if outer else None, "chunk_shape[0]", least=1, most=MOST_SHARD)
        chunk = problems.integer(inner[0] if inner else None, "codecs[0].chunk_shape[0]", least=1, most=MOST_CHUNK)
        if shard % chunk:
            problems.add("codecs[0].chunk_shape[0]", chunk, f"a divisor of the shard length {shard}")
        if sharding.get("index_location", "end") != "end":
            problems.add("index_location", sharding.get("index_location"), "end")
        if sharding.get("index_codecs") != _INDEX_CODECS:
            problems.add("index_codecs", sharding.get("index_codecs"), "bytes in little-endian order, then crc32c")
        codec = _codec_from_documents(problems, sharding.get("codecs"), dtype)
        attributes = dict(problems.mapping(document.get("attributes", {}), "attributes"))
        fill = _fill_from_json(problems, document.get("fill_value"), dtype)
        problems.raise_if_any()
        return cls(shape, dtype, chunk, shard, codec, fill, attributes)


def _only(problems: Problems, found: Any, path: str, keys: tuple[str, ...]) -> None:
    """Note keys that are not known: what they say would be left out of account."""
    if isinstance(found, dict):
        for key in sorted(found.keys() - set(keys)):
            problems.add(f"{path}.{key}", found[key], "no such key")


def _is_three(value: Any) -> bool:
    return type(value) is int and value == 3


def _the_same(lengths: list[Any], expected: tuple[int, ...]) -> bool:
    return lengths == list(expected) and all(type(n) is int for n in lengths)


def _codec_from_documents(problems: Problems, documents: Any, dtype: str) -> Codec:
    found = documents if isinstance(documents, list) else []
    names = [c.get("name") if isinstance(c, dict) else None for c in found]
    # a blosc frame is decoded straight into the array, which holds the bytes of numbers, and not those of text
    serializer, compressors = ("vlen-utf8", ["zstd"]) if dtype == "string" else ("bytes", ["blosc", "zstd"])
    if names[:1] != [serializer] or len(names) > 2 or (names[1:] and names[1] not in compressors):
        allowed = ", ".join(["nothing", *map(repr, compressors)])
        problems.add("codecs[0].codecs", names, f"{serializer!r}, then one of: {allowed}")
        return Codec()
    serializing = found[0].get("configuration", {}) if isinstance(found[0], dict) else None
    # one byte has no order, and zarr leaves it out
    if dtype != "string" and serializing != {"endian": "little"} and (np.dtype(dtype).itemsize > 1 or serializing):
        problems.add("codecs[0].codecs[0].configuration", serializing, "little-endian numbers")
    if not names[1:]:
        return Codec()
    configuration = problems.mapping(documents[1].get("configuration"), "codecs[0].codecs[1].configuration")
    if names[1] == "zstd":
        return Codec("zstd", clevel=problems.integer(configuration.get("level"), "zstd level", least=-131072, most=22))
    return Codec(
        "blosc",
        cname=problems.choice(configuration.get("cname"), "cname", _COMPRESSORS),
        clevel=problems.integer(configuration.get("clevel"), "clevel", most=9),
        shuffle=problems.choice(configuration.get("shuffle"), "shuffle", _SHUFFLES),
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


def _fill_from_json(problems: Problems, value: Any, dtype: str) -> Any:
    if dtype == "string" and isinstance(value, str):
        return value
    if dtype == "bool" and isinstance(value, bool):
        return value
    if "int" in dtype and isinstance(value, int) and not isinstance(value, bool):
        info = np.iinfo(dtype)
        return problems.integer(value, "fill_value", least=int(info.min), most=int(info.max))
    if dtype.startswith("float") and not isinstance(value, bool):
        if isinstance(value, float) or (isinstance(value, int) and abs(value) <= 2**53):
            return float(value)
        if value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
    problems.add("fill_value", value, f"a value of dtype {dtype}")
    return None
