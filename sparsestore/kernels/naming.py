"""Numbers for texts: an open hash table that counts them as they first come, and the hash of the hashing trick.

Texts are spans of a buffer of bytes, as tokenizers and Arrow give them. Each has a field (of a table, or a namespace):
the same text of two fields is two names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "EMPTY",
    "decimals",
    "decimals_numpy",
    "hashes",
    "hashes_numpy",
    "look_up",
    "look_up_numpy",
    "murmur",
    "murmur_numpy",
    "refill",
]

Array = NDArray[Any]

EMPTY = np.uint32(0xFFFFFFFF)
"""A slot without a name."""

_ZERO, _ONE = np.uint64(0), np.uint64(1)
_PRIME = np.uint64(2**61 - 1)
_LOW = np.uint64(2**32 - 1)


@njit(nogil=True, cache=True)
def _mixed(h: Any, key: Any) -> Any:
    """(h * key) modulo 2**61 - 1, for both below it: the product in halves of 32 bits."""
    h1, h0 = h >> np.uint64(32), h & _LOW
    k1, k0 = key >> np.uint64(32), key & _LOW
    middle = h1 * k0 + h0 * k1  # below 2**63
    low = h0 * k0
    high = h1 * k1  # counts 2**64, which is 8 modulo the prime
    total = (high << np.uint64(3)) + (middle >> np.uint64(29)) + ((middle & np.uint64(2**29 - 1)) << np.uint64(32))
    total = (total & _PRIME) + (total >> np.uint64(61)) + (low & _PRIME) + (low >> np.uint64(61))
    total = (total & _PRIME) + (total >> np.uint64(61))
    return total - _PRIME if total >= _PRIME else total


@njit(nogil=True, cache=True)
def hashes(text: Array, starts: Array, stops: Array, fields: Array, key: np.uint64, out: Array) -> None:
    """Write a hash of each span and its field: a polynomial in `key` modulo 2**61 - 1, 7 bytes a step.

    With a key that nobody knows two texts of n bytes collide with a chance of n / 7 / 2**61: nobody can write a file
    that makes the table slow (L. Carter, M. Wegman, "Universal classes of hash functions", 1979).
    """
    for k in range(np.uint64(len(starts))):
        i, stop = np.uint64(starts[k]), np.uint64(stops[k])
        h = _mixed((np.uint64(fields[k]) << np.uint64(32)) % _PRIME + (stop - i) + _ONE, key)
        while i < stop:
            word = np.uint64(0)
            last = min(i + np.uint64(7), stop)
            while i < last:
                word = (word << np.uint64(8)) | np.uint64(text[i])
                i += _ONE
            h += word
            h = _mixed((h & _PRIME) + (h >> np.uint64(61)), key)
        out[k] = h


def hashes_numpy(text: Array, starts: Array, stops: Array, fields: Array, key: int, out: Array) -> None:
    """Twin of `hashes`, with Python's integers."""
    prime = 2**61 - 1
    payload = text.tobytes()
    for k, (start, stop, field) in enumerate(zip(starts.tolist(), stops.tolist(), fields.tolist(), strict=True)):
        h = ((field << 32) % prime + stop - start + 1) * int(key) % prime
        for i in range(start, stop, 7):
            h = (h + int.from_bytes(payload[i : min(i + 7, stop)])) * int(key) % prime
        out[k] = h


@njit(nogil=True, cache=True)
def look_up(
    text: Array,
    starts: Array,
    stops: Array,
    fields: Array,
    hashed: Array,
    begin: int,
    add: bool,
    slots: Array,
    known: Array,
    known_fields: Array,
    ends: Array,
    letters: Array,
    n: int,
    codes: Array,
) -> Any:
    """Write the number of each span's name from span `begin` on, adding names that are new; -> (span, names).

    Ends early at a span for which there is no room. A name that is not there is -1 where none are added.

    Parameters
    ----------
    slots : (power of two,) uint32 array
        Numbers of names, or `EMPTY`; at least twice as many as names.
    known : (room,) uint64 array
        Hash of each name.
    known_fields : (room,) int32 array
    ends : (room + 1,) int64 array
        Name i is ``letters[ends[i]:ends[i + 1]]``.
    letters : (room,) uint8 array
    n : int
        Names that are there.
    """
    mask = np.uint64(len(slots) - 1)
    for k in range(np.uint64(begin), np.uint64(len(starts))):
        start, size = np.uint64(starts[k]), np.uint64(stops[k] - starts[k])
        h, field = hashed[k], fields[k]
        at = h & mask
        code = slots[at]
        while code != EMPTY:
            name = np.uint64(code)
            if known[name] == h and known_fields[name] == field:
                first = np.uint64(ends[name])
                if np.uint64(ends[name + _ONE]) - first == size:
                    same = True
                    for i in range(size):
                        if letters[first + np.uint64(i)] != text[start + np.uint64(i)]:
                            same = False
                            break
                    if same:
                        break
            at = (at + _ONE) & mask
            code = slots[at]
        if code != EMPTY:
            codes[k] = np.int64(code)
            continue
        if not add:
            codes[k] = -1
            continue
        end = np.uint64(ends[n])
        if n >= len(known) or 2 * (n + 1) > len(slots) or end + size > np.uint64(len(letters)):
            return np.int64(k), n
        for i in range(size):
            letters[end + np.uint64(i)] = text[start + np.uint64(i)]
        slots[at] = np.uint32(n)
        known[n] = h
        known_fields[n] = field
        ends[n + 1] = np.int64(end + size)
        codes[k] = n
        n += 1
    return np.int64(len(starts)), n


