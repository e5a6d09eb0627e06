"""Numbers out of text: the lines of svmlight files and the entries of Matrix Market files.

A text is a uint8 array that ends in a newline. Every loop here stops at a newline, and looks past a byte only where
that byte is none: so no look-ahead can leave the array (compiled code has no bounds checks).

Values are float64, correctly rounded, equal to Python's ``float``. Most numbers are exact by one multiplication
(Clinger, "How to read floating point numbers accurately", 1990); nearly all others by one 128-bit product (Lemire,
"Number parsing at a gigabyte per second", 2021, algorithm 1); what is left (over 19 digits, subnormal, nan, inf, no
number at all) is noted by its place and read by ``float`` itself.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels.compiler import inlined
from sparsestore.kernels.counting import count
from sparsestore.kernels.native import Kernel

__all__ = [
    "BAD_INDEX",
    "BAD_LABEL",
    "BAD_LINE",
    "BAD_QID",
    "BAD_VALUE",
    "BELOW_BASE",
    "DUPLICATE",
    "OK",
    "OUT_OF_RANGE",
    "QID_ABSENT",
    "QID_PRESENT",
    "TOO_MANY",
    "UNORDERED",
    "Entries",
    "Lines",
    "entries",
    "entries_numpy",
    "parts",
    "svmlight",
    "svmlight_numpy",
]

Array = NDArray[Any]

OK = 0
BAD_LABEL = 1  # not a finite number
BAD_INDEX = 2  # not digits, or no colon after them
BAD_VALUE = 3  # not a number, or beyond float64
BELOW_BASE = 4  # index 0 where counting starts at 1
OUT_OF_RANGE = 5  # index above the limit
UNORDERED = 6  # index below the one before
DUPLICATE = 7  # index equal to the one before
BAD_QID = 8  # not digits, or beyond int64
QID_ABSENT = 9
QID_PRESENT = 10
BAD_LINE = 11  # too few or too many numbers
TOO_MANY = 12  # more entries than declared
_FULL = 13  # more odd numbers than there is room for: try again with more

_ZERO, _ONE, _TWO, _FOUR = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(4)
_TEN, _U32 = np.uint64(10), np.uint64(32)
_LOW32, _TOP = np.uint64(2**32 - 1), np.uint64(2**63)
_DIGITS = np.uint64(19)  # as many always fit uint64
_INDEX_DIGITS = np.uint64(18)  # as many always fit int64
_EXACT = np.uint64(2**53)
_NL, _HASH, _COLON, _COMMA, _DOT, _PLUS, _MINUS, _PERCENT, _Q = 10, 35, 58, 44, 46, 43, 45, 37, 113
_POWERS = 10.0 ** np.arange(23)  # exact in float64


def _powers_of_five() -> NDArray[np.uint64]:
    """The 128 leading bits of 5**q for q = -342 ... 308 as (651, 2) uint64: high, low (Lemire 2021, section 4)."""
    table = np.empty((651, 2), np.uint64)
    for q in range(-342, 309):
        if q < 0:
            power = 5**-q
            size = (power - 1).bit_length()
            bits = 2 ** (size + 127 if q >= -27 else 2 * size + 128) // power + 1
        else:
            bits = 5**q << 128
        bits >>= bits.bit_length() - 128
        table[q + 342] = bits >> 64, bits & (2**64 - 1)
    return table


_FIVES = _powers_of_five()


def _product(a: Any, b: Any) -> Any:
    """The 128-bit product of two uint64: high, low."""
    a0, a1, b0, b1 = a & _LOW32, a >> _U32, b & _LOW32, b >> _U32
    low = a0 * b0
    mid = a1 * b0 + (low >> _U32)
    mid2 = a0 * b1 + (mid & _LOW32)
    return a1 * b1 + (mid >> _U32) + (mid2 >> _U32), (mid2 << _U32) | (low & _LOW32)


def _scale(mantissa: Any, exponent: Any) -> Any:
    """``mantissa * 10**exponent`` correctly rounded, and whether that could be told (Lemire 2021, algorithm 1)."""
    if mantissa <= _EXACT and -22 <= exponent <= 22:
        if exponent < 0:
            return np.float64(mantissa) / _POWERS[-exponent], True
        return np.float64(mantissa) * _POWERS[exponent], True
    if mantissa == _ZERO:
        return 0.0, True
    if exponent < -342 or exponent > 308:
        return 0.0, False
    w = mantissa
    zeros = 0
    while w < _TOP:
        w <<= _ONE
        zeros += 1
    high, low = _product(w, _FIVES[exponent + 342, 0])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):
        more, _ = _product(w, _FIVES[exponent + 342, 1])
        low += more
        if low < more:
            high += _ONE
        if low == np.uint64(0xFFFFFFFFFFFFFFFF) and (exponent < -27 or exponent > 55):
            return 0.0, False
    top = high >> np.uint64(63)
    shift = top + np.uint64(9)
    m = high >> shift
    power = ((217706 * exponent) >> 16) + 63 + np.int64(top) - zeros
    if power <= -1022 or power >= 1023:  # subnormal, infinite or near it
        return 0.0, False
    if low <= _ONE and -4 <= exponent <= 23 and m & np.uint64(3) == _ONE and (m << shift) == high:
        m &= ~_ONE  # exactly half-way: to even
    m += m & _ONE
    m >>= _ONE
    # two to this power, by its bits; the mantissa is brought to 1 ... 2 first, so that nothing is rounded
    return np.float64(m) * 2.0**-52 * np.uint64((power + 1023) << 52).view(np.float64), True


def _number(text: Any, i: Any) -> Any:
    """Read a number at `i`: where it ends, its value, and whether it is one that could be read here."""
    b = text[i]
    negative = b == _MINUS
    if negative or b == _PLUS:
        i += _ONE
    mantissa = _ZERO
    start = i
    d = np.uint64(text[i]) - np.uint64(48)  # below '0' wraps around to something large
    while d < _TEN:
        mantissa = mantissa * _TEN + d
        i += _ONE
        d = np.uint64(text[i]) - np.uint64(48)
    digits = i - start
    exponent = np.int64(0)
    if text[i] == _DOT:
        i += _ONE
        start = i
        d = np.uint64(text[i]) - np.uint64(48)
        while d < _TEN:
            mantissa = mantissa * _TEN + d
            i += _ONE
            d = np.uint64(text[i]) - np.uint64(48)
        digits += i - start
        exponent = -np.int64(i - start)
    sound = _ZERO < digits <= _DIGITS
    if text[i] == 101 or text[i] == 69:
        i += _ONE
        minus = text[i] == _MINUS
        if minus or text[i] == _PLUS:
            i += _ONE
        start = i
        power = np.int64(0)
        d = np.uint64(text[i]) - np.uint64(48)
        while d < _TEN:
            if power < 10_000:
                power = power * 10 + np.int64(d)
            i += _ONE
            d = np.uint64(text[i]) - np.uint64(48)
        if i == start:
            sound = False
        exponent += -power if minus else power
    if not sound:
        return i, 0.0, False
    value, sound = _scale(mantissa, exponent)
    return i, -value if negative else value, sound


def _index(text: Any, i: Any) -> Any:
    """Read digits at `i`: where they end, the number, and whether there are any and it is right."""
    start = i
    index = _ZERO
    d = np.uint64(text[i]) - np.uint64(48)
    while d < _TEN:
        index = index * _TEN + d
        i += _ONE
        d = np.uint64(text[i]) - np.uint64(48)
    return i, index, _ZERO < i - start <= _INDEX_DIGITS


def _is_qid(text: Any, i: Any) -> Any:
    """Whether "qid:" stands at `i`; a byte is looked at only where the one before is no newline."""
    return text[i] == _Q and text[i + _ONE] == 105 and text[i + _TWO] == 100 and text[i + _TWO + _ONE] == _COLON


def _is_blank(b: Any) -> Any:
    """White space as in ``bytes.split``."""
    return b == 32 or 9 <= b <= 13


def _ends(b: Any) -> Any:
    """Whether a byte ends a token of svmlight: white space, or the start of a comment."""
    return b == 32 or 9 <= b <= 13 or b == _HASH


def _skip_blanks(text: Any, i: Any) -> Any:
    while text[i] == 32 or text[i] == 9 or 11 <= text[i] <= 13:
        i += _ONE
    return i


def _skip_line(text: Any, i: Any) -> Any:
    while text[i] != _NL:
        i += _ONE
    return i


def _svmlight_lines(
    text: Any,
    base: Any,
    limit: Any,
    ascending: Any,
    multilabel: Any,
    qid: Any,
    fields: Any,
    starts: Any,
    indptr: Any,
    label_ptr: Any,
    labels: Any,
    qids: Any,
    indices: Any,
    values: Any,
    odd: Any,
) -> Any:
    """Fill the arrays from lines; -> status, offset of the first offence, rows, labels, odd numbers, in order.

    ``odd[k]`` is (offset, place) of a number to be read by ``float``: place p of values, or ~p of labels.
    """
    i, stop = _ZERO, np.uint64(len(text))
    row, entry, label, n_odd = _ZERO, _ZERO, _ZERO, _ZERO
    room = np.uint64(len(odd))
    in_order = True
    while i < stop:
        i = _skip_blanks(text, i)
        if text[i] == _NL:
            i += _ONE
            continue
        if text[i] == _HASH:
            i = _skip_line(text, i) + _ONE
            continue
        starts[row] = i
        # the label, or several with commas between, or none where several are allowed
        while True:
            token = i
            i, value, sound = _number(text, i)
            if multilabel and token == starts[row] and (text[i] == _COLON or (text[i] == _Q and i == token)):
                i = token  # no label: the line starts with a feature or a qid
                break
            more = multilabel and text[i] == _COMMA
            if not (sound and (more or _ends(text[i]))):
                i = token
                while not (_ends(text[i]) or (multilabel and text[i] == _COMMA)):
                    i += _ONE
                more = multilabel and text[i] == _COMMA
                if n_odd == room:
                    return _FULL, token, row, label, n_odd, in_order
                odd[n_odd, 0] = token
                odd[n_odd, 1] = ~np.int64(label)
                n_odd += _ONE
            labels[label] = value
            label += _ONE
            if not more:
                break
            i += _ONE
        label_ptr[row + _ONE] = label
        before = _ZERO  # 1 + the index before
        first = True
        has_qid = False
        while True:
            # most of a line: index, colon, number, blank. Whatever is not exactly that is left for the rest of the loop
            i = _skip_blanks(text, i)
            while not fields:
                at, index, sound = _index(text, i)
                if not sound or text[at] != _COLON or index < base or index - base > limit or index - base < before:
                    break
                at += _ONE
                value = np.float64(np.uint64(text[at]) - np.uint64(48))
                if value < 10 and text[at + _ONE] == 32:  # mostly 1: it needs no more than this
                    at += _ONE
                else:
                    at, value, sound = _number(text, at)
                    if not sound or text[at] != 32:
                        break
                first = False
                before = index - base + _ONE
                indices[entry] = index - base
                values[entry] = value
                entry += _ONE
                i = at + _ONE
            i = _skip_blanks(text, i)
            if text[i] == _NL:
                break
            if text[i] == _HASH:
                i = _skip_line(text, i)
                break
            token = i
            if first and _is_qid(text, i):
                number = i + _FOUR
                i, query, sound = _index(text, number)
                if not (sound and _ends(text[i])):
                    return BAD_QID, token, row, label, n_odd, in_order
                if qid == 0:
                    return QID_PRESENT, token, row, label, n_odd, in_order
                if qid == 1:
                    qids[row] = query
                has_qid = True
                first = False
                continue
            first = False
            if fields:
                i, _, sound = _index(text, i)
                if i == token or text[i] != _COLON:
                    return BAD_INDEX, token, row, label, n_odd, in_order
                i += _ONE
            begin = i
            i, index, sound = _index(text, i)
            if i == begin or text[i] != _COLON:
                return BAD_INDEX, token, row, label, n_odd, in_order
            if not sound:
                return OUT_OF_RANGE, token, row, label, n_odd, in_order
            if index < base:
                return BELOW_BASE, token, row, label, n_odd, in_order
            index -= base
            if index > limit:
                return OUT_OF_RANGE, token, row, label, n_odd, in_order
            if index < before:
                in_order = False
                if ascending:
                    return (
                        DUPLICATE if index + _ONE == before else UNORDERED,
                        token,
                        row,
                        label,
                        n_odd,
                        in_order,
                    )
            before = index + _ONE
            i += _ONE
            token = i
            i, value, sound = _number(text, i)
            if not (sound and _ends(text[i])):
                i = token
                while not _ends(text[i]):
                    i += _ONE
                if n_odd == room:
                    return _FULL, token, row, label, n_odd, in_order
                odd[n_odd, 0] = token
                odd[n_odd, 1] = entry
                n_odd += _ONE
            indices[entry] = index
            values[entry] = value
            entry += _ONE
        if qid == 1 and not has_qid:
            return QID_ABSENT, starts[row], row, label, n_odd, in_order
        row += _ONE
        indptr[row] = entry
        i += _ONE
    return OK, i, row, label, n_odd, in_order


def _entry_lines(
    text: Any,
    n_indices: Any,
    has_value: Any,
    n_rows: Any,
    n_columns: Any,
    most: Any,
    rows: Any,
    columns: Any,
    values: Any,
    odd: Any,
) -> Any:
    """Fill the arrays from lines "row column value"; -> status, offset of the first offence, entries, odd numbers."""
    i, stop = _ZERO, np.uint64(len(text))
    entry, n_odd = _ZERO, _ZERO
    room = np.uint64(len(odd))
    while i < stop:
        i = _skip_blanks(text, i)
        if text[i] == _NL:
            i += _ONE
            continue
        if text[i] == _PERCENT:
            i = _skip_line(text, i) + _ONE
            continue
        line = i
        if entry == most:
            return TOO_MANY, line, entry, n_odd
        for k in range(n_indices):
            i = _skip_blanks(text, i)
            token = i
            i, index, sound = _index(text, i)
            if i == token and text[i] == _NL:
                return BAD_LINE, line, entry, n_odd
            if i == token or not _is_blank(text[i]):
                return BAD_INDEX, token, entry, n_odd
            if not sound:
                return OUT_OF_RANGE, token, entry, n_odd
            if index < _ONE:
                return BELOW_BASE, token, entry, n_odd
            if index > (n_rows if k == 0 else n_columns):
                return OUT_OF_RANGE, token, entry, n_odd
            if k == 0:
                rows[entry] = index - _ONE
            else:
                columns[entry] = index - _ONE
        if has_value:
            i = _skip_blanks(text, i)
            token = i
            if text[i] == _NL:
                return BAD_LINE, line, entry, n_odd
            i, value, sound = _number(text, i)
            if not (sound and _is_blank(text[i])):
                i = token
                while not _is_blank(text[i]):
                    i += _ONE
                if n_odd == room:
                    return _FULL, token, entry, n_odd
                odd[n_odd, 0] = token
                odd[n_odd, 1] = entry
                n_odd += _ONE
            values[entry] = value
        i = _skip_blanks(text, i)
        if text[i] != _NL:
            return BAD_LINE, line, entry, n_odd
        i += _ONE
        entry += _ONE
    return OK, i, entry, n_odd


def parts() -> dict[str, Any]:
    """The functions above, to become part of the loop that calls them: for `Kernel(needs=...)`, or numba's own."""
    small = (_product, _scale, _number, _index, _is_qid, _is_blank, _ends, _skip_blanks, _skip_line)
    return inlined((*small, _svmlight_lines, _entry_lines))


