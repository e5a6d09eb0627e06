"""Numbers out of ARFF files: sparse rows ``{index value, ...}`` and dense ones, with their weights.

Format: https://waikato.github.io/weka-wiki/formats_and_processing/arff_stable/. As in `tokenise`, a text ends in a
newline, every loop stops at one, and what is no plain number is noted by its place and read by ``float``.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsestore.kernels.names import Names, find
from sparsestore.kernels.tokenise import _read, parts

__all__ = ["Attributes", "Rows", "arff", "arff_numpy", "unquoted"]

Array = NDArray[Any]

FEATURE, NUMBER, TEXT, LEFT_OUT = 0, 1, 2, 3
"""What an attribute is: an entry of the matrix, a value of a column, text of a column, nothing."""

OK = 0
BAD_VALUE = 1  # not a number, or beyond float64, or none of the values that the attribute has
BAD_INDEX = 2  # not digits and a blank
OUT_OF_RANGE = 3
UNORDERED = 4
DUPLICATE = 5
FEW = 6  # a dense row ends before all values were there
MANY = 7  # there is more behind the row
MISSING = 8  # ? where that is an error
OPEN_QUOTE = 9  # a quoted value that goes on over the end of the line
NO_VALUE = 10  # nothing between two commas
NO_END = 11  # neither a comma nor a brace behind a value
WEIGHT = 12  # a weight where none was asked for
BAD_WEIGHT = 13
_FULL = 14

ERROR, ZERO, NAN = 0, 1, 2
"""What ``?`` is, of the matrix."""

UNKNOWN = -2
"""Where a text begins that is ``?``; -1 where the row lacks it."""

_ZERO, _ONE = np.uint64(0), np.uint64(1)
_NL, _COMMA, _OPEN, _CLOSE, _PERCENT, _QUESTION, _BACKSLASH = 10, 44, 123, 125, 37, 63, 92
_QUOTES = (34, 39)


class Attributes(NamedTuple):
    """What each attribute is."""

    kinds: NDArray[np.uint8]
    places: NDArray[np.int64]
    """Number among the features, or among the columns of its kind."""
    firsts: NDArray[np.int64]
    """Number of the first of a nominal attribute's values in `values`, or -1."""
    values: Names
    """Of all nominal attributes; the group is the attribute."""


_PARTS = parts()
_index, _is_blank, _number, _skip_blanks, _skip_line = (
    _PARTS["_index"],
    _PARTS["_is_blank"],
    _PARTS["_number"],
    _PARTS["_skip_blanks"],
    _PARTS["_skip_line"],
)


@njit(nogil=True, cache=True)
def _closes(b: Any) -> Any:
    """Whether a byte ends a value without quotes."""
    return b == 32 or 9 <= b <= 13 or b in (_COMMA, _CLOSE, _PERCENT)


