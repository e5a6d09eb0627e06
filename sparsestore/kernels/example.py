"""Numbers out of TFRecord files: the frames of the records, and the messages ``tf.train.Example`` in them.

Formats: tensorflow/core/lib/io/record_writer.h; tensorflow/core/example/{example,feature}.proto;
tensorflow_serving/apis/input.proto for ``ExampleListWithContext``; https://protobuf.dev/programming-guides/encoding.

Whatever a message says is checked against the bytes that there are before it is used: no length leads a loop out of its
message. A list may be packed or not, or in parts; fields that are not known are skipped; of entries of a map with the
same key the last counts. What protobuf allows and no writer makes is refused: an entry of the map that has not one key
and one value, a feature with several lists, groups, and known fields of another type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from google_crc32c import value as crc32c
from numba import njit
from numpy.typing import NDArray

from sparsestore.kernels.names import Names, find, names_of

__all__ = [
    "Examples",
    "Feature",
    "Lists",
    "Records",
    "Wanted",
    "examples",
    "examples_numpy",
    "features_of",
    "joined",
    "joined_numpy",
    "lists",
    "lists_numpy",
    "records",
    "records_numpy",
    "wanted_of",
]

Array = NDArray[Any]

OK = 0
BAD_LENGTH = 1  # the checksum of a length is another one
TOO_LONG = 2  # a record longer than the limit
BROKEN = 3  # no protobuf message, or one of other types
BAD_ENTRY = 4  # an entry of the map that has not one key and one value
SEVERAL_LISTS = 5  # a feature that is several kinds at once
WRONG_KIND = 6  # a list of another kind than is wanted
ABSENT = 7  # a feature that must be there is not, or has no values
WRONG_COUNT = 8  # a list of another length than is wanted
UNEQUAL = 9  # more or fewer values than indices
OUT_OF_RANGE = 10  # an index below the base or above the limit
INEXACT = 11  # a whole number that float64 may lack
SEVERAL_CONTEXTS = 12

INDICES, VALUES, FEATURE, NUMBER, WHOLE, TEXT = 0, 1, 2, 3, 4, 5
"""What a feature is: feature numbers, their values, entries of the matrix, a value of a column: any number, a whole
one, or text."""

BYTES, FLOATS, INTS = 1, 2, 3
"""Fields of a ``Feature``, of which it has one or none."""

_ZERO, _ONE, _TWO, _THREE = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
_FOUR, _SEVEN, _EIGHT, _HEAD, _FRAME = np.uint64(4), np.uint64(7), np.uint64(8), np.uint64(12), np.uint64(16)
_MORE, _LOW7, _63 = np.uint64(128), np.uint64(127), np.uint64(63)
_HIGHEST_FIELD = np.uint64(2**29 - 1)
_LOW32 = np.uint64(2**32 - 1)
_DELTA = 0xA282EAD8
_EXACT = 2**53


def _crc_table() -> NDArray[np.uint32]:
    """What each byte does to crc32c."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


_CRC = _crc_table()


# ---- records


@njit(nogil=True, cache=True, inline="always")
def _get4(text: Any, i: Any) -> Any:
    low = np.uint64(text[i]) | np.uint64(text[i + _ONE]) << _EIGHT
    return low | np.uint64(text[i + _TWO]) << np.uint64(16) | np.uint64(text[i + _THREE]) << np.uint64(24)


@njit(nogil=True, cache=True)
def _unmasked(crc: Any) -> Any:
    """A checksum as it was before TFRecord's mask, which keeps checksums of checksums apart."""
    crc = (crc - np.uint64(_DELTA)) & _LOW32
    return ((crc >> np.uint64(17)) | (crc << np.uint64(15))) & _LOW32


@njit(nogil=True, cache=True)
def _scan_records(text: Any, longest: Any, starts: Any, lengths: Any, checksums: Any) -> Any:
    """Fill the arrays; -> status, where the last whole record ends, records, bytes that the next one takes."""
    i, stop, n = _ZERO, np.uint64(len(text)), _ZERO
    while stop - i >= _HEAD:
        crc = _LOW32
        for k in range(_EIGHT):
            crc = np.uint64(_CRC[(crc ^ np.uint64(text[i + k])) & np.uint64(255)]) ^ (crc >> _EIGHT)
        length = _get4(text, i) | _get4(text, i + _FOUR) << np.uint64(32)
        if crc ^ _LOW32 != _unmasked(_get4(text, i + _EIGHT)):
            return BAD_LENGTH, i, n, _ZERO
        if length > longest:
            return TOO_LONG, i, n, length
        if stop - i < length + _FRAME:
            return OK, i, n, length + _FRAME
        starts[n] = i + _HEAD
        lengths[n] = length
        checksums[n] = _unmasked(_get4(text, i + _HEAD + length))
        i += length + _FRAME
        n += _ONE
    return OK, i, n, _HEAD