@Kernel(needs=parts)  # type: ignore[call-arg]
def _scan_svmlight(
    text: Array,
    base: int,
    limit: int,
    ascending: int,
    multilabel: int,
    qid: int,
    fields: int,
    out_starts: Array,
    out_indptr: Array,
    out_label_ptr: Array,
    out_labels: Array,
    out_qids: Array,
    out_indices: Array,
    out_values: Array,
    out_odd: Array,
    out_found: Array,
) -> int:
    """See `_svmlight_lines`; gives the status, and the rest in `out_found`."""
    status, offset, rows, labels, n_odd, in_order = _svmlight_lines(
        text,
        np.uint64(base),
        np.uint64(limit),
        ascending != 0,
        multilabel != 0,
        qid,
        fields != 0,
        out_starts,
        out_indptr,
        out_label_ptr,
        out_labels,
        out_qids,
        out_indices,
        out_values,
        out_odd,
    )
    out_found[0], out_found[1], out_found[2] = np.int64(offset), np.int64(rows), np.int64(labels)
    out_found[3], out_found[4] = np.int64(n_odd), np.int64(in_order)
    return np.int64(status)  # type: ignore[return-value]


@Kernel(needs=parts)  # type: ignore[call-arg]
def _scan_entries(
    text: Array,
    n_indices: int,
    has_value: int,
    n_rows: int,
    n_columns: int,
    most: int,
    out_rows: Array,
    out_columns: Array,
    out_values: Array,
    out_odd: Array,
    out_found: Array,
) -> int:
    """See `_entry_lines`; gives the status, and the rest in `out_found`."""
    status, offset, n, n_odd = _entry_lines(
        text,
        n_indices,
        has_value != 0,
        np.uint64(n_rows),
        np.uint64(n_columns),
        np.uint64(most),
        out_rows,
        out_columns,
        out_values,
        out_odd,
    )
    out_found[0], out_found[1], out_found[2] = np.int64(offset), np.int64(n), np.int64(n_odd)
    return np.int64(status)  # type: ignore[return-value]