@njit(nogil=True, cache=True)
def _scan_arff(
    text: Any,
    kinds: Any,
    places: Any,
    firsts: Any,
    names: Any,
    name_starts: Any,
    groups: Any,
    table: Any,
    missing: Any,
    weighted: Any,
    starts: Any,
    indptr: Any,
    indices: Any,
    values: Any,
    numbers: Any,
    spans: Any,
    weights: Any,
    odd: Any,
) -> Any:
    """Fill the arrays; -> status, offset of the first offence, attribute, rows, odd numbers.

    ``odd[k]`` is (begin, end, place, attribute) of a value to be read later: place p of values, ~p of numbers; of
    weights, which are one attribute more, the row.
    """
    i, stop = _ZERO, np.uint64(len(text))
    row, entry, n_odd = _ZERO, _ZERO, _ZERO
    room = np.uint64(len(odd))
    n_fields = np.uint64(len(kinds))
    n_numbers = np.uint64(numbers.shape[1])
    while i < stop:
        i = _skip_blanks(text, i)
        if text[i] == _NL:
            i += _ONE
            continue
        if text[i] == _PERCENT:
            i = _skip_line(text, i) + _ONE
            continue
        starts[row] = i
        numbers[row] = 0.0
        spans[row] = -1
        weights[row] = 1.0
        sparse = text[i] == _OPEN
        if sparse:
            i = _skip_blanks(text, i + _ONE)
        field, before = _ZERO, _ZERO
        empty = sparse and text[i] == _CLOSE
        if empty:
            i += _ONE
        while not empty:
            i = _skip_blanks(text, i)
            token = i
            if sparse:
                i, field, sound = _index(text, i)
                if i == token or (not _is_blank(text[i]) and sound) or text[i] == _NL:
                    return BAD_INDEX, token, np.int64(0), row, n_odd
                if not sound or field >= n_fields:
                    return OUT_OF_RANGE, token, np.int64(0), row, n_odd
                if field < before:
                    return DUPLICATE if field + _ONE == before else UNORDERED, token, np.int64(field), row, n_odd
                before = field + _ONE
                i = _skip_blanks(text, i)
                token = i
            kind = kinds[field]
            nominal = firsts[field] >= 0
            plain, escaped = False, False
            value = 0.0
            begin = token
            quote = text[i]
            quoted = quote in _QUOTES
            if quoted:
                i += _ONE
                begin = i
                while text[i] != quote:
                    if text[i] == _BACKSLASH:
                        escaped = True
                        i += _ONE
                    if text[i] == _NL:
                        return OPEN_QUOTE, token, np.int64(field), row, n_odd
                    i += _ONE
                end = i
                i += _ONE
            else:
                if kind <= NUMBER and not nominal:
                    i, value, plain = _number(text, i)
                    plain = plain and _closes(text[i])
                if not plain:
                    i = begin
                    while not _closes(text[i]):
                        i += _ONE
                end = i
                if end == begin:
                    return NO_VALUE, token, np.int64(field), row, n_odd
            unknown = not quoted and end - begin == _ONE and text[begin] == _QUESTION
            if kind <= NUMBER and not unknown:
                if nominal and not escaped:
                    number = find(text, begin, end, np.int64(field), names, name_starts, groups, table)
                    plain = number >= 0
                    value = np.float64(number - firsts[field])
                if not plain:
                    if n_odd == room:
                        return _FULL, token, np.int64(field), row, n_odd
                    odd[n_odd, 0] = begin
                    odd[n_odd, 1] = end
                    odd[n_odd, 2] = (
                        np.int64(entry) if kind == FEATURE else ~np.int64(row * n_numbers + np.uint64(places[field]))
                    )
                    odd[n_odd, 3] = np.int64(field)
                    n_odd += _ONE
            if kind == FEATURE:
                if unknown:
                    if missing == ERROR:
                        return MISSING, token, np.int64(field), row, n_odd
                    value, plain = np.nan, missing == ZERO
                if not plain or (value != 0 and not unknown):
                    indices[entry] = places[field]
                    values[entry] = value
                    entry += _ONE
            elif kind == NUMBER:
                numbers[row, np.uint64(places[field])] = np.nan if unknown else value
            elif kind == TEXT:
                spans[row, np.uint64(places[field]), 0] = UNKNOWN if unknown else np.int64(token)
                spans[row, np.uint64(places[field]), 1] = np.int64(i)
            i = _skip_blanks(text, i)
            if sparse:
                if text[i] == _CLOSE:
                    i += _ONE
                    break
                if text[i] != _COMMA:
                    return NO_END, i, np.int64(field), row, n_odd
                i += _ONE
                continue
            field += _ONE
            if field == n_fields:
                break
            if text[i] != _COMMA:
                return FEW if text[i] == _NL else NO_END, i, np.int64(field), row, n_odd
            i += _ONE
        i = _skip_blanks(text, i)
        if text[i] == _COMMA:
            token = i
            i = _skip_blanks(text, i + _ONE)
            if text[i] != _OPEN:
                return MANY, token, np.int64(n_fields), row, n_odd
            if not weighted:
                return WEIGHT, i, np.int64(n_fields), row, n_odd
            token = i
            begin = _skip_blanks(text, i + _ONE)
            i, value, plain = _number(text, begin)
            if not plain or not _closes(text[i]):
                i = begin
                while not _closes(text[i]):
                    i += _ONE
                if n_odd == room:
                    return _FULL, token, np.int64(n_fields), row, n_odd
                odd[n_odd, 0] = begin
                odd[n_odd, 1] = i
                odd[n_odd, 2] = np.int64(row)
                odd[n_odd, 3] = np.int64(n_fields)
                n_odd += _ONE
            i = _skip_blanks(text, i)
            if text[i] != _CLOSE:
                return BAD_WEIGHT, token, np.int64(n_fields), row, n_odd
            weights[row] = value
            i = _skip_blanks(text, i + _ONE)
        if text[i] == _PERCENT:
            i = _skip_line(text, i)
        if text[i] != _NL:
            return MANY, i, np.int64(n_fields), row, n_odd
        i += _ONE
        row += _ONE
        indptr[row] = entry
    return OK, i, np.int64(0), row, n_odd