class Records(NamedTuple):
    """Whole records, up to the first that is not, or is wrong where `status` says so."""

    status: int
    stop: int
    """Where the last of them ends."""
    needed: int
    """Bytes that the next one takes, as far as they tell; or its length where that is `TOO_LONG`."""
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checksums: NDArray[np.uint32]
    """The crc32c that each should have."""


def records(text: NDArray[np.uint8], longest: int) -> Records:
    """Find the records that begin at the first byte; lengths are checked, what they hold is not."""
    most = len(text) // 16
    starts, lengths, checksums = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.uint32)
    status, stop, n, needed = map(int, _scan_records(text, np.uint64(longest), starts, lengths, checksums))
    return Records(status, stop, needed, starts[:n], lengths[:n], checksums[:n])


def records_numpy(text: NDArray[np.uint8], longest: int) -> Records:
    """Twin of `records` in plain Python, for tests."""
    payload, at = text.tobytes(), 0
    found: list[tuple[int, int, int]] = []

    def made(status: int, needed: int) -> Records:
        starts, lengths, checksums = np.array(found, np.int64).reshape(-1, 3).T
        return Records(status, at, needed, starts, lengths, checksums.astype(np.uint32))

    def unmasked(crc: int) -> int:
        crc = (crc - _DELTA) % 2**32
        return (crc >> 17 | crc << 15) % 2**32

    while len(payload) - at >= 12:
        length, crc = struct.unpack_from("<QI", payload, at)
        if crc32c(payload[at : at + 8]) != unmasked(crc):
            return made(BAD_LENGTH, 0)
        if length > longest:
            return made(TOO_LONG, length)
        if len(payload) - at < length + 16:
            return made(OK, length + 16)
        (crc,) = struct.unpack_from("<I", payload, at + 12 + length)
        found.append((at + 12, length, unmasked(crc)))
        at += length + 16
    return made(OK, 12)


# ---- messages


@njit(nogil=True, cache=True)
def _long_varint(text: Any, i: Any, stop: Any) -> Any:
    """As `_varint`, of any length."""
    number, shift = _ZERO, _ZERO
    while i < stop:
        b = np.uint64(text[i])
        i += _ONE
        if shift == _63 and b > _ONE:
            break
        number |= (b & _LOW7) << shift
        if b < _MORE:
            return i, number, True
        shift += _SEVEN
    return i, _ZERO, False


@njit(nogil=True, cache=True, inline="always")
def _varint(text: Any, i: Any, stop: Any) -> Any:
    """Read a varint at `i`: where it ends, the number, and whether it is sound."""
    if i < stop and text[i] < _MORE:
        return i + _ONE, np.uint64(text[i]), True
    if stop - i > _TWO:  # most numbers of features have two or three bytes: a call would cost more than they do
        low, middle = np.uint64(text[i]) & _LOW7, np.uint64(text[i + _ONE])
        if middle < _MORE:
            return i + _TWO, low | middle << _SEVEN, True
        if text[i + _TWO] < _MORE:
            high = np.uint64(text[i + _TWO]) << np.uint64(14)
            return i + _THREE, low | (middle & _LOW7) << _SEVEN | high, True
    return _long_varint(text, i, stop)


@njit(nogil=True, cache=True)
def _any_field(text: Any, i: Any, stop: Any) -> Any:
    """As `_field`."""
    i, tag, sound = _long_varint(text, i, stop)
    number, wire = tag >> _THREE, tag & _SEVEN
    size = _ZERO
    if number > _HIGHEST_FIELD:
        sound = False
    elif wire == _ZERO:
        size = i
        while size < stop and text[size] >= _MORE and size - i < np.uint64(9):
            size += _ONE
        size = size - i + _ONE
        if size == np.uint64(10) and i + size <= stop and text[i + np.uint64(9)] > 1:
            sound = False
    elif wire == _ONE:
        size = _EIGHT
    elif wire == _TWO:
        i, size, length_sound = _long_varint(text, i, stop)
        sound = sound and length_sound
    elif wire == np.uint64(5):
        size = _FOUR
    else:
        sound = False
    if not sound or size > stop - i:
        return _ZERO, wire, i, i
    return number, wire, i, i + size


