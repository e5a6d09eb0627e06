"""Numbers out of wide tables: fields with a delimiter between them, most of them 0.

As in `tokenise`, a text ends in a newline, every loop stops at one, and what is no plain number is noted by its place
and read by ``float``. A field "0" costs two comparisons and is stored nowhere.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels.compiler import inlined
from sparsestore.kernels.native import Kernel
from sparsestore.kernels.tokenise import _number, _read
from sparsestore.kernels.tokenise import parts as parts_of_text

__all__ = [
    "BAD_VALUE",
    "FEATURE",
    "FEW",
    "LEFT_OUT",
    "MANY",
    "MISSING",
    "NUMBER",
    "OK",
    "OPEN_QUOTE",
    "TEXT",
    "Table",
    "table",
    "table_numpy",
]

Array = NDArray[Any]

FEATURE, NUMBER, TEXT, LEFT_OUT = 0, 1, 2, 3
"""What a field is: an entry of the matrix, a value of a column, text of a column, nothing."""

OK = 0
BAD_VALUE = 1  # not a number, or beyond float64
FEW = 2  # the line ends before all fields were there
MANY = 3  # there is more behind the last field
MISSING = 4  # an empty field where that is an error
OPEN_QUOTE = 5  # a quoted field that goes on over the end of the line, or behind its last quote
_FULL = 6

ERROR, ZERO, NAN = 0, 1, 2
"""What an empty field of the matrix is."""

_ONE = np.uint64(1)
_NL, _CR, _QUOTE, _DIGIT_0 = 10, 13, 34, 48
_BLANKS = b" \t"


def _table_lines(
    text: Any,
    delimiter: Any,
    kinds: Any,
    places: Any,
    missing: Any,
    starts: Any,
    indptr: Any,
    indices: Any,
    values: Any,
    numbers: Any,
    spans: Any,
    odd: Any,
) -> Any:
    """Fill the arrays; -> status, offset of the first offence, field, rows, odd numbers.

    ``odd[k]`` is (offset, end, place) of a number to be read by ``float``: place p of values, or ~p of numbers.
    """
    i, stop = np.uint64(0), np.uint64(len(text))
    row, entry, n_odd = np.uint64(0), np.uint64(0), np.uint64(0)
    room = np.uint64(len(odd))
    n_fields = len(kinds)
    width = np.uint64(numbers.shape[1])
    while i < stop:
        if text[i] == _NL or (text[i] == _CR and text[i + _ONE] == _NL):  # a blank line
            i += _ONE
            continue
        starts[row] = i
        for field in range(n_fields):
            kind = kinds[field]
            b = text[i]
            if b == _DIGIT_0 and kind == FEATURE:
                after = text[i + _ONE]
                if after in (delimiter, _NL, _CR):
                    i += _ONE
                    if field + 1 < n_fields:
                        if after != delimiter:
                            return FEW, i, field + 1, row, n_odd
                        i += _ONE
                    continue
            token = i
            plain = False
            value = 0.0
            if b == _QUOTE:
                i += _ONE
                while True:
                    while text[i] != _QUOTE and text[i] != _NL:
                        i += _ONE
                    if text[i] == _NL:
                        return OPEN_QUOTE, token, field, row, n_odd
                    i += _ONE
                    if text[i] != _QUOTE:
                        break
                    i += _ONE
                if text[i] != delimiter and text[i] != _NL and text[i] != _CR:
                    return OPEN_QUOTE, token, field, row, n_odd
            else:
                if kind <= NUMBER:
                    i, value, plain = _number(text, i)
                    plain = plain and (text[i] == delimiter or text[i] == _NL or text[i] == _CR)
                if not plain:
                    i = token
                    while text[i] != delimiter and text[i] != _NL and not (text[i] == _CR and text[i + _ONE] == _NL):
                        i += _ONE
            if kind == FEATURE:
                if i == token:
                    if missing == ERROR:
                        return MISSING, token, field, row, n_odd
                    if missing == NAN:
                        indices[entry] = places[field]
                        values[entry] = np.nan
                        entry += _ONE
                elif not plain or value != 0:
                    if not plain:
                        if n_odd == room:
                            return _FULL, token, field, row, n_odd
                        odd[n_odd, 0] = token
                        odd[n_odd, 1] = i
                        odd[n_odd, 2] = np.int64(entry)
                        n_odd += _ONE
                    indices[entry] = places[field]
                    values[entry] = value
                    entry += _ONE
            elif kind == NUMBER:
                place = row * width + np.uint64(places[field])
                if i == token:
                    value = np.nan
                elif not plain:
                    if n_odd == room:
                        return _FULL, token, field, row, n_odd
                    odd[n_odd, 0] = token
                    odd[n_odd, 1] = i
                    odd[n_odd, 2] = ~np.int64(place)
                    n_odd += _ONE
                numbers[row, np.uint64(places[field])] = value
            elif kind == TEXT:
                spans[row, np.uint64(places[field]), 0] = token
                spans[row, np.uint64(places[field]), 1] = i
            if field + 1 < n_fields:
                if text[i] != delimiter:
                    return FEW, i, field + 1, row, n_odd
                i += _ONE
        if text[i] == _CR:
            i += _ONE
        if text[i] != _NL:
            return MANY, i, n_fields, row, n_odd
        i += _ONE
        row += _ONE
        indptr[row] = entry
    return OK, i, 0, row, n_odd


def _parts() -> dict[str, Any]:
    return inlined([_table_lines], parts_of_text())


@Kernel(needs=_parts)  # type: ignore[call-arg]
def _scan_table(
    text: Array,
    delimiter: int,
    kinds: Array,
    places: Array,
    missing: int,
    out_starts: Array,
    out_indptr: Array,
    out_indices: Array,
    out_values: Array,
    out_numbers: Array,
    out_spans: Array,
    out_odd: Array,
    out_found: Array,
) -> int:
    """See `_table_lines`; gives the status, and the rest in `out_found`."""
    status, offset, field, rows, n_odd = _table_lines(
        text,
        delimiter,
        kinds,
        places,
        missing,
        out_starts,
        out_indptr,
        out_indices,
        out_values,
        out_numbers,
        out_spans,
        out_odd,
    )
    out_found[0], out_found[1] = np.int64(offset), np.int64(field)
    out_found[2], out_found[3] = np.int64(rows), np.int64(n_odd)
    return np.int64(status)  # type: ignore[return-value]


class Table(NamedTuple):
    """Rows read from lines; where `status` is not OK only `status`, `offset` and `field` mean something."""

    status: int
    offset: int
    """Of the field that is wrong."""
    field: int
    """Its number, from 0."""
    starts: NDArray[np.int64]
    """(n,) byte offset of each row."""
    indptr: NDArray[np.int64]
    indices: Array
    values: NDArray[np.float64]
    numbers: NDArray[np.float64]
    """(n, numeric columns); NaN where the field is empty."""
    spans: NDArray[np.int64]
    """(n, text columns, 2): where each text begins and ends, quotes included."""


def table(
    text: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    places: NDArray[np.int64],
    *,
    delimiter: int,
    missing: int = ERROR,
    n_lines: int | None = None,
) -> Table:
    """Read whole lines.

    Parameters
    ----------
    text : (n,) uint8 array
        Its last byte is a newline.
    kinds : (fields,) uint8 array
        What each field is: `FEATURE`, `NUMBER`, `TEXT` or `LEFT_OUT`.
    places : (fields,) int64 array
        Its number among the features, or among the columns of its kind.
    delimiter : int
        The byte between two fields.
    missing : int
        What an empty field of the matrix is: `ERROR`, `ZERO` (no entry) or `NAN`.
    n_lines : int, optional
        Newlines in `text`, where they were counted before.
    """
    lines = int(np.count_nonzero(text == _NL)) if n_lines is None else n_lines
    n_features, n_numbers, n_texts = (int(np.count_nonzero(kinds == kind)) for kind in (FEATURE, NUMBER, TEXT))
    # an entry takes two bytes at least, but an empty field that is nan one; what is not touched takes no memory
    fields = min(lines * n_features, len(text) if missing == NAN else len(text) // 2 + 1)
    starts, indptr = np.empty(lines, np.int64), np.zeros(lines + 1, np.int64)
    indices = np.empty(fields, np.int32 if n_features <= 2**31 - 1 else np.int64)
    values = np.empty(fields)
    numbers, spans = np.empty((lines, n_numbers)), np.empty((lines, n_texts, 2), np.int64)
    room = 4096
    while True:
        odd, found = np.empty((room, 3), np.int64), np.empty(4, np.int64)
        status = _scan_table(
            text, delimiter, kinds, places, missing, starts, indptr, indices, values, numbers, spans, odd, found
        )
        offset, field, n, n_odd = found.tolist()
        if status != _FULL:
            break
        room = fields + lines * n_numbers
    empty = []
    for at, end, place in odd[:n_odd].tolist():  # all lie before the offence, if there was one
        value = _value(text[at:end].tobytes())
        if value is None:
            begun = starts[: n + (status != OK)]  # with the row that was not finished
            before = text[begun[np.searchsorted(begun, at, side="right") - 1] : at].tobytes()
            return _failed(BAD_VALUE, at, _fields(before + b"x", delimiter) - 1)
        if place < 0:
            numbers.reshape(-1)[~place] = value
        else:
            values[place] = value
            if value == 0:
                empty.append(place)
    if status != OK:
        return _failed(status, offset, field)
    whole = Table(OK, offset, 0, starts[:n], indptr[: n + 1], indices, values, numbers[:n], spans[:n])
    return _without(whole, np.array(empty, np.int64))


def _failed(status: int, offset: int, field: int) -> Table:
    nothing: Any = np.empty(0)
    return Table(status, offset, field, nothing, nothing, nothing, nothing, nothing, nothing)


def _without(found: Table, places: NDArray[np.int64]) -> Table:
    """A table without some of its entries: zeros that were written in an odd way."""
    nnz = int(found.indptr[-1])
    if not len(places):
        return found._replace(indices=found.indices[:nnz], values=found.values[:nnz])
    kept = np.ones(nnz, bool)
    kept[places] = False
    indptr = np.append(0, np.cumsum(kept))[found.indptr]
    return found._replace(indptr=indptr, indices=found.indices[:nnz][kept], values=found.values[:nnz][kept])


def _fields(line: bytes, delimiter: int) -> int:
    """Fields of the beginning of a line, which does not end inside a quoted one."""
    plain = re.sub(rb'"(?:[^"\n]|"")*"', b"", line)
    return plain.count(bytes([delimiter])) + 1


def _value(token: bytes) -> float | None:
    """The number that a field spells, blanks or quotes around it."""
    token = token.strip(_BLANKS)
    if len(token) > 1 and token[:1] == token[-1:] == b'"':
        token = token[1:-1].strip(_BLANKS)
    return _read(token, finite=False) if len(token) < 65536 else None


def table_numpy(
    text: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    places: NDArray[np.int64],
    *,
    delimiter: int,
    missing: int = ERROR,
) -> Table:
    """Twin of `table` in plain Python, for tests."""
    field = re.compile(rb'"(?:[^"\n]|"")*"(?=[%b\n]|\r\n)|(?!")[^%b\n]*' % ((re.escape(bytes([delimiter])),) * 2))
    n_numbers, n_texts = (int(np.count_nonzero(kinds == kind)) for kind in (NUMBER, TEXT))
    payload = text.tobytes()
    starts, indptr, indices, values = list[int](), [0], list[int](), list[float]()
    numbers, spans = list[list[float]](), list[list[list[int]]]()
    at = 0
    while at < len(payload):
        end = payload.index(b"\n", at)
        stop = end - 1 if payload[end - 1 : end] == b"\r" and end > at else end
        if stop == at:
            at = end + 1
            continue
        begin = at
        row_numbers, row_spans = [0.0] * n_numbers, [[0, 0]] * n_texts
        for number, (kind, place) in enumerate(zip(kinds.tolist(), places.tolist(), strict=True)):
            found = field.match(payload, at)
            if found is None:
                return _failed(OPEN_QUOTE, at, number)
            last = min(found.end(), stop)
            token = payload[at:last]
            if kind == FEATURE and not token:
                if missing == ERROR:
                    return _failed(MISSING, at, number)
                if missing == NAN:
                    indices.append(place)
                    values.append(np.nan)
            elif kind in (FEATURE, NUMBER):
                value = _value(token) if token else np.nan
                if value is None:
                    return _failed(BAD_VALUE, at, number)
                if kind == NUMBER:
                    row_numbers[place] = value
                elif value != 0:
                    indices.append(place)
                    values.append(value)
            elif kind == TEXT:
                row_spans[place] = [at, last]
            at = last
            if number + 1 < len(kinds):
                if payload[at] != delimiter:
                    return _failed(FEW, at, number + 1)
                at += 1
        if at != stop:
            return _failed(MANY, at, len(kinds))
        starts.append(begin)
        indptr.append(len(indices))
        numbers.append(row_numbers)
        spans.append(row_spans)
        at = end + 1
    n = len(starts)
    return Table(
        OK,
        len(payload),
        0,
        np.array(starts, np.int64),
        np.array(indptr, np.int64),
        np.array(indices, np.int32),
        np.array(values, np.float64),
        np.array(numbers, np.float64).reshape(n, n_numbers),
        np.array(spans, np.int64).reshape(n, n_texts, 2),
    )