# What float() takes is wider than what a file may hold: underscores, digits of other scripts.
# No digit may match in two ways: a long token that is no number would be tried in as many ways as it has pairs of them.
_FINITE = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPECIAL = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_BLANK = re.compile(rb"\s")
_LABEL_END = re.compile(rb"[\s#,]")
_TOKEN_END = re.compile(rb"[\s#]")


def _read(token: bytes, finite: bool) -> float | None:
    """The number that `token` spells; None where it is none, is beyond float64, or is nan or inf while `finite`."""
    if _FINITE.fullmatch(token):
        value = float(token)
        return value if math.isfinite(value) else None
    return float(token) if not finite and _SPECIAL.fullmatch(token) else None


class Lines(NamedTuple):
    """Rows read from svmlight lines; where `status` is not OK only `status` and `offset` mean something."""

    status: int
    offset: int
    """Of the first token that is wrong."""
    starts: NDArray[np.int64]
    """(n,) byte offset of each row."""
    label_ptr: NDArray[np.int64]
    """(n + 1,) labels of row i are ``labels[label_ptr[i]:label_ptr[i + 1]]``."""
    labels: NDArray[Any]
    qids: NDArray[np.int64]
    """(n,) or (0,) where they were not asked for."""
    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    values: NDArray[Any]
    ascending: bool
    """Whether the indices ascend strictly in every row."""