@njit(nogil=True, cache=True, inline="always")
def _field(text: Any, i: Any, stop: Any) -> Any:
    """Read a field at `i`: its number (0: not sound), its type, and where what it holds begins and ends."""
    if stop - i >= _TWO:  # mostly a byte for number and type, and one for the length
        tag, size = np.uint64(text[i]), np.uint64(text[i + _ONE])
        if tag < _MORE and tag & _SEVEN == _TWO and tag >= _EIGHT and size < _MORE and size <= stop - i - _TWO:
            return tag >> _THREE, _TWO, i + _TWO, i + _TWO + size
    return _any_field(text, i, stop)


@njit(nogil=True, cache=True, inline="always")
def _numbers(text: Any, i: Any, stop: Any, kind: Any, bits: Any, single: Any, out: Any, at: Any) -> Any:
    """Write a list of floats, or of whole numbers as floats; -> where it ends in `out`, and whether it is sound.

    `bits` and `single` are one and the same number of four bytes.
    """
    while i < stop:
        number, wire, begin, end = _field(text, i, stop)
        if number == _ZERO:
            return at, False
        i = end
        if number != _ONE:
            continue
        if kind == FLOATS:
            if (wire != _TWO and wire != np.uint64(5)) or (end - begin) & _THREE:
                return at, False
            while begin < end:
                bits[0] = _get4(text, begin)
                out[at] = np.float64(single[0])
                at += _ONE
                begin += _FOUR
        else:
            if wire != _TWO and wire != _ZERO:
                return at, False
            while begin < end:
                begin, whole, sound = _varint(text, begin, end)
                if not sound:
                    return at, False
                out[at] = np.float64(np.int64(whole))
                at += _ONE
    return at, True


@njit(nogil=True, cache=True)
def _wholes(text: Any, i: Any, stop: Any, out: Any, at: Any) -> Any:
    """Write a list of whole numbers; -> where it ends in `out`, and whether it is sound."""
    while i < stop:
        number, wire, begin, end = _field(text, i, stop)
        if number == _ZERO:
            return at, False
        i = end
        if number != _ONE:
            continue
        if wire != _TWO and wire != _ZERO:
            return at, False
        while begin < end:
            begin, whole, sound = _varint(text, begin, end)
            if not sound:
                return at, False
            out[at] = np.int64(whole)
            at += _ONE
    return at, True


@njit(nogil=True, cache=True)
def _texts(text: Any, i: Any, stop: Any) -> Any:
    """Of a list of texts: how many, where the last begins and ends, and whether the list is sound."""
    n, first, last = _ZERO, _ZERO, _ZERO
    while i < stop:
        number, wire, begin, end = _field(text, i, stop)
        if number == _ZERO or (number == _ONE and wire != _TWO):
            return n, first, last, False
        i = end
        if number == _ONE:
            n += _ONE
            first, last = begin, end
    return n, first, last, True


@njit(nogil=True, cache=True, inline="always")
def _feature(text: Any, i: Any, stop: Any) -> Any:
    """Read a ``Feature``: status, what kind of list it has (0: none), and where that begins and ends."""
    kind, first, last = _ZERO, _ZERO, _ZERO
    while i < stop:
        number, wire, begin, end = _field(text, i, stop)
        if number == _ZERO or (number <= _THREE and wire != _TWO):
            return BROKEN, kind, first, last
        i = end
        if number <= _THREE:
            if kind:
                return SEVERAL_LISTS, kind, first, last
            kind, first, last = number, begin, end
    return OK, kind, first, last


