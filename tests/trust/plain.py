"""What stored bytes mean, read in the plainest way with json, numpy and numcodecs: nothing of the package's reading."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import zstandard
from google_crc32c import value as crc32c
from numcodecs import blosc, zstd
from numcodecs.vlen import VLenUTF8

Array = np.ndarray[Any, Any]


class UnreadableError(Exception):
    """The bytes mean nothing."""


def same(first: Any, second: Any) -> bool:
    """Whether two JSON values are one: 1 is neither 1.0 nor true."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def shard(payloads: Sequence[bytes], per_shard: int) -> bytes:
    """Chunks end to end, and their index."""
    index = np.full((per_shard, 2), 2**64 - 1, "<u8")
    ends = np.cumsum([len(payload) for payload in payloads])
    index[: len(payloads), 1] = [len(payload) for payload in payloads]
    index[: len(payloads), 0] = ends - index[: len(payloads), 1].astype(np.int64)
    return b"".join(payloads) + sealed(index)


def sealed(index: Array) -> bytes:
    """A shard's index and its checksum."""
    payload = index.tobytes()
    return payload + int(crc32c(payload)).to_bytes(4, "little")


def chunks(stored: bytes, per_shard: int, present: int) -> list[bytes]:
    """Encoded chunks of a shard."""
    size = 16 * per_shard + 4
    if len(stored) < size:
        raise UnreadableError("no index")
    found = []
    for start, length in np.frombuffer(stored[-size:-4], "<u8").reshape(-1, 2)[:present].tolist():
        if start + length > len(stored) - size:
            raise UnreadableError("a chunk outside of the shard")
        found.append(stored[start : start + length])
    return found


def decoded(payload: bytes, codec: str, dtype: str, n: int) -> Array:
    """One chunk of n elements."""
    size = 0 if dtype == "string" else n * np.dtype(dtype).itemsize
    if codec == "blosc" and (len(payload) < 16 or int.from_bytes(payload[4:8], "little") != size):
        raise UnreadableError("another size is declared")
    if codec == "blosc" and int.from_bytes(payload[12:16], "little") != len(payload):
        raise UnreadableError("another length is declared")
    try:
        if codec == "zstd" and not 0 <= zstandard.frame_content_size(payload) <= 1 << 28:
            raise ValueError("a bomb")
        if codec == "blosc":
            payload = bytes(blosc.decompress(payload))
        elif codec == "zstd":
            payload = bytes(zstd.decompress(payload))
        found = VLenUTF8().decode(payload) if dtype == "string" else np.frombuffer(payload, dtype)
    except (ValueError, RuntimeError, zstandard.ZstdError) as error:
        raise UnreadableError(str(error)) from None
    if len(found) != n:
        raise UnreadableError(f"{len(found)} elements")
    return np.asarray(found)


def array(objects: Mapping[str, bytes], prefix: str, rows: Array | None = None) -> Array:
    """An array of a store: all of it, or some rows, of which alone the chunks are looked at."""
    document = json.loads(objects[f"{prefix}/zarr.json"])
    shape, dtype = document["shape"], document["data_type"]
    sharding = document["codecs"][0]["configuration"]
    per_chunk = sharding["chunk_shape"]
    codec = [*(found["name"] for found in sharding["codecs"]), "none"][1]
    rows = np.arange(shape[0]) if rows is None else rows
    if not any(key.startswith(f"{prefix}/c/") for key in objects):
        return np.full((len(rows), *shape[1:]), document["fill_value"], dtype)
    n_chunks = -(-shape[0] // per_chunk[0])
    per_shard = document["chunk_grid"]["configuration"]["chunk_shape"][0] // per_chunk[0]
    n = int(np.prod(per_chunk))
    blank = np.zeros((0, *shape[1:]), object if dtype == "string" else dtype)
    found = {-1: blank}
    for number in sorted({int(chunk) // per_shard for chunk in rows // per_chunk[0]}):
        stored = objects[f"{prefix}/c/{number}" + "/0" * (len(shape) - 1)]
        encoded = chunks(stored, per_shard, min(per_shard, n_chunks - number * per_shard))
        for chunk in sorted({int(chunk) for chunk in rows // per_chunk[0] if chunk // per_shard == number}):
            found[chunk] = decoded(encoded[chunk % per_shard], codec, dtype, n).reshape(-1, *shape[1:])
    start = {chunk: sum(len(found[other]) for other in found if other < chunk) for chunk in found}
    whole = np.concatenate([found[chunk] for chunk in sorted(found)])
    return whole[[start[int(row) // per_chunk[0]] + int(row) % per_chunk[0] for row in rows]]


def matrix(objects: Mapping[str, bytes], segment: str, rows: int, width: int, dtype: str) -> sp.csr_array:
    """The rows of a segment; UnreadableError where its arrays are no canonical CSR."""
    parts = [array(objects, f"segments/{segment}/X/{name}") for name in ("data", "indices", "indptr")]
    data, indices, indptr = parts[0].astype(dtype), parts[1].astype(np.int64), parts[2]
    try:
        found = sp.csr_array((data, indices, indptr), shape=(rows, width))
        found.check_format(full_check=True)
    except ValueError as error:
        raise UnreadableError(str(error)) from None
    if indptr[0] != 0 or not len(indptr) - 1 == rows or not indptr[-1] == len(indices) == len(data):
        raise UnreadableError("the ends do not meet")
    if not found.has_canonical_format:
        raise UnreadableError("feature numbers do not ascend")
    return found