class Rows(NamedTuple):
    """Rows read from lines; where `status` is not OK only `status`, `offset` and `field` mean something."""

    status: int
    offset: int
    """Of what is wrong."""
    field: int
    """Number of its attribute."""
    starts: NDArray[np.int64]
    """(n,) byte offset of each row."""
    indptr: NDArray[np.int64]
    indices: Array
    values: NDArray[np.float64]
    numbers: NDArray[np.float64]
    """(n, numeric columns); NaN where the value is ``?``, 0 where a sparse row lacks it."""
    spans: NDArray[np.int64]
    """(n, text columns, 2): where each text begins and ends, quotes included; or -1, or `UNKNOWN`."""
    weights: NDArray[np.float64]
    """(n,) 1 where a row has none."""


def arff(
    text: NDArray[np.uint8],
    attributes: Attributes,
    *,
    missing: int = ERROR,
    weighted: bool = False,
    n_lines: int | None = None,
) -> Rows:
    """Read whole lines of data.

    Parameters
    ----------
    text : (n,) uint8 array
        Its last byte is a newline.
    attributes : Attributes
    missing : int
        What ``?`` of the matrix is: `ERROR`, `ZERO` (no entry) or `NAN`.
    weighted : bool
        Whether rows may have weights, ``{...}, {0.5}``.
    n_lines : int, optional
        Newlines in `text`, where they were counted before.
    """
    lines = int(np.count_nonzero(text == _NL)) if n_lines is None else n_lines
    n_numbers, n_texts = (int(np.count_nonzero(attributes.kinds == kind)) for kind in (NUMBER, TEXT))
    most = len(text) // 2 + 1  # an entry takes two bytes at least; what is not touched takes no memory
    starts, indptr, weights = np.empty(lines, np.int64), np.zeros(lines + 1, np.int64), np.empty(lines)
    indices, values = np.empty(most, np.int32), np.empty(most)
    numbers, spans = np.empty((lines, n_numbers)), np.empty((lines, n_texts, 2), np.int64)
    room = 4096
    while True:
        odd = np.empty((room, 4), np.int64)
        status, offset, field, rows, n_odd = _scan_arff(
            text,
            *attributes[:3],
            *attributes.values,
            missing,
            weighted,
            starts,
            indptr,
            indices,
            values,
            numbers,
            spans,
            weights,
            odd,
        )
        if status != _FULL:
            break
        room = len(text) // 2 + 1
    empty = []
    for begin, end, place, of in odd[: int(n_odd)].tolist():  # all lie before the offence, if there was one
        quoted = begin > 0 and text[begin - 1] in _QUOTES
        value = _value(text[begin:end].tobytes(), attributes, of, quoted=bool(quoted))
        if value is None:
            return _failed(BAD_VALUE if of < len(attributes.kinds) else BAD_WEIGHT, begin, of)
        if of == len(attributes.kinds):
            weights[place] = value
        elif place < 0:
            numbers.reshape(-1)[~place] = value
        else:
            values[place] = value
            if value == 0:
                empty.append(place)
    if status != OK:
        return _failed(int(status), int(offset), int(field))
    n, nnz = int(rows), int(indptr[int(rows)])
    found = Rows(
        OK,
        int(offset),
        0,
        starts[:n],
        indptr[: n + 1],
        indices[:nnz],
        values[:nnz],
        numbers[:n],
        spans[:n],
        weights[:n],
    )
    if not empty:
        return found
    kept = np.ones(nnz, bool)
    kept[empty] = False  # zeros that were written in an odd way
    indptr = np.append(0, np.cumsum(kept))[found.indptr]
    return found._replace(indptr=indptr, indices=found.indices[kept], values=found.values[kept])