@njit(nogil=True, cache=True, inline="always")
def _locate(text: Any, i: Any, stop: Any, names: Any, starts: Any, groups: Any, table: Any, kinds: Any, at: Any) -> Any:
    """Note kind and place of each wanted feature of an ``Example``; -> status, slot."""
    while i < stop:
        number, wire, begin, end = _field(text, i, stop)
        if number == _ZERO or (number == _ONE and wire != _TWO):
            return BROKEN, -1
        i = end
        if number != _ONE:
            continue
        j, features = begin, end
        while j < features:
            number, wire, begin, end = _field(text, j, features)
            if number == _ZERO or (number == _ONE and wire != _TWO):
                return BROKEN, -1
            j = end
            if number != _ONE:
                continue
            k, entry = begin, end
            n_keys, n_values = 0, 0
            key, key_end, value, value_end = _ZERO, _ZERO, _ZERO, _ZERO
            while k < entry:
                number, wire, begin, end = _field(text, k, entry)
                if number == _ZERO or (number <= _TWO and wire != _TWO):
                    return BROKEN, -1
                k = end
                if number == _ONE:
                    n_keys += 1
                    key, key_end = begin, end
                elif number == _TWO:
                    n_values += 1
                    value, value_end = begin, end
            if n_keys != 1 or n_values != 1:
                return BAD_ENTRY, -1
            slot = find(text, key, key_end, 0, names, starts, groups, table)
            if slot >= 0:
                status, kind, begin, end = _feature(text, value, value_end)
                if status != OK:
                    return status, slot
                kinds[np.uint64(slot)] = np.int64(kind)
                at[np.uint64(slot), 0] = begin
                at[np.uint64(slot), 1] = end
    return OK, -1


@njit(nogil=True, cache=True)
def _scan_examples(
    text: Any,
    begins: Any,
    ends: Any,
    names: Any,
    name_starts: Any,
    groups: Any,
    table: Any,
    roles: Any,
    places: Any,
    sizes: Any,
    needed: Any,
    base: Any,
    limit: Any,
    indptr: Any,
    indices: Any,
    values: Any,
    numbers: Any,
    wholes: Any,
    spans: Any,
    seen: Any,
) -> Any:
    """Fill the arrays; -> status, row, slot, what was found there, whether indices ascend strictly in all rows."""
    n_slots = np.uint64(len(roles))
    kinds, at = np.empty(len(roles), np.int64), np.empty((len(roles), 2), np.uint64)
    bits = np.empty(1, np.uint32)
    single = bits.view(np.float32)
    entry = _ZERO
    ascending = True
    for row in range(np.uint64(len(begins))):
        for slot in range(n_slots):
            kinds[slot] = -1
        status, bad = _locate(
            text, np.uint64(begins[row]), np.uint64(ends[row]), names, name_starts, groups, table, kinds, at
        )
        if status != OK:
            return status, np.int64(row), np.int64(bad), np.int64(0), ascending
        n_indices = _ZERO
        for slot in range(n_slots):
            role, kind = roles[slot], kinds[slot]
            first, last, place = at[slot, 0], at[slot, 1], np.uint64(places[slot])
            if kind >= 0:
                seen[slot] = 1
            if kind <= 0:  # not there, or there without a list
                if needed[slot] and (kind < 0 or role >= FEATURE):
                    return ABSENT, np.int64(row), np.int64(slot), np.int64(0), ascending
                if role == VALUES and n_indices:
                    return UNEQUAL, np.int64(row), np.int64(slot), np.int64(0), ascending
                if role == NUMBER:
                    numbers[row, place] = np.nan
                elif role == TEXT:
                    spans[row, place, 0] = 0
                    spans[row, place, 1] = 0
                continue
            if (role == TEXT) != (kind == BYTES) or (role in (INDICES, WHOLE) and kind != INTS):
                return WRONG_KIND, np.int64(row), np.int64(slot), np.int64(kind), ascending
            if role == INDICES:
                stop, sound = _wholes(text, first, last, indices, entry)
                if not sound:
                    return BROKEN, np.int64(row), np.int64(slot), np.int64(0), ascending
                before = np.int64(-1)
                for k in range(entry, stop):
                    index = indices[k]
                    if index < base or index - base > limit:
                        return OUT_OF_RANGE, np.int64(row), np.int64(slot), np.int64(index), ascending
                    index -= base
                    indices[k] = index
                    values[k] = 1.0
                    if index <= before:
                        ascending = False
                    before = index
                n_indices, entry = stop - entry, stop
            elif role <= NUMBER:  # values, dense features and columns
                start = entry - n_indices if role == VALUES else entry
                stop, sound = _numbers(text, first, last, kind, bits, single, values, start)
                if not sound:
                    return BROKEN, np.int64(row), np.int64(slot), np.int64(0), ascending
                n = np.int64(stop - start)
                if role == VALUES:
                    if stop != entry:
                        return UNEQUAL, np.int64(row), np.int64(slot), n, ascending
                    continue
                if n == 0 and not needed[slot]:
                    if role == NUMBER:
                        numbers[row, place] = np.nan
                    continue
                if n != sizes[slot]:
                    return ABSENT if n == 0 else WRONG_COUNT, np.int64(row), np.int64(slot), n, ascending
                if role == NUMBER:
                    if kind == INTS and not -_EXACT < values[entry] < _EXACT:
                        return INEXACT, np.int64(row), np.int64(slot), np.int64(0), ascending
                    numbers[row, place] = values[entry]
                    continue
                into = entry
                for k in range(entry, stop):
                    if values[k] != 0:
                        indices[into] = np.int64(place + (k - entry))
                        values[into] = values[k]
                        into += _ONE
                entry = into
            elif role == WHOLE:
                stop, sound = _wholes(text, first, last, indices, entry)
                if not sound:
                    return BROKEN, np.int64(row), np.int64(slot), np.int64(0), ascending
                n = np.int64(stop - entry)
                if n != 1:
                    return ABSENT if n == 0 else WRONG_COUNT, np.int64(row), np.int64(slot), np.int64(n), ascending
                wholes[row, place] = indices[entry]
            else:
                count, first, last, sound = _texts(text, first, last)
                if not sound:
                    return BROKEN, np.int64(row), np.int64(slot), np.int64(0), ascending
                if count > _ONE or (count == _ZERO and needed[slot]):
                    return (
                        ABSENT if count == _ZERO else WRONG_COUNT,
                        np.int64(row),
                        np.int64(slot),
                        np.int64(count),
                        ascending,
                    )
                spans[row, place, 0] = first
                spans[row, place, 1] = last
        indptr[row + _ONE] = entry
    return OK, np.int64(0), np.int64(-1), np.int64(0), ascending


