"""Lines of Vowpal Wabbit: ``label importance 'tag|namespace:weight feature:value feature ...|...``.

As in `tokenise`, a text ends in a newline, every loop stops at one, and what is no plain number is noted by its place
and read by ``float``.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsestore.kernels.tokenise import _read, parts

__all__ = ["BAD_VALUE", "EMPTY_NAME", "MANY_NUMBERS", "OK", "TWO_TAGS", "Examples", "examples", "examples_numpy"]

OK = 0
BAD_VALUE = 1  # not a finite number
MANY_NUMBERS = 2  # more than label and importance before the first namespace
EMPTY_NAME = 3  # a feature without a name
_FULL = 4
TWO_TAGS = 5  # a second tag before the first namespace

_ONE, _TWO = np.uint64(1), np.uint64(2)
_NL, _PIPE, _COLON, _QUOTE = 10, 124, 58, 39
_VALUE, _LABEL, _IMPORTANCE, _SCALE = 0, 1, 2, 3


_PARTS = parts()
_is_blank, _number, _skip_blanks = (_PARTS[name] for name in ("_is_blank", "_number", "_skip_blanks"))


@njit(nogil=True, cache=True)
def _count(text: Any) -> Any:
    """Number of newlines, of blanks and of pipes."""
    lines, blanks, pipes = np.int64(0), np.int64(0), np.int64(0)
    for k in range(len(text)):
        b = text[k]
        lines += b == _NL
        blanks += b == 32 or b == 9 or 11 <= b <= 13
        pipes += b == _PIPE
    return lines, blanks, pipes


@njit(nogil=True, cache=True)
def _token_end(text: Any, i: Any) -> Any:
    """Where a token ends: at a blank, a newline or a pipe."""
    while not _is_blank(text[i]) and text[i] != _PIPE:
        i += _ONE
    return i


@njit(nogil=True, cache=True)
def _scan(
    text: Any,
    starts: Any,
    numbers: Any,
    tags: Any,
    indptr: Any,
    names: Any,
    values: Any,
    spaces: Any,
    space_names: Any,
    scales: Any,
    odd: Any,
) -> Any:
    """Fill the arrays; -> status, offset, rows, namespaces, odd numbers: (offset, end, place * 4 + what it is)."""
    i, stop = np.uint64(0), np.uint64(len(text))
    row, entry, space, n_odd = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    room = np.uint64(len(odd))
    while i < stop:
        i = _skip_blanks(text, i)
        if text[i] == _NL:
            i += _ONE
            continue
        starts[row] = i
        numbers[row, 0], numbers[row, 1] = np.nan, 1.0
        tags[row, 0], tags[row, 1] = i, i
        n_numbers = 0
        tagged = False
        while text[i] != _PIPE and text[i] != _NL:
            token = i
            i = _token_end(text, i)
            if text[i] == _PIPE or text[token] == _QUOTE:
                if tagged:
                    return TWO_TAGS, token, row, space, n_odd
                tagged = True
                tags[row, 0] = token + _ONE if text[token] == _QUOTE else token
                tags[row, 1] = i
            elif n_numbers == 2:
                return MANY_NUMBERS, token, row, space, n_odd
            else:
                end, value, plain = _number(text, token)
                if not (plain and end == i):
                    if n_odd == room:
                        return _FULL, token, row, space, n_odd
                    odd[n_odd, 0], odd[n_odd, 1] = token, i
                    odd[n_odd, 2] = np.int64(row) * 4 + _LABEL + n_numbers
                    n_odd += _ONE
                numbers[row, n_numbers] = value
                n_numbers += 1
            i = _skip_blanks(text, i)
        while text[i] == _PIPE:
            i += _ONE
            token = i
            while not _is_blank(text[i]) and text[i] != _COLON and text[i] != _PIPE:
                i += _ONE
            space_names[space, 0], space_names[space, 1] = token, i
            scales[space] = 1.0
            if text[i] == _COLON:
                token = i + _ONE
                i = _token_end(text, token)
                end, value, plain = _number(text, token)
                if not (plain and end == i):
                    if n_odd == room:
                        return _FULL, token, row, space, n_odd
                    odd[n_odd, 0], odd[n_odd, 1], odd[n_odd, 2] = token, i, np.int64(space) * 4 + _SCALE
                    n_odd += _ONE
                scales[space] = value
            i = _skip_blanks(text, i)
            while text[i] != _PIPE and text[i] != _NL:
                token = i
                while not _is_blank(text[i]) and text[i] != _COLON and text[i] != _PIPE:
                    i += _ONE
                if i == token:
                    return EMPTY_NAME, token, row, space, n_odd
                names[entry, 0], names[entry, 1] = token, i
                value = 1.0
                if text[i] == _COLON:
                    token = i + _ONE
                    i = _token_end(text, token)
                    end, value, plain = _number(text, token)
                    if not (plain and end == i):
                        if n_odd == room:
                            return _FULL, token, row, space, n_odd
                        odd[n_odd, 0], odd[n_odd, 1], odd[n_odd, 2] = token, i, np.int64(entry) * 4 + _VALUE
                        n_odd += _ONE
                values[entry] = value
                spaces[entry] = space
                entry += _ONE
                i = _skip_blanks(text, i)
            space += _ONE
        i += _ONE
        row += _ONE
        indptr[row] = entry
    return OK, i, row, space, n_odd


class Examples(NamedTuple):
    """Rows read from lines; where `status` is not OK only `status` and `offset` mean something."""

    status: int
    offset: int
    """Of what is wrong."""
    starts: NDArray[np.int64]
    """(n,) byte offset of each row."""
    labels: NDArray[np.float64]
    """(n,), NaN where there is none."""
    importance: NDArray[np.float64]
    """(n,), 1 where there is none."""
    tags: NDArray[np.int64]
    """(n, 2) where each begins and ends."""
    indptr: NDArray[np.int64]
    names: NDArray[np.int64]
    """(nnz, 2) where the name of each feature begins and ends."""
    values: NDArray[np.float64]
    """(nnz,), as they stand there."""
    spaces: NDArray[np.int64]
    """(nnz,) namespace of each entry."""
    space_names: NDArray[np.int64]
    """(namespaces, 2) where the name of each begins and ends."""
    scales: NDArray[np.float64]
    """(namespaces,) the weight of each."""


def examples(text: NDArray[np.uint8]) -> Examples:
    """Read whole lines; the last byte is a newline."""
    lines, blanks, pipes = _count(text)
    starts, numbers, tags = np.empty(lines, np.int64), np.empty((lines, 2)), np.empty((lines, 2), np.int64)
    indptr = np.zeros(lines + 1, np.int64)
    most = blanks + pipes  # each feature follows a blank; behind a carriage return none does
    names, values, spaces = np.empty((most, 2), np.int64), np.empty(most), np.empty(most, np.int64)
    space_names, scales = np.empty((pipes, 2), np.int64), np.empty(pipes)
    room = 4096
    while True:
        odd = np.empty((room, 3), np.int64)
        status, offset, rows, n_spaces, n_odd = _scan(
            text, starts, numbers, tags, indptr, names, values, spaces, space_names, scales, odd
        )
        if status != _FULL:
            break
        room = int(most + pipes + 2 * lines)
    for at, end, code in odd[: int(n_odd)].tolist():
        place, what = divmod(code, 4)
        value = _read(text[at:end].tobytes(), finite=what != _VALUE) if end - at < 65536 else None
        if value is None:
            return _failed(BAD_VALUE, at)
        if what == _VALUE:
            values[place] = value
        elif what == _SCALE:
            scales[place] = value
        else:
            numbers[place, what - _LABEL] = value
    if status != OK:
        return _failed(int(status), int(offset))
    n, nnz, m = int(rows), int(indptr[int(rows)]), int(n_spaces)
    return Examples(
        OK,
        int(offset),
        starts[:n],
        numbers[:n, 0],
        numbers[:n, 1],
        tags[:n],
        indptr[: n + 1],
        names[:nnz],
        values[:nnz],
        spaces[:nnz],
        space_names[:m],
        scales[:m],
    )


def _failed(status: int, offset: int) -> Examples:
    nothing: Any = np.empty(0)
    return Examples(status, offset, *([nothing] * 10))


_TOKEN = re.compile(rb"[^\s|]+")
_NAME = re.compile(rb"[^\s|:]*")
_GAP = re.compile(rb"[ \t\v\f\r]*")


def examples_numpy(text: NDArray[np.uint8]) -> Examples:
    """Twin of `examples` in plain Python, for tests."""
    payload = text.tobytes()
    starts, labels, importance, tags = list[int](), list[float](), list[float](), list[tuple[int, int]]()
    indptr, names, values, spaces = [0], list[tuple[int, int]](), list[float](), list[int]()
    space_names, scales = list[tuple[int, int]](), list[float]()
    bad: list[int] = []  # the first number that is none: found after the scan, as by `examples`

    def gap(at: int) -> int:
        return _GAP.match(payload, at).end()  # type: ignore[union-attr]

    def number(at: int, finite: bool) -> tuple[float, int]:
        found = _TOKEN.match(payload, at)
        end = found.end() if found else at
        value = _read(payload[at:end], finite)
        if value is None:
            bad.append(at)
        return (0.0 if value is None else value), end

    def failed(status: int, at: int) -> Examples:
        return _failed(BAD_VALUE, bad[0]) if bad else _failed(status, at)

    at = 0
    while at < len(payload):
        at = gap(at)
        if payload[at] == _NL:
            at += 1
            continue
        starts.append(at)
        found, tag, tagged = list[float](), (at, at), False
        while payload[at] not in (_PIPE, _NL):
            end = _TOKEN.match(payload, at).end()  # type: ignore[union-attr]
            if payload[end] == _PIPE or payload[at] == _QUOTE:
                if tagged:
                    return failed(TWO_TAGS, at)
                tagged = True
                tag = (at + (payload[at] == _QUOTE), end)
            elif len(found) == 2:
                return failed(MANY_NUMBERS, at)
            else:
                found.append(number(at, True)[0])
            at = gap(end)
        labels.append(found[0] if found else np.nan)
        importance.append(found[1] if len(found) > 1 else 1.0)
        tags.append(tag)
        while payload[at] == _PIPE:
            end = _NAME.match(payload, at + 1).end()  # type: ignore[union-attr]
            space_names.append((at + 1, end))
            scale, at = number(end + 1, True) if payload[end] == _COLON else (1.0, end)
            scales.append(scale)
            at = gap(at)
            while payload[at] not in (_PIPE, _NL):
                end = _NAME.match(payload, at).end()  # type: ignore[union-attr]
                if end == at:
                    return failed(EMPTY_NAME, at)
                names.append((at, end))
                value, at = number(end + 1, False) if payload[end] == _COLON else (1.0, end)
                values.append(value)
                spaces.append(len(space_names) - 1)
                at = gap(at)
        at += 1
        indptr.append(len(names))
    if bad:
        return _failed(BAD_VALUE, bad[0])
    return Examples(
        OK,
        len(payload),
        np.array(starts, np.int64),
        np.array(labels, np.float64),
        np.array(importance, np.float64),
        np.array(tags, np.int64).reshape(-1, 2),
        np.array(indptr, np.int64),
        np.array(names, np.int64).reshape(-1, 2),
        np.array(values, np.float64),
        np.array(spaces, np.int64),
        np.array(space_names, np.int64).reshape(-1, 2),
        np.array(scales, np.float64),
    )
