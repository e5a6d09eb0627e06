"""What the rows of a view weigh when they are drawn: by a column, by an array, or every class of a column alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsestore.forking import imported
from sparsestore.format import ColumnSchema
from sparsestore.plan.selection import Selection
from sparsestore.reader import Reader

__all__ = ["BALANCED", "MOST_CLASSES", "Weights", "weights_of"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

BALANCED = "balanced:"
"""Begins what asks for the same weight of every class; the name of the column follows."""

MOST_CLASSES = 1 << 16
"""Of a column that is to be balanced: a table of them is held."""

_PIECE = 1 << 18
"""Rows whose weights are looked at together when they are added up."""


class Weights(Protocol):
    """What the rows of a view weigh. Any number of threads may ask.

    Attributes
    ----------
    name : str
        Tells these weights from others of the same view and version.
    total : float
        Weight of all rows together: finite, above 0.
    """

    name: str
    total: float

    def of(self, positions: Ints) -> tuple[NDArray[np.float64], Array | None]:
        """Weights of the rows at (m,) `positions` of the view, and their classes, where these have the weights."""


def weights_of(given: Any, reader: Reader, selection: Selection) -> Weights:
    """Weights as `View.loader` takes them; those of all rows are looked at once, in pieces.

    Raises
    ------
    ValueError
        They are no weights of these rows: the row and its value are named.
    """
    if not isinstance(given, str):
        return _OfArray(given, selection.n_rows)
    if given.startswith(BALANCED):
        return _OfClasses(reader, selection, given.removeprefix(BALANCED))
    return _OfColumn(reader, selection, given)


class _OfColumn:
    def __init__(self, reader: Reader, selection: Selection, column: str) -> None:
        if _schema(reader, column).dtype == "string":
            raise ValueError(
                f"column {column!r} holds text, and weights are numbers: weights={BALANCED + column!r} draws each of "
                f"its texts equally often"
            )
        self.name = column
        self._reader = reader
        self._selection = selection
        what = f"column {column!r}"
        sums = [
            float(_checked(values, what, rows, "store").sum()) for rows, values in _pieces(reader, selection, column)
        ]
        self.total = _total(sums, what)

    def of(self, positions: Ints) -> tuple[NDArray[np.float64], None]:
        return np.asarray(self._reader.column(self.name, self._selection.rows(positions)), np.float64), None


class _OfArray:
    def __init__(self, given: Any, n_rows: int) -> None:
        # not a copy: it may be as long as the data
        masked = isinstance(given, imported("numpy.ma").MaskedArray)
        self._values = values = given if masked else np.asarray(given)
        if values.dtype.kind not in "biuf":
            raise ValueError(
                f"weights is a {type(given).__name__} of dtype {values.dtype}, expected the name of a column, "
                f"'{BALANCED}' and the name of one, or an array of {n_rows} numbers"
            )
        if values.shape != (n_rows,):
            raise ValueError(
                f"weights has shape {values.shape}, expected {(n_rows,)}: a number for each row of the view"
            )
        digest, sums = blake2b(digest_size=16), []
        for start in range(0, n_rows, _PIECE):
            rows = np.arange(start, min(start + _PIECE, n_rows))
            numbers = _checked(values[rows], "weights", rows, "view")
            digest.update(numbers.astype("<f8", copy=False).tobytes())
            sums.append(float(numbers.sum()))
        self.name = f"array {digest.hexdigest()}"
        self.total = _total(sums, "weights")

    def of(self, positions: Ints) -> tuple[NDArray[np.float64], None]:
        return np.asarray(self._values[positions], np.float64), None


class _OfClasses:
    def __init__(self, reader: Reader, selection: Selection, column: str) -> None:
        self.name = BALANCED + column
        self._reader = reader
        self._selection = selection
        self._column = column
        text = _schema(reader, column).dtype == "string"
        counts: Counter[Any] = Counter()
        for rows, values in _pieces(reader, selection, column):
            missing = _missing(values)
            if missing.any():
                raise ValueError(
                    f"column {column!r} has no value at row {rows[missing][0]} of the store: a row without a class can "
                    f"not be balanced; select the rows that have one"
                )
            if text:
                counts.update(values.tolist())
            else:
                found, times = np.unique(np.asarray(values), return_counts=True)
                counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
            if len(counts) > MOST_CLASSES:
                raise ValueError(
                    f"column {column!r} has more than {MOST_CLASSES} different values, too many for classes: give an "
                    f"array of weights"
                )
        classes = sorted(counts)
        self._numbers = {name: number for number, name in enumerate(classes)} if text else {}
        self._classes = None if text else np.array(classes, np.asarray(values).dtype)
        times = np.array([counts[name] for name in classes])
        self._weights = selection.n_rows / (len(classes) * times)
        self.total = float(selection.n_rows)

    def of(self, positions: Ints) -> tuple[NDArray[np.float64], Array]:
        values = self._reader.column(self._column, self._selection.rows(positions))
        # numbers of 16 bits, which numpy sorts by counting
        if self._classes is None:
            numbers = np.fromiter(map(self._numbers.__getitem__, values.tolist()), np.uint16, len(values))
        else:
            numbers = np.searchsorted(self._classes, np.asarray(values)).astype(np.uint16)
        return self._weights[numbers], numbers


def _schema(reader: Reader, column: str) -> ColumnSchema:
    """Of a column with one value a row."""
    schema = reader.columns.get(column)
    if schema is None:
        known = ", ".join(map(repr, reader.columns)) or "none"
        raise ValueError(
            f"no column {column!r} to take weights from: the store has {known}; weights is the name of one, "
            f"'{BALANCED}' and the name of one, or an array"
        )
    if schema.shape:
        raise ValueError(f"column {column!r} has {schema.shape[0]} values a row, and weights need one")
    return schema


def _pieces(reader: Reader, selection: Selection, column: str) -> Iterator[tuple[Ints, Array]]:
    """Numbers in the store of all rows of a view, and their values, some at a time."""
    for start in range(0, selection.n_rows, _PIECE):
        rows = selection.rows(np.arange(start, min(start + _PIECE, selection.n_rows)))
        yield rows, reader.column(column, rows)


def _missing(values: Array) -> NDArray[np.bool_]:
    """Where a column has no value."""
    masked: NDArray[np.bool_] = imported("numpy.ma").getmaskarray(values)
    return masked | np.isnan(np.asarray(values)) if values.dtype.kind == "f" else masked


def _checked(values: Array, what: str, rows: Ints, whose: str) -> NDArray[np.float64]:
    """Weights as floats; ValueError where one is none."""
    numbers = np.asarray(values, np.float64)
    masked = imported("numpy.ma").getmaskarray(values)
    wrong = masked | ~((numbers >= 0) & (numbers < np.inf))
    if wrong.any():
        at = int(np.argmax(wrong))
        found = "has no value" if masked[at] else f"is {numbers[at]}"
        raise ValueError(
            f"{what} {found} at row {rows[at]} of the {whose}, expected a finite number, 0 or more: give 0 to rows "
            f"that must not come"
        )
    return numbers


def _total(sums: list[float], what: str) -> float:
    try:
        total = math.fsum(sums)
    except OverflowError:  # of finite numbers
        total = math.inf
    if total == 0:
        raise ValueError(f"{what} is 0 at all rows: there is nothing to draw; give some of them weight")
    if math.isinf(total):
        raise ValueError(f"{what} adds up to more than a float can hold: divide all weights by the largest")
    return total
