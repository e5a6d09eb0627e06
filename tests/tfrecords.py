"""TFRecord files as the formats' documents describe them, written byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from google_crc32c import value as crc32c


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked(crc32c(length))) + payload + struct.pack("<I", masked(crc32c(payload)))


def varint(number: int) -> bytes:
    number %= 2**64
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def message(number: int, payload: bytes) -> bytes:
    """A field of type 2."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def ints(values: Iterable[int], packed: bool = True) -> bytes:
    parts = [varint(value) for value in values]
    return message(3, message(1, b"".join(parts)) if packed and parts else b"".join(b"\x08" + part for part in parts))


def floats(values: Iterable[float], packed: bool = True) -> bytes:
    parts = [struct.pack("<f", value) for value in values]
    return message(2, message(1, b"".join(parts)) if packed and parts else b"".join(b"\x0d" + part for part in parts))


def texts(values: Iterable[str | bytes]) -> bytes:
    return message(1, b"".join(message(1, v.encode() if isinstance(v, str) else v) for v in values))


def feature(value: Any) -> bytes:
    """A ``Feature`` of a number, a text or a list of these; bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    values = value if isinstance(value, list) else [value]
    if all(isinstance(v, str) for v in values) and values:
        return texts(values)
    return floats(values) if any(isinstance(v, float) for v in values) else ints(values)


def entry(name: str | bytes, value: Any) -> bytes:
    key = name.encode() if isinstance(name, str) else name
    return message(1, message(1, key) + message(2, feature(value)))


def example(features: Mapping[str, Any]) -> bytes:
    return message(1, b"".join(entry(name, value) for name, value in features.items()))


def elwc(examples: Iterable[Mapping[str, Any]], context: Mapping[str, Any] | None = None) -> bytes:
    rows = b"".join(message(1, example(features)) for features in examples)
    return rows + (message(2, example(context)) if context is not None else b"")


def tfrecord(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(record(example(features)) for features in rows)
