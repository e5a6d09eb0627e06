"""JSON documents: written compactly, read strictly, every problem listed with its path. A leaf but for errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsestore.errors import FormatError

__all__ = ["DTYPES", "Problems", "dump", "exactly_json", "key_problem", "parse_json", "seal", "unseal"]

DTYPES = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)) | {
    "bool",
    "float16",
    "float32",
    "float64",
}
"""Dtypes that arrays can have, beside "string" for columns."""

_SEAL = b'{"crc32c":"'
_KEY_PART = re.compile(r"[^/\\\x00-\x1f\ud800-\udfff]+")
_LONGEST_KEY = 1000
_SHOWN = 200
"""Letters of a wrong value in a message."""
_LISTED = 50
"""Problems in a message."""


class Problems:
    """Collects what is wrong with a document, each with its path, and raises once.

    Its methods take a value and give it back as the type that was asked for, or note a problem and give a stand-in.
    """

    def __init__(self, document: str) -> None:
        self.document = document
        self.found: list[str] = []

    def add(self, path: str, found: Any, expected: str) -> None:
        """Note one problem."""
        shown = repr(found)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        self.found.append(f"{path[:_SHOWN]}: found {shown}, expected {expected}")

    def integer(self, value: Any, path: str, *, least: int = 0, most: int = 2**63 - 1) -> int:
        """An integer within limits."""
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.add(path, value, f"an integer from {least} to {most}")
            return least
        return value

    def text(self, value: Any, path: str) -> str:
        """A string."""
        if not isinstance(value, str):
            self.add(path, value, "a string")
            return ""
        return value

    def flag(self, value: Any, path: str) -> bool:
        """True or false."""
        if not isinstance(value, bool):
            self.add(path, value, "true or false")
            return False
        return value

    def choice(self, value: Any, path: str, choices: Sequence[str]) -> str:
        """One of some strings."""
        if isinstance(value, str) and value in choices:
            return value
        self.add(path, value, f"one of {', '.join(choices)}")
        return choices[0]

    def mapping(self, value: Any, path: str) -> Mapping[str, Any]:
        """A JSON object."""
        if not isinstance(value, dict):
            self.add(path, type(value).__name__, "an object")
            return {}
        return value

    def items(self, value: Any, path: str) -> list[Any]:
        """A JSON list."""
        if not isinstance(value, list):
            self.add(path, type(value).__name__, "a list")
            return []
        return value

    def dtype(self, value: Any, path: str, *, strings: bool = False) -> str:
        """The name of a dtype that the format has."""
        if isinstance(value, str) and (value in DTYPES or (strings and value == "string")):
            return value
        self.add(path, value, "a dtype of the format: bool, int8 to uint64, float16 to float64" + strings * ", string")
        return "float32"

    def key(self, value: Any, path: str) -> str:
        """A key that stays inside the store."""
        problem = key_problem(value)
        if problem:
            self.add(path, value, problem)
            return "invalid"
        return str(value)

    def crc32c(self, value: Any, path: str) -> int:
        """A checksum: 8 lower-case hexadecimal digits."""
        if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{8}", value):
            return int(value, 16)
        self.add(path, value, "8 lower-case hexadecimal digits")
        return 0

    def raise_if_any(self) -> None:
        """Raise FormatError with all problems noted, a line each; of very many, the first."""
        if self.found:
            more = [f"and {len(self.found) - _LISTED} more"] if len(self.found) > _LISTED else []
            raise FormatError(f"{self.document} is not valid:\n  " + "\n  ".join([*self.found[:_LISTED], *more]))


def key_problem(key: Any) -> str | None:
    """What is wrong with an object key that came from a document; None when it stays inside the store."""
    if not isinstance(key, str) or not key:
        return "a relative key"
    parts = key.split("/")
    if any(part in ("", ".", "..") or not _KEY_PART.fullmatch(part) for part in parts):
        return "a relative key of plain parts: no '..', no leading '/', no backslash"
    if len(key) > _LONGEST_KEY or any(len(part.encode()) > 255 for part in parts):
        return f"a key of at most {_LONGEST_KEY} letters, 255 bytes a part"
    return None


def dump(document: Any) -> bytes:
    """JSON bytes, compact, ASCII, keys in the order given."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def exactly_json(value: Any, path: str) -> Any:
    """A copy of a value that JSON gives back as it is: numpy's scalars as Python's, tuples as lists.

    Raises
    ------
    ValueError
        Where JSON would give back something else, or nothing: of keys that are no strings two may become one.

    Examples
    --------
    >>> import numpy as np
    >>> exactly_json({"seed": np.int64(7), "cuts": (0.5, 1)}, "attrs")
    {'seed': 7, 'cuts': [0.5, 1]}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{path}: found the key {key!r:.{_SHOWN}}, expected strings, as JSON has them")
        # as the text that it is: an enumeration's str() is its name
        return {str.__str__(key): exactly_json(item, f"{path}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exactly_json(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path}: found {value}, expected a finite number, as JSON has them")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f"{path}: found a {type(value).__name__}, expected what JSON has: dict, list, str, int, float, bool or None"
    )


def parse_json(payload: bytes, document: str) -> dict[str, Any]:
    """The JSON object in `payload`; FormatError names the document.

    Read strictly: UTF-8, each key once, and numbers that are numbers.
    """
    try:
        text = payload.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_each_key_once, parse_float=_finite, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{document} is no JSON: {str(error)[:_SHOWN]}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{document}: found {type(value).__name__}, expected an object")
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:_SHOWN]!r} stands there twice")
            seen.add(key)
    return found


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


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