def _failed(status: int, offset: int, field: int) -> Rows:
    nothing: Any = np.empty(0)
    return Rows(status, offset, field, *[nothing] * 7)


def unquoted(token: bytes) -> bytes:
    r"""What is between quotes, or the token itself; ``\`` makes the next byte an ordinary one.

    Examples
    --------
    >>> unquoted(rb"'it\'s'")
    b"it's"
    """
    return _plain(token[1:-1]) if token[:1] in (b"'", b'"') else token


def _plain(inner: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", inner, flags=re.DOTALL)


def _value(inner: bytes, attributes: Attributes, field: int, *, quoted: bool) -> float | None:
    """The number that a value without its quotes, if it had any, spells, or the number of a nominal one."""
    weight = field == len(attributes.firsts)
    if weight or attributes.firsts[field] < 0:
        return _read(inner.strip(), finite=weight) if len(inner) < 65536 else None
    name = np.frombuffer(_plain(inner) if quoted else inner, np.uint8)
    number = int(find(name, _ZERO, np.uint64(len(name)), field, *attributes.values))
    return None if number < 0 else float(number - attributes.firsts[field])


def arff_numpy(
    text: NDArray[np.uint8], attributes: Attributes, *, missing: int = ERROR, weighted: bool = False
) -> Rows:
    """Twin of `arff` in plain Python, for tests."""
    blanks, index = re.compile(rb"[ \t\v\f\r]*"), re.compile(rb"[0-9]+")
    quoted = re.compile(rb"'(?:[^'\\\n]|\\[^\n])*'|\"(?:[^\"\\\n]|\\[^\n])*\"")
    bare, weight = re.compile(rb"[^\s,}%]*"), re.compile(rb"\{[ \t\v\f\r]*([^\s,}%]*)[ \t\v\f\r]*")
    kinds, places, firsts, names = attributes
    n_fields = len(kinds)
    known = {
        (int(group), names.text[a:b].tobytes()): number
        for number, (group, a, b) in enumerate(zip(names.groups, names.starts[:-1], names.starts[1:], strict=True))
    }
    n_numbers, n_texts = (int(np.count_nonzero(kinds == kind)) for kind in (NUMBER, TEXT))
    starts, indptr, indices, values = list[int](), [0], list[int](), list[float]()
    numbers, spans, weights = list[list[float]](), list[list[list[int]]](), list[float]()
    payload, at = text.tobytes(), 0
    while at < len(payload):
        newline = payload.index(b"\n", at)
        i = blanks.match(payload, at).end()  # type: ignore[union-attr]
        if payload[i] in b"\n%":
            at = newline + 1
            continue
        begin, sparse = i, payload[i] == _OPEN
        row_numbers, row_spans, row_weight = [0.0] * n_numbers, [[-1, -1] for _ in range(n_texts)], 1.0
        field, before, going = 0, -1, True
        if sparse:
            i = blanks.match(payload, i + 1).end()  # type: ignore[union-attr]
            going = payload[i] != _CLOSE
            i += not going
        while going:
            i = blanks.match(payload, i).end()  # type: ignore[union-attr]
            if sparse:
                digits = index.match(payload, i)
                if not digits:
                    return _failed(BAD_INDEX, i, 0)
                after = payload[digits.end()]
                if after == _NL or (len(digits[0]) <= 18 and after not in b" \t\v\f\r"):
                    return _failed(BAD_INDEX, i, 0)
                if len(digits[0]) > 18 or int(digits[0]) >= n_fields:
                    return _failed(OUT_OF_RANGE, i, 0)
                field = int(digits[0])
                if field <= before:
                    return _failed(DUPLICATE if field == before else UNORDERED, i, field)
                before = field
                i = blanks.match(payload, digits.end()).end()  # type: ignore[union-attr]
            token, first, kind = i, int(firsts[field]), int(kinds[field])
            if payload[i] in _QUOTES:
                found = quoted.match(payload, i)
                if not found:
                    return _failed(OPEN_QUOTE, i, field)
                inner, i = found[0][1:-1], found.end()
            else:
                inner = bare.match(payload, i)[0]  # type: ignore[index]
                i += len(inner)
                if not inner:
                    return _failed(NO_VALUE, token, field)
            unknown = payload[token:i] == b"?"
            value: float | None = np.nan
            if kind <= NUMBER and not unknown:
                number = known.get((field, _plain(inner) if payload[token] in _QUOTES else inner), -1)
                value = _read(inner.strip(), finite=False) if first < 0 else float(number - first)
                if value is None or (first >= 0 and number < 0):
                    return _failed(BAD_VALUE, token + (payload[token] in _QUOTES), field)
            if kind == FEATURE and unknown and missing == ERROR:
                return _failed(MISSING, token, field)
            if kind == FEATURE and value != 0 and not (unknown and missing == ZERO):
                indices.append(int(places[field]))
                values.append(value)  # type: ignore[arg-type]
            elif kind == NUMBER:
                row_numbers[places[field]] = value  # type: ignore[assignment]
            elif kind == TEXT:
                row_spans[places[field]] = [UNKNOWN if unknown else token, i]
            i = blanks.match(payload, i).end()  # type: ignore[union-attr]
            field += 1
            going = payload[i] != _CLOSE if sparse else field < n_fields
            if going and payload[i] != _COMMA:
                few = not sparse and payload[i] == _NL
                return _failed(FEW if few else NO_END, i, field - sparse)
            i += going or sparse
        i = blanks.match(payload, i).end()  # type: ignore[union-attr]
        if payload[i] == _COMMA:
            brace = blanks.match(payload, i + 1).end()  # type: ignore[union-attr]
            if payload[brace] != _OPEN:
                return _failed(MANY, i, n_fields)
            if not weighted:
                return _failed(WEIGHT, brace, n_fields)
            given = weight.match(payload, brace)
            number_read = _read(given[1], finite=True)  # type: ignore[index]
            if number_read is None or payload[given.end()] != _CLOSE:  # type: ignore[union-attr]
                where = brace if number_read is not None else given.start(1)  # type: ignore[union-attr]
                return _failed(BAD_WEIGHT, where, n_fields)
            row_weight, i = number_read, blanks.match(payload, given.end() + 1).end()  # type: ignore[union-attr]
        if payload[i] not in b"\n%":
            return _failed(MANY, i, n_fields)
        starts.append(begin)
        indptr.append(len(indices))
        numbers.append(row_numbers)
        spans.append(row_spans)
        weights.append(row_weight)
        at = newline + 1
    n = len(starts)
    return Rows(
        OK,
        len(payload),
        0,
        np.array(starts, np.int64),
        np.array(indptr, np.int64),
        np.array(indices, np.int32),
        np.array(values, np.float64),
        np.array(numbers, np.float64).reshape(n, n_numbers),
        np.array(spans, np.int64).reshape(n, n_texts, 2),
        np.array(weights, np.float64),
    )