class Feature(NamedTuple):
    """A feature that is wanted."""

    name: bytes
    role: int
    place: int = 0
    """Of `FEATURE` the number of its first feature, of columns their number among those of the role."""
    size: int = 1
    """Values that a `FEATURE` has."""
    needed: bool = True
    """Whether an example without it is refused."""


class Wanted(NamedTuple):
    """All features that are wanted: `INDICES` first, `VALUES` behind them, no two of a name."""

    names: Names
    roles: NDArray[np.int64]
    places: NDArray[np.int64]
    sizes: NDArray[np.int64]
    needed: NDArray[np.bool_]


def wanted_of(features: Sequence[Feature]) -> Wanted:
    """Make the features known to the loop."""
    _, roles, places, sizes, needed = zip(*features, strict=True) if features else ((),) * 5
    return Wanted(
        names_of([feature.name for feature in features], [0] * len(features)),
        np.array(roles, np.int64),
        np.array(places, np.int64),
        np.array(sizes, np.int64),
        np.array(needed, bool),
    )


class Examples(NamedTuple):
    """Rows read from examples; where `status` is not OK only the first four mean something."""

    status: int
    row: int
    """Of the first example that is wrong, ..."""
    slot: int
    """... the feature that is, or -1, ..."""
    found: int
    """... and what it has: a number of values, an index, or a kind."""
    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    """As they stand there; from 0."""
    values: NDArray[np.float64]
    ascending: bool
    """Whether the indices ascend strictly in every row."""
    numbers: NDArray[np.float64]
    """(n, columns); NaN where a feature is not there."""
    wholes: NDArray[np.int64]
    """(n, columns)"""
    spans: NDArray[np.int64]
    """(n, columns, 2): where each text begins and ends."""
    seen: NDArray[np.bool_]
    """Which features are in any of the examples."""