def svmlight(
    text: NDArray[np.uint8],
    *,
    base: int = 1,
    limit: int = 2**31 - 2,
    ascending: bool = True,
    multilabel: bool = False,
    qid: int = 0,
    fields: bool = False,
) -> Lines:
    """Read whole svmlight lines.

    Parameters
    ----------
    text : (n,) uint8 array
        Its last byte is a newline.
    base : int
        What the first feature is called; 0 or 1. `Lines.indices` count from 0.
    limit : int
        Highest allowed index, counted from 0. Up to 2**31 - 2 the indices are int32, else int64.
    ascending : bool
        Whether indices out of order are refused.
    qid : int
        0: refused; 1: every row must have one; 2: skipped.
    fields : bool
        Whether a whole number and a colon stand before each index (libffm); they are skipped.
    """
    lines, colons, commas = count(text, _NL, _COLON, _COMMA)
    colons //= 1 + fields
    n_labels = lines + (commas if multilabel else 0)
    starts, label_ptr = np.empty(lines, np.int64), np.zeros(lines + 1, np.int64)
    labels, indptr = np.empty(n_labels), np.zeros(lines + 1, np.int64)
    qids = np.empty(lines if qid == 1 else 0, np.int64)
    indices = np.empty(colons, np.int32 if limit <= 2**31 - 2 else np.int64)
    values = np.empty(colons)
    room = 4096
    while True:
        odd, found = np.empty((room, 2), np.int64), np.empty(5, np.int64)
        status = _scan_svmlight(
            text,
            base,
            limit,
            int(ascending),
            int(multilabel),
            qid,
            int(fields),
            starts,
            indptr,
            label_ptr,
            labels,
            qids,
            indices,
            values,
            odd,
            found,
        )
        offset, rows, n_labels, n_odd, in_order = found.tolist()
        if status != _FULL:
            break
        room = len(labels) + len(values)
    for at, place in odd[:n_odd].tolist():  # all lie before the offence, if there was one
        end = _LABEL_END if place < 0 and multilabel else _TOKEN_END
        value = _read(_token(text, at, end), finite=place < 0)
        if value is None:
            status, offset = (BAD_LABEL if place < 0 else BAD_VALUE), at
            break
        if place < 0:
            labels[~place] = value
        else:
            values[place] = value
    n, nnz = rows, int(indptr[rows])
    return Lines(
        status,
        offset,
        starts[:n],
        label_ptr[: n + 1],
        labels[:n_labels],
        qids[:n],
        indptr[: n + 1],
        indices[:nnz],
        values[:nnz],
        bool(in_order),
    )


