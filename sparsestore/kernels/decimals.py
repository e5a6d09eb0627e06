"""Numbers as text that gives them back exactly, and lines of them: svmlight rows, and triples.

A float becomes ``m * 10**-k`` with the least k up to 22 at which that is the number again for any correct reader:
nearer to it than half the distance to its neighbours. The product with 10**k, which is exact, is taken in two floats
without an error (T. Dekker, "A floating-point technique for extending the available precision", 1971). What has no such
form (nan, -0.0, the very large and the very small) is noted, and written by ``repr``.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "Decimals",
    "decimals",
    "decimals_numpy",
    "row_lines",
    "row_lines_numpy",
    "spelled",
    "triple_lines",
    "triple_lines_numpy",
]

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_ODD = -1  # in place of k
_LONGEST = 26  # characters of a number that is not odd: 20 of an int64; a sign, "0.", four zeros and 19 digits
_ZEROS = 4  # behind the point, before digits; more, and it is written with an exponent
_MOST = 2.0**53
_MOST_DIGITS = 9e18
_SPLIT = 2.0**27 + 1
_POWERS = 10.0 ** np.arange(23)
_NL, _COLON, _BLANK, _DOT, _MINUS, _E, _ZERO = 10, 58, 32, 46, 45, 101, 48
_QID = np.frombuffer(b" qid:", np.uint8)


class Decimals(NamedTuple):
    """Numbers, about to be written.

    Attributes
    ----------
    mantissas : (n,) int64 array
    places : (n,) int8 array
        Digits behind the point; -1 where the next one of `odd` is the number.
    odd : (m,) uint8 array
        Text of those, one after the other.
    odd_ends : (o + 1,) int64 array
        Where each ends, behind a 0.
    """

    mantissas: Ints
    places: NDArray[np.int8]
    odd: Bytes
    odd_ends: Ints

    @property
    def longest(self) -> int:
        """Characters that one takes at most."""
        return max(_LONGEST, int(np.diff(self.odd_ends).max(initial=0)))


@njit(nogil=True, cache=True)
def _decimals(values: Any, bits: Any, powers: Any, mantissas: Any, places: Any) -> Any:
    """Fill the arrays; how many are odd. `bits` is the precision of the numbers, which come as float64."""
    n_odd = 0
    near = 2.0 ** (1 - bits)
    for i in range(np.uint64(len(values))):
        value = values[i]
        a = abs(value)
        mantissas[i] = 0
        places[i] = _ODD
        if a == 0.0:
            if np.copysign(1.0, value) > 0:
                places[i] = 0
        elif a < _MOST:  # no nan
            fraction, exponent = math.frexp(a)
            half = math.ldexp(0.5 if fraction > 0.5 else 0.25, exponent - bits) * (1 - 2.0**-20)  # a power of two's is
            high = a * _SPLIT
            high -= high - a
            low = a - high
            for k in range(np.uint64(23)):
                power = powers[k]
                x = a * power
                if x >= _MOST_DIGITS:
                    break
                m = np.rint(x)
                if x < _MOST and abs(x - m) > x * near:
                    continue
                power_high = power * _SPLIT
                power_high -= power_high - power
                power_low = power - power_high
                rest = ((high * power_high - x) + high * power_low + low * power_high) + low * power_low
                more = np.rint(rest)
                if abs((x - m) + (rest - more)) < half * power:
                    whole = np.int64(m) + np.int64(more)
                    mantissas[i] = whole if value > 0 else -whole
                    places[i] = k
                    break
        if places[i] == _ODD:
            n_odd += 1
    return n_odd


def decimals(values: Array) -> Decimals:
    """Numbers of any dtype that a store has, in the fewest digits that give them back."""
    n = len(values)
    if values.dtype.kind != "f":
        mantissas = values.astype(np.int64)
        places = np.zeros(n, np.int8)
        if values.dtype == np.uint64:
            places[mantissas < 0] = _ODD
    else:
        mantissas, places = np.empty(n, np.int64), np.empty(n, np.int8)
        with np.errstate(invalid="ignore"):  # a NaN that signals
            exact = values.astype(np.float64)
        if not _decimals(exact, _bits(values), _POWERS, mantissas, places):
            return Decimals(mantissas, places, np.zeros(0, np.uint8), np.zeros(1, np.int64))
    return _with_odd(values, mantissas, places)


def _bits(values: Array) -> int:
    return 53 if values.dtype.itemsize == 8 else 24


def _with_odd(values: Array, mantissas: Ints, places: NDArray[np.int8]) -> Decimals:
    odd = values[places == _ODD]
    # a large float32 is a whole number: fewer digits would be another one for who reads a float64 first
    if odd.dtype == np.float32:
        spelled = [str(value) if abs(value) < 1 else repr(float(value)) for value in odd]
    else:
        spelled = [repr(value) for value in odd.tolist()]
    ends = np.zeros(len(spelled) + 1, np.int64)
    np.cumsum([len(text) for text in spelled], out=ends[1:])
    return Decimals(mantissas, places, np.frombuffer("".join(spelled).encode(), np.uint8), ends)


@njit(nogil=True, cache=True, inline="always")
def _put_whole(text: Any, at: Any, number: Any) -> Any:
    """Write digits of an unsigned number; -> where they end."""
    n = np.uint64(1)
    limit = np.uint64(10)
    while n < np.uint64(20) and number >= limit:
        n += np.uint64(1)
        limit *= np.uint64(10)
    end = at + n
    place = end
    while place > at:
        place -= np.uint64(1)
        rest = number // np.uint64(10)
        text[place] = np.uint8(number - rest * np.uint64(10) + np.uint64(_ZERO))
        number = rest
    return end


@njit(nogil=True, cache=True, inline="always")
def _put_number(text: Any, at: Any, mantissa: Any, places: Any) -> Any:
    """Write a number that is not odd; -> where it ends."""
    if mantissa < 0:
        text[at] = _MINUS
        at += np.uint64(1)
        number = np.uint64(-mantissa)
    else:
        number = np.uint64(mantissa)
    if places == 0:
        return _put_whole(text, at, number)
    n = 1
    limit = np.uint64(10)
    while n < 19 and number >= limit:
        n += 1
        limit *= np.uint64(10)
    if places > n + _ZEROS:
        at = _put_whole(text, at, number)
        text[at] = _E
        text[at + np.uint64(1)] = _MINUS
        return _put_whole(text, at + np.uint64(2), np.uint64(places))
    whole = max(n - places, 1)
    end = at + np.uint64(whole + 1 + places)
    place = end
    point = at + np.uint64(whole)
    while place > at:
        place -= np.uint64(1)
        if place == point:
            text[place] = _DOT
            continue
        rest = number // np.uint64(10)
        text[place] = np.uint8(number - rest * np.uint64(10) + np.uint64(_ZERO))
        number = rest
    return end


@njit(nogil=True, cache=True, inline="always")
def _put_text(text: Any, at: Any, source: Any, start: Any, stop: Any) -> Any:
    """Copy text; -> where it ends."""
    for i in range(np.uint64(start), np.uint64(stop)):
        text[at] = source[i]
        at += np.uint64(1)
    return at


@njit(nogil=True, cache=True)
def _numbers(text: Any, mantissas: Any, places: Any, odd: Any, odd_ends: Any, ends: Any) -> None:
    at, n_odd = np.uint64(0), np.uint64(0)
    for i in range(np.uint64(len(mantissas))):
        if places[i] < 0:
            at = _put_text(text, at, odd, odd_ends[n_odd], odd_ends[n_odd + np.uint64(1)])
            n_odd += np.uint64(1)
        else:
            at = _put_number(text, at, mantissas[i], places[i])
        ends[i + np.uint64(1)] = at


def spelled(numbers: Decimals) -> tuple[Bytes, Ints]:
    """Text of numbers, one after the other; and where each ends, behind a 0."""
    n = len(numbers.mantissas)
    text, ends = np.empty(n * numbers.longest, np.uint8), np.zeros(n + 1, np.int64)
    _numbers(text, *numbers, ends)
    return text[: ends[-1]], ends


@njit(nogil=True, cache=True)
def _row_lines(
    text: Any,
    heads: Any,
    head_ends: Any,
    qids: Any,
    qid_mark: Any,
    indptr: Any,
    indices: Any,
    base: Any,
    mantissas: Any,
    places: Any,
    odd: Any,
    odd_ends: Any,
) -> Any:
    """Write the lines; -> where they end."""
    at, n_odd = np.uint64(0), np.uint64(0)
    for row in range(np.uint64(len(indptr) - 1)):
        at = _put_text(text, at, heads, head_ends[row], head_ends[row + np.uint64(1)])
        if len(qids):
            at = _put_text(text, at, qid_mark, 0, len(qid_mark))
            at = _put_number(text, at, qids[row], 0)
        for i in range(np.uint64(indptr[row]), np.uint64(indptr[row + np.uint64(1)])):
            text[at] = _BLANK
            at = _put_whole(text, at + np.uint64(1), np.uint64(indices[i] + base))
            text[at] = _COLON
            at += np.uint64(1)
            if places[i] < 0:
                at = _put_text(text, at, odd, odd_ends[n_odd], odd_ends[n_odd + np.uint64(1)])
                n_odd += np.uint64(1)
            else:
                at = _put_number(text, at, mantissas[i], places[i])
        text[at] = _NL
        at += np.uint64(1)
    return at


def row_lines(
    heads: tuple[Bytes, Ints], qids: Ints, indptr: Ints, indices: Array, values: Decimals, base: int
) -> Bytes:
    """Lines of svmlight: what a row begins with, then ``index:value`` for each entry.

    Parameters
    ----------
    heads : tuple of (m,) uint8 array and (n + 1,) int64 array
        Labels, as `spelled` gives them.
    qids : (n,) or (0,) int64 array
        Written behind them, where there are some.
    indptr, indices : CSR arrays
    values : Decimals
        Of the entries.
    base : int
        Number of the first feature.
    """
    size = len(heads[0]) + len(indptr) * 26 + len(indices) * (22 + values.longest)
    text = np.empty(size, np.uint8)
    end = _row_lines(text, *heads, qids, _QID, indptr, indices, base, *values)
    return text[: int(end)]


@njit(nogil=True, cache=True)
def _triple_lines(
    text: Any,
    delimiter: Any,
    row: Any,
    indptr: Any,
    indices: Any,
    base: Any,
    names: Any,
    name_ends: Any,
    mantissas: Any,
    places: Any,
    odd: Any,
    odd_ends: Any,
) -> Any:
    """Write the lines; -> where they end."""
    at, n_odd = np.uint64(0), np.uint64(0)
    number = np.empty(20, np.uint8)
    for r in range(np.uint64(len(indptr) - 1)):
        length = _put_whole(number, np.uint64(0), np.uint64(row + r))
        for i in range(np.uint64(indptr[r]), np.uint64(indptr[r + np.uint64(1)])):
            at = _put_text(text, at, number, 0, length)
            text[at] = delimiter
            at += np.uint64(1)
            feature = np.uint64(indices[i])
            if len(name_ends) > 1:
                at = _put_text(text, at, names, name_ends[feature], name_ends[feature + np.uint64(1)])
            else:
                at = _put_whole(text, at, np.uint64(feature + base))
            text[at] = delimiter
            at += np.uint64(1)
            if places[i] < 0:
                at = _put_text(text, at, odd, odd_ends[n_odd], odd_ends[n_odd + np.uint64(1)])
                n_odd += np.uint64(1)
            else:
                at = _put_number(text, at, mantissas[i], places[i])
            text[at] = _NL
            at += np.uint64(1)
    return at


def triple_lines(
    row: int,
    indptr: Ints,
    indices: Array,
    values: Decimals,
    *,
    base: int,
    delimiter: int,
    names: tuple[Bytes, Ints] | None = None,
) -> Bytes:
    """Lines of a row, a feature and a value.

    Parameters
    ----------
    row : int
        Number of the first.
    indptr, indices : CSR arrays
    values : Decimals
        Of the entries.
    base : int
        Number of the first feature.
    delimiter : int
        Code of the character between the fields.
    names : tuple of (m,) uint8 array and (n_features + 1,) int64 array, optional
        Text in place of the numbers of features, one after the other, and where each ends.
    """
    text_of, ends = (np.zeros(0, np.uint8), np.zeros(1, np.int64)) if names is None else names
    longest = 20 if names is None else int(np.diff(ends)[indices].max(initial=0))
    text = np.empty(len(indices) * (23 + longest + values.longest), np.uint8)
    end = _triple_lines(text, delimiter, row, indptr, indices, base, text_of, ends, *values)
    return text[: int(end)]


# ------------------------------------------------------------------------------------------------------------- twins


def decimals_numpy(values: Array) -> Decimals:
    """Twin of `decimals` in plain Python, for tests."""
    if values.dtype.kind != "f":
        return decimals(values)
    mantissas, places = np.zeros(len(values), np.int64), np.full(len(values), _ODD, np.int8)
    bits = _bits(values)
    for i, value in enumerate([float(value) for value in values]):
        a = abs(value)
        if str(value) == "0.0":
            places[i] = 0
        if not 0 < a < _MOST:
            continue
        exact = Fraction(a)
        fraction, exponent = math.frexp(a)
        half = Fraction(1, 2 if fraction > 0.5 else 4) * Fraction(2) ** (exponent - bits) * (1 - Fraction(1, 2**20))
        for k in range(23):
            product = exact * 10**k
            if float(product) >= _MOST_DIGITS:
                break
            m = int(np.rint(float(product)))
            m += int(np.rint(float(product - Fraction(float(product)))))
            if abs(product - m) < half * 10**k:
                mantissas[i], places[i] = (m if value > 0 else -m), k
                break
    return _with_odd(values, mantissas, places)


def _texts(numbers: Decimals) -> list[bytes]:
    texts, n_odd = list[bytes](), 0
    for m, k in zip(numbers.mantissas.tolist(), numbers.places.tolist(), strict=True):
        if k < 0:
            texts.append(numbers.odd[numbers.odd_ends[n_odd] : numbers.odd_ends[n_odd + 1]].tobytes())
            n_odd += 1
            continue
        sign, digits = "-" * (m < 0), str(abs(m))
        if k > len(digits) + _ZEROS:
            digits = f"{digits}e-{k}"
        elif k:
            digits = digits.rjust(k + 1, "0")
            digits = f"{digits[:-k]}.{digits[-k:]}"
        texts.append((sign + digits).encode())
    return texts


def row_lines_numpy(
    heads: tuple[Bytes, Ints], qids: Ints, indptr: Ints, indices: Array, values: Decimals, base: int
) -> Bytes:
    """Twin of `row_lines` in plain Python, for tests."""
    entries = [b" %d:%b" % (i + base, text) for i, text in zip(indices.tolist(), _texts(values), strict=True)]
    lines = []
    for row in range(len(indptr) - 1):
        head = heads[0][heads[1][row] : heads[1][row + 1]].tobytes()
        qid = b" qid:%d" % qids[row] if len(qids) else b""
        lines.append(head + qid + b"".join(entries[indptr[row] : indptr[row + 1]]) + b"\n")
    return np.frombuffer(b"".join(lines), np.uint8)


def triple_lines_numpy(
    row: int,
    indptr: Ints,
    indices: Array,
    values: Decimals,
    *,
    base: int,
    delimiter: int,
    names: tuple[Bytes, Ints] | None = None,
) -> Bytes:
    """Twin of `triple_lines` in plain Python, for tests."""
    rows = np.repeat(np.arange(row, row + len(indptr) - 1), np.diff(indptr)).tolist()
    features = [b"%d" % (i + base) for i in indices.tolist()]
    if names is not None:
        features = [names[0][names[1][i] : names[1][i + 1]].tobytes() for i in indices.tolist()]
    lines = [
        bytes([delimiter]).join((b"%d" % number, feature, text)) + b"\n"
        for number, feature, text in zip(rows, features, _texts(values), strict=True)
    ]
    return np.frombuffer(b"".join(lines), np.uint8)