def examples(
    text: NDArray[np.uint8],
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
    wanted: Wanted,
    *,
    base: int = 0,
    limit: int = 2**63 - 3,
) -> Examples:
    """Read messages ``tf.train.Example``, which lie at these places of `text` and nowhere twice.

    Parameters
    ----------
    text : (n,) uint8 array
    begins, ends : (m,) int64 array
    wanted : Wanted
        What to look for; other features are skipped.
    base, limit : int
        What the first feature is called, and the highest number, counted from 0.
    """
    n, n_values = (
        len(begins),
        int((ends - begins).sum()),
    )  # a value takes a byte at least; what is not touched no memory
    n_numbers, n_wholes, n_texts = (int(np.count_nonzero(wanted.roles == role)) for role in (NUMBER, WHOLE, TEXT))
    indptr, indices, values = np.zeros(n + 1, np.int64), np.empty(n_values, np.int64), np.empty(n_values)
    numbers, wholes = np.empty((n, n_numbers)), np.empty((n, n_wholes), np.int64)
    spans, seen = np.empty((n, n_texts, 2), np.int64), np.zeros(len(wanted.roles), np.bool_)
    status, row, slot, found, ascending = _scan_examples(
        text,
        begins,
        ends,
        *wanted.names,
        wanted.roles,
        wanted.places,
        wanted.sizes,
        wanted.needed,
        base,
        limit,
        indptr,
        indices,
        values,
        numbers,
        wholes,
        spans,
        seen,
    )
    nnz = int(indptr[-1]) if status == OK else 0
    return Examples(
        int(status),
        int(row),
        int(slot),
        int(found),
        indptr,
        indices[:nnz],
        values[:nnz],
        bool(ascending),
        numbers,
        wholes,
        spans,
        seen,
    )


# ---- lists of examples


@njit(nogil=True, cache=True)
def _scan_lists(text: Any, starts: Any, lengths: Any, begins: Any, ends: Any, of: Any, contexts: Any) -> Any:
    """Fill the arrays; -> status, record, examples."""
    n = _ZERO
    for record in range(np.uint64(len(starts))):
        i = np.uint64(starts[record])
        stop = i + np.uint64(lengths[record])
        contexts[record, 0] = contexts[record, 1] = -1
        while i < stop:
            number, wire, begin, end = _field(text, i, stop)
            if number == _ZERO or (number <= _TWO and wire != _TWO):
                return BROKEN, record, n
            i = end
            if number == _ONE:
                begins[n], ends[n], of[n] = begin, end, record
                n += _ONE
            elif number == _TWO:
                if contexts[record, 0] >= 0:
                    return SEVERAL_CONTEXTS, record, n
                contexts[record, 0], contexts[record, 1] = begin, end
        if contexts[record, 0] < 0:
            contexts[record, 0] = contexts[record, 1] = 0
    return OK, _ZERO, n


class Lists(NamedTuple):
    """Where the examples of some lists lie; where `status` is not OK only `status` and `record` mean something."""

    status: int
    record: int
    """The first that is wrong."""
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    of: NDArray[np.int64]
    """(n,) the list that each example is of."""
    contexts: NDArray[np.int64]
    """(lists, 2): where the context of each begins and ends; nowhere where it has none."""