def look_up_numpy(names: dict[tuple[int, bytes], int], spans: list[tuple[int, bytes]], add: bool) -> list[int]:
    """Twin of `look_up` for all it does: a dict of (field, text)."""
    return [names.setdefault(span, len(names)) if add else names.get(span, -1) for span in spans]


@njit(nogil=True, cache=True)
def refill(slots: Array, known: Array, n: int) -> None:
    """Put n names into a larger table, all of whose slots are `EMPTY`."""
    mask = np.uint64(len(slots) - 1)
    for name in range(np.uint64(n)):
        at = known[name] & mask
        while slots[at] != EMPTY:
            at = (at + _ONE) & mask
        slots[at] = np.uint32(name)


_C1, _C2 = np.uint64(0xCC9E2D51), np.uint64(0x1B873593)


@njit(nogil=True, cache=True)
def _rotated(x: Any, by: Any) -> Any:
    """32 bits turned to the left; numba computes with 64, whatever the dtype."""
    return ((x << by) | (x >> (np.uint64(32) - by))) & _LOW


@njit(nogil=True, cache=True)
def _stirred(word: Any) -> Any:
    return (_rotated((word * _C1) & _LOW, np.uint64(15)) * _C2) & _LOW


@njit(nogil=True, cache=True)
def murmur(prefix: Array, text: Array, starts: Array, stops: Array, out: Array) -> None:
    """Write MurmurHash3_x86_32 (A. Appleby, public domain), seed 0, of `prefix` and each span as one text; int32.

    Of the same text the same as ``sklearn.utils.murmurhash3_32`` and as ``FeatureHasher`` takes.
    """
    n_prefix = np.uint64(len(prefix))
    for k in range(np.uint64(len(starts))):
        start = np.uint64(starts[k])
        size = n_prefix + np.uint64(stops[k]) - start
        h, word, held = np.uint64(0), np.uint64(0), np.uint64(0)
        for i in range(size):
            j = np.uint64(i)
            b = prefix[j] if j < n_prefix else text[start + j - n_prefix]
            word |= np.uint64(b) << held
            held += np.uint64(8)
            if held == 32:
                h = (_rotated(h ^ _stirred(word), np.uint64(13)) * np.uint64(5) + np.uint64(0xE6546B64)) & _LOW
                word, held = np.uint64(0), np.uint64(0)
        h ^= _stirred(word)  # of 0 it is 0
        h ^= size & _LOW
        h = ((h ^ (h >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & _LOW
        h = ((h ^ (h >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & _LOW
        out[k] = np.int32(np.uint32(h ^ (h >> np.uint64(16))))


def murmur_numpy(prefix: Array, text: Array, starts: Array, stops: Array, out: Array) -> None:
    """Twin of `murmur`, with Python's integers."""

    def rotated(x: int, by: int) -> int:
        return (x << by | x >> (32 - by)) & 0xFFFFFFFF

    for k, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        payload = prefix.tobytes() + text[start:stop].tobytes()
        h = 0
        for i in range(0, len(payload), 4):
            part = payload[i : i + 4]
            word = int.from_bytes(part, "little") * int(_C1) & 0xFFFFFFFF
            h ^= rotated(word, 15) * int(_C2) & 0xFFFFFFFF
            if len(part) == 4:
                h = (rotated(h, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
        h ^= len(payload)
        h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        out[k] = np.uint32(h ^ h >> 16).view(np.int32)


@njit(nogil=True, cache=True)
def decimals(text: Array, starts: Array, stops: Array, out: Array) -> None:
    """Write the whole number that each span spells, of up to 18 digits; -1 where it spells none."""
    for k in range(np.uint64(len(starts))):
        start, stop = np.uint64(starts[k]), np.uint64(stops[k])
        number, sound = np.int64(0), _ZERO < stop - start <= np.uint64(18)
        if sound:
            for i in range(start, stop):
                digit = np.int64(text[i]) - 48
                sound = sound and 0 <= digit <= 9
                number = number * 10 + digit
        out[k] = number if sound else -1


def decimals_numpy(text: Array, starts: Array, stops: Array, out: Array) -> None:
    """Twin of `decimals`."""
    for k, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        token = text[start:stop].tobytes()
        out[k] = int(token) if 0 < len(token) <= 18 and all(48 <= b <= 57 for b in token) else -1
