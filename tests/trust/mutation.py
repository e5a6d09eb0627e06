"""Mutations of JSON documents and of bytes, each drawn from a generator: the same generator, the same mutation."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

__all__ = ["document", "mutated", "number", "with_a_key_twice"]

_NUMBERS = [
    *(-1, 0, 1, 2, 3, 255, 256, 65535, 65536, 65537, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32, 2**40, 2**53 + 1),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**31), -(2**63), -(2**63) - 1, 0.0, -0.0, 1.0, 1.5, 1e308),
]
_OTHERS: list[Any] = [
    *(True, False, None, "", "0", "1", "x", "raw", "compact", "string", "int64", "float16", "uint8", "bool", "NaN"),
    *("Infinity", "../x", "/etc/passwd", "a//b", "a\\b", "a\x00", "\ud800", "ü", "zstd", "lz4", "big", "00000000"),
    *([], {}, [[]], [0], {"a": 1}, [None] * 3, {"name": "bytes"}, ["a", 1, "00000000"], "f" * 300),
]
_TEXTS = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b'{"a":1,"a":1}', b"[" * 3000),
    *(
        b"\xff",
        b"\x00",
        b"\xef\xbb\xbf",
        b'"\\ud800"',
        b'"\\u0000"',
        b"1.",
        b"01",
        b"'",
        b",",
        b"]",
        b"}",
        b":",
        b"1E2",
    ),
    *(b"\xed\xa0\x80", b"null", b"-", b"//", b'"', b"\n" * 100),
]


def number(rng: random.Random, old: int = 0) -> int:
    """A whole number that may be wrong in the place of another."""
    found = rng.choice([old - 1, old + 1, old * 2, -old, old ^ 1 << rng.randrange(63), rng.choice(_NUMBERS)])
    return int(found)


def _value(rng: random.Random, old: Any) -> Any:
    """What may stand in the place of a value."""
    kind = rng.randrange(8)
    if kind < 3 and isinstance(old, (int, float)) and abs(old) < 2**70:
        return rng.choice([old + 1, old - 1, -old, old * 2, float(old), str(old), [old], bool(old)])
    if kind < 2 and isinstance(old, str):
        at = rng.randrange(len(old) + 1)
        return rng.choice(
            [old + "x", old[:at], old[:at] + rng.choice("/.0az~\x00é") + old[at + 1 :], old.upper(), [old]]
        )
    return rng.choice(_NUMBERS if kind < 5 else _OTHERS)


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        _places(inner, found)
    return found


def document(rng: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    """A copy with one or two values replaced, removed, repeated or exchanged."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2])):
        places = _places(value, [])
        if not places:
            return value
        container, key = rng.choice(places)
        kind = rng.randrange(10)
        if kind == 0:
            del container[key]
        elif kind == 1:
            other, name = rng.choice(places)
            container[key] = json.loads(json.dumps(other[name]))
        elif kind == 2 and isinstance(container, list):
            container.insert(key, json.loads(json.dumps(container[key])))
        elif kind == 2:
            container[f"{key}x"] = container.pop(key)
        else:
            container[key] = json.loads(json.dumps(_value(rng, container[key])))
    return dict(value)


def with_a_key_twice(rng: random.Random, payload: bytes) -> bytes:
    """A document in which a key comes a second time, before or after the first, with another value."""
    found = rng.choice(list(re.finditer(rb'"\w+":', payload)))
    value = rng.choice([b"0", b"1", b"null", b'"x"', b"[]", b"{}", b"true"])
    return payload[: found.start()] + found[0] + value + b"," + payload[found.start() :]


def mutated(rng: random.Random, payload: bytes) -> bytes:
    """Bytes with some of them flipped, removed, repeated, or replaced by what parsers stumble over."""
    changed = bytearray(payload)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(changed) + 1)
        stop = min(at + rng.choice([1, 1, 2, 8, 64]), len(changed))
        kinds: list[Callable[[], bytes]] = [
            lambda part=changed[at:stop]: bytes([byte ^ 1 << rng.randrange(8) for byte in part]),  # type: ignore[misc]
            lambda: b"",
            lambda part=changed[at:stop]: bytes(part * 2),  # type: ignore[misc]
            lambda: rng.choice(_TEXTS),
            lambda: rng.randbytes(rng.randrange(1, 9)),
        ]
        changed[at:stop] = rng.choice(kinds)()
    return bytes(changed)