def lists(text: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Lists:
    """Take messages ``ExampleListWithContext`` apart."""
    most = int(lengths.sum()) // 2
    begins, ends, of = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    contexts = np.empty((len(starts), 2), np.int64)
    status, record, n = map(int, _scan_lists(text, starts, lengths, begins, ends, of, contexts))
    return Lists(status, record, begins[:n], ends[:n], of[:n], contexts)


@njit(nogil=True, cache=True)
def _join(
    indptr: Any,
    indices: Any,
    values: Any,
    of: Any,
    more_indptr: Any,
    more_indices: Any,
    more_values: Any,
    out_indptr: Any,
    out_indices: Any,
    out_values: Any,
) -> None:
    at = _ZERO
    for row in range(np.uint64(len(of))):
        for k in range(np.uint64(indptr[row]), np.uint64(indptr[row + _ONE])):
            out_indices[at], out_values[at] = indices[k], values[k]
            at += _ONE
        other = np.uint64(of[row])
        for k in range(np.uint64(more_indptr[other]), np.uint64(more_indptr[other + _ONE])):
            out_indices[at], out_values[at] = more_indices[k], more_values[k]
            at += _ONE
        out_indptr[row + _ONE] = at


def joined(
    indptr: NDArray[np.int64], indices: Array, values: Array, of: NDArray[np.int64], more: tuple[Array, Array, Array]
) -> tuple[NDArray[np.int64], Array, Array]:
    """Rows with the entries of row ``of[i]`` of others, `more`, behind those of row i."""
    n = int(indptr[-1] - indptr[0]) + int(np.diff(more[0])[of].sum())
    out = np.zeros(len(of) + 1, np.int64), np.empty(n, indices.dtype), np.empty(n, values.dtype)
    _join(indptr, indices, values, of, *more, *out)
    return out


def joined_numpy(
    indptr: NDArray[np.int64], indices: Array, values: Array, of: NDArray[np.int64], more: tuple[Array, Array, Array]
) -> tuple[NDArray[np.int64], Array, Array]:
    """Numpy twin of `joined`."""
    parts = []
    for row, other in enumerate(of.tolist()):
        own, behind = slice(*indptr[row : row + 2]), slice(*more[0][other : other + 2])
        parts.append([np.append(indices[own], more[1][behind]), np.append(values[own], more[2][behind])])
    lengths = [len(part[0]) for part in parts]
    ends = np.append(0, np.cumsum(lengths)).astype(np.int64)
    all_indices = np.concatenate([indices[:0], *(part[0] for part in parts)])
    return ends, all_indices, np.concatenate([values[:0], *(part[1] for part in parts)])


# ---- the same in plain Python


class _WrongError(ValueError):
    """Status, name of the feature or None, and what was found."""


def _fields(payload: bytes, at: int, stop: int, lengths: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, type, begin and end of each field; those up to number `lengths` must be of type 2."""
    while at < stop:
        tag, at = _varint_numpy(payload, at, stop)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 2**29 or wire not in (0, 1, 2, 5) or (number <= lengths and wire != 2):
            raise _WrongError(BROKEN, None, 0)
        begin = at
        if wire == 0:
            _, at = _varint_numpy(payload, at, stop)
        else:
            size = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                size, begin = _varint_numpy(payload, at, stop)
            at = begin + size
        if at > stop:
            raise _WrongError(BROKEN, None, 0)
        yield number, wire, begin, at


def _varint_numpy(payload: bytes, at: int, stop: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    number = 0
    for k, b in enumerate(payload[at : min(at + 10, stop)]):
        number |= (b & 127) << 7 * k
        if b < 128 and number < 2**64:
            return number, at + k + 1
    raise _WrongError(BROKEN, None, 0)


def _entries(payload: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Key of each entry of an ``Example``'s map, and where its ``Feature`` begins and ends."""
    for number, _, features, features_end in _fields(payload, begin, end, 1):
        for inner, _, entry, entry_end in _fields(payload, features, features_end, 1) if number == 1 else ():
            parts = sorted(part for part in _fields(payload, entry, entry_end, 2) if part[0] <= 2) if inner == 1 else []
            if inner == 1 and [part[0] for part in parts] != [1, 2]:
                raise _WrongError(BAD_ENTRY, None, 0)
            if inner == 1:
                yield payload[slice(*parts[0][2:])], *parts[1][2:]


def _kind(payload: bytes, begin: int, end: int) -> tuple[int, int, int]:
    """Kind of a ``Feature`` (0: none), and where its list begins and ends."""
    found = (0, 0, 0)
    for number, _, at, stop in _fields(payload, begin, end, 3):
        if number <= 3:
            if found[0]:  # said before what comes after it is read, as the compiled loop does
                raise _WrongError(SEVERAL_LISTS, None, 0)
            found = number, at, stop
    return found


def _values(payload: bytes, kind: int, begin: int, end: int) -> list[Any]:
    """Values of a list; of texts where they begin and end."""
    found: list[Any] = []
    for number, wire, at, stop in _fields(payload, begin, end, 1 if kind == BYTES else 0):
        if number != 1:
            continue
        if kind == BYTES:
            found.append((at, stop))
        elif wire not in ((2, 5) if kind == FLOATS else (0, 2)) or (kind == FLOATS and (stop - at) % 4):
            raise _WrongError(BROKEN, None, 0)
        elif kind == FLOATS:
            found += struct.unpack(f"<{(stop - at) // 4}f", payload[at:stop])
        while kind == INTS and at < stop:
            whole, at = _varint_numpy(payload, at, stop)
            found.append(whole - 2**64 if whole >= 2**63 else whole)
    return found


def features_of(payload: bytes) -> dict[bytes, list[Any]]:
    """All features of an ``Example``, in plain Python; ValueError where it is none.

    Examples
    --------
    >>> features_of(bytes.fromhex("0a0c0a0a0a016112051a030a0105"))
    {b'a': [5]}
    """
    return {
        key: _values(payload, *_kind(payload, begin, end)) for key, begin, end in _entries(payload, 0, len(payload))
    }


def examples_numpy(
    text: NDArray[np.uint8],
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
    features: Sequence[Feature],
    *,
    base: int = 0,
    limit: int = 2**63 - 3,
) -> Examples:
    """Twin of `examples` in plain Python, for tests."""
    payload = text.tobytes()
    indptr, indices, values, ascending = [0], list[int](), list[float](), True
    numbers, wholes, spans = list[list[float]](), list[list[int]](), list[list[tuple[int, int]]]()
    seen = [False] * len(features)

    def made(status: int, row: int = 0, slot: int = -1, found: int = 0) -> Examples:
        n = len(indptr) - 1
        return Examples(
            status,
            row,
            slot,
            found,
            np.array(indptr, np.int64),
            np.array(indices, np.int64),
            np.array(values, np.float64),
            ascending,
            np.array(numbers[:n], np.float64).reshape(n, -1) if numbers else np.empty((0, 0)),
            np.array(wholes[:n], np.int64).reshape(n, -1) if wholes else np.empty((0, 0), np.int64),
            np.array(spans[:n], np.int64).reshape(n, -1, 2) if spans else np.empty((0, 0, 2), np.int64),
            np.array(seen, np.bool_),
        )

    for row, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        slot = -1
        try:
            known: dict[bytes, tuple[int, int, int]] = {}
            for key, first, last in _entries(payload, begin, end):
                slot = next((k for k, feature in enumerate(features) if feature.name == key), -1)
                if slot >= 0:
                    known[key] = _kind(payload, first, last)
                slot = -1
            row_indices, row_values = list[int](), list[float]()
            row_numbers, row_wholes, row_spans = list[float](), list[int](), list[tuple[int, int]]()
            for slot, (name, role, place, size, needed) in enumerate(features):
                kind, first, last = known.get(name, (-1, 0, 0))
                seen[slot] |= kind >= 0
                wrong = (role == TEXT) != (kind == BYTES) or (role in (INDICES, WHOLE) and kind != INTS)
                if kind > 0 and wrong:
                    return made(WRONG_KIND, row, slot, kind)
                found = _values(payload, kind, first, last) if kind > 0 else []
                if needed and (kind < 0 or (role >= FEATURE and not found)):
                    return made(ABSENT, row, slot)
                if role == INDICES:
                    for index in found:
                        if not 0 <= index - base <= limit:
                            return made(OUT_OF_RANGE, row, slot, index)
                    row_indices = [index - base for index in found]
                    row_values = [1.0] * len(found)
                elif role == VALUES:
                    if len(found) != len(row_indices):
                        return made(UNEQUAL, row, slot, len(found))
                    row_values = [float(value) for value in found]
                elif found and len(found) != size:
                    return made(WRONG_COUNT, row, slot, len(found))
                elif role == FEATURE:
                    row_indices += [place + k for k, value in enumerate(found) if float(value) != 0]
                    row_values += [float(value) for value in found if float(value) != 0]
                elif role == NUMBER:
                    if kind == INTS and found and not -_EXACT < float(found[0]) < _EXACT:
                        return made(INEXACT, row, slot)
                    row_numbers.append(float(found[0]) if found else np.nan)
                elif role == WHOLE:
                    row_wholes.append(found[0])
                else:
                    row_spans.append(found[0] if found else (0, 0))
        except _WrongError as error:
            return made(error.args[0], row, slot, error.args[2])
        ascending &= all(a < b for a, b in pairwise(row_indices))
        indices += row_indices
        values += row_values
        indptr.append(len(indices))
        numbers.append(row_numbers)
        wholes.append(row_wholes)
        spans.append(row_spans)
    return made(OK)


def lists_numpy(text: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Lists:
    """Twin of `lists` in plain Python, for tests."""
    payload = text.tobytes()
    places = list[tuple[int, int, int]]()
    contexts = list[tuple[int, int]]()

    def made(status: int, record: int) -> Lists:
        begins, ends, of = np.array(places, np.int64).reshape(-1, 3).T
        return Lists(status, record, begins, ends, of, np.array(contexts, np.int64).reshape(-1, 2))

    for record, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        context = None
        try:
            for number, _, begin, end in _fields(payload, start, start + length, 2):
                if number == 1:
                    places.append((begin, end, record))
                elif number == 2 and context is not None:
                    return made(SEVERAL_CONTEXTS, record)
                elif number == 2:
                    context = begin, end
        except _WrongError as error:
            return made(error.args[0], record)
        contexts.append(context or (0, 0))
    return made(OK, 0)