def _token(text: NDArray[np.uint8], at: int, end: re.Pattern[bytes]) -> bytes:
    """The token at `at`, without what ends it; a number of more than 64 KiB is not read as one."""
    for size in (64, 65536):  # most are short, and there may be one every few bytes
        piece = text[at : at + size].tobytes()
        if found := end.search(piece):
            return piece[: found.start()]
    return b""


def svmlight_numpy(
    text: NDArray[np.uint8],
    *,
    base: int = 1,
    limit: int = 2**31 - 2,
    ascending: bool = True,
    multilabel: bool = False,
    qid: int = 0,
    fields: bool = False,
) -> Lines:
    """Twin of `svmlight` in plain Python, for tests."""
    starts: list[int] = []
    label_ptr, labels, qids, indptr = [0], list[float](), list[int](), [0]
    indices, values, in_order = list[int](), list[float](), True

    def made(status: int, offset: int) -> Lines:
        return Lines(
            status,
            offset,
            np.array(starts, np.int64),
            np.array(label_ptr, np.int64),
            np.array(labels, np.float64),
            np.array(qids, np.int64),
            np.array(indptr, np.int64),
            np.array(indices, np.int32 if limit <= 2**31 - 2 else np.int64),
            np.array(values, np.float64),
            in_order,
        )

    at = 0
    for line in text.tobytes().split(b"\n"):
        tokens = [(at + m.start(), m.group()) for m in re.finditer(rb"\S+", line.split(b"#")[0])]
        at += len(line) + 1
        if not tokens:
            continue
        start, first = tokens[0]
        if multilabel and re.match(rb"q|[+-]?[0-9]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?:", first):
            features = tokens
        else:
            features = tokens[1:]
            place = start
            for part in first.split(b",") if multilabel else [first]:
                label = _read(part, finite=True)
                if label is None:
                    return made(BAD_LABEL, place)
                labels.append(label)
                place += len(part) + 1
        before, has_qid = -1, False
        for k, (offset, token) in enumerate(features):
            if k == 0 and token.startswith(b"qid:"):
                if not re.fullmatch(rb"[0-9]{1,18}", token[4:]):
                    return made(BAD_QID, offset)
                if qid == 0:
                    return made(QID_PRESENT, offset)
                has_qid = True
                if qid == 1:
                    qids.append(int(token[4:]))
                continue
            field = re.match(rb"[0-9]+:", token)
            if fields and not field:
                return made(BAD_INDEX, offset)
            skipped = len(field[0]) if fields and field else 0
            name, colon, number = token[skipped:].partition(b":")
            if not colon or not re.fullmatch(rb"[0-9]+", name):
                return made(BAD_INDEX, offset)
            index = int(name) - base
            if len(name) > 18 or index > limit:
                return made(OUT_OF_RANGE, offset)
            if index < 0:
                return made(BELOW_BASE, offset)
            if index <= before:
                in_order = False
                if ascending:
                    return made(DUPLICATE if index == before else UNORDERED, offset)
            before = index
            value = _read(number, finite=False)
            if value is None:
                return made(BAD_VALUE, offset + skipped + len(name) + 1)
            indices.append(index)
            values.append(value)
        if qid == 1 and not has_qid:
            return made(QID_ABSENT, start)
        starts.append(start)
        label_ptr.append(len(labels))
        indptr.append(len(indices))
    return made(OK, len(text))


class Entries(NamedTuple):
    """Entries read from a Matrix Market body; where `status` is not OK only `status` and `offset` mean something."""

    status: int
    offset: int
    """Of the first token, or line, that is wrong."""
    rows: NDArray[np.int64]
    """(n,) counted from 0; (0,) where lines hold values alone."""
    columns: NDArray[np.int64]
    values: NDArray[np.float64]
    """(n,) or (0,) where lines hold indices alone."""
    n: int


def entries(
    text: NDArray[np.uint8], n_rows: int, n_columns: int, *, most: int, indexed: bool = True, valued: bool = True
) -> Entries:
    """Read whole lines "row column value" (`indexed`, `valued`), at most `most` of them, indices counted from 1.

    Blank lines and those that start with % are skipped. The last byte of `text` must be a newline.
    """
    lines, _, _ = count(text, _NL, _NL, _NL)
    rows, columns = np.empty(lines if indexed else 0, np.int64), np.empty(lines if indexed else 0, np.int64)
    values = np.empty(lines if valued else 0)
    room = 4096
    while True:
        odd, found = np.empty((room, 2), np.int64), np.empty(3, np.int64)
        status = _scan_entries(
            text, 2 if indexed else 0, int(valued), n_rows, n_columns, most, rows, columns, values, odd, found
        )
        offset, n, n_odd = found.tolist()
        if status != _FULL:
            break
        room = len(values)
    for at, place in odd[:n_odd].tolist():
        value = _read(_token(text, at, _BLANK), finite=False)
        if value is None:
            status, offset = BAD_VALUE, at
            break
        values[place] = value
    return Entries(status, offset, rows[:n], columns[:n], values[:n], n)


def entries_numpy(
    text: NDArray[np.uint8], n_rows: int, n_columns: int, *, most: int, indexed: bool = True, valued: bool = True
) -> Entries:
    """Twin of `entries` in plain Python, for tests."""
    rows, columns, values = list[int](), list[int](), list[float]()

    def made(status: int, offset: int, n: int) -> Entries:
        return Entries(
            status, offset, np.array(rows, np.int64), np.array(columns, np.int64), np.array(values, np.float64), n
        )

    at, n = 0, 0
    for line in text.tobytes().split(b"\n"):
        tokens = [(at + m.start(), m.group()) for m in re.finditer(rb"\S+", line)]
        at += len(line) + 1
        if not tokens or tokens[0][1].startswith(b"%"):
            continue
        start = tokens[0][0]
        if n == most:
            return made(TOO_MANY, start, n)
        expected = (2 if indexed else 0) + valued
        for k, (offset, token) in enumerate(tokens[:expected]):
            if not (indexed and k < 2):
                value = _read(token, finite=False)
                if value is None:
                    return made(BAD_VALUE, offset, n)
                values.append(value)
                continue
            if not re.fullmatch(rb"[0-9]+", token):
                return made(BAD_INDEX, offset, n)
            if len(token) > 18 or int(token) > (n_rows, n_columns)[k]:
                return made(OUT_OF_RANGE, offset, n)
            if int(token) < 1:
                return made(BELOW_BASE, offset, n)
            (rows, columns)[k].append(int(token) - 1)
        if len(tokens) != expected:
            return made(BAD_LINE, start, n)
        n += 1
    return made(OK, len(text), n)
