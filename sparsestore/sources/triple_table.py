"""Typed tables of triples: an entry a row, its row, its feature and its value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import number_dtype
from sparsestore.errors import SourceError
from sparsestore.sources import arrow, options
from sparsestore.sources.base import Triples
from sparsestore.sources.dictionary import BadNameError
from sparsestore.sources.file import shown
from sparsestore.sources.layouts import converted
from sparsestore.sources.numbering import Numbering
from sparsestore.sources.table import Columns, Table, batches, said_shape

__all__ = ["TripleTableSource"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

_IDS = ("int64", "string")
_TRIPLE_BYTES = 48


class TripleTableSource:
    """Entries of a typed table, in any order.

    `blocks` holds at most `max_bytes` and a batch of the table. Beside it are held, until all rows were given, and
    limited by `hold`: dictionaries of texts (about 40 bytes a text and the text itself), and labels and weights (8
    bytes a row each).

    Parameters
    ----------
    table : Table
    row, feature : str
        Columns of whole numbers, the numbers of row and feature, or of texts, which get theirs in the order in which
        they come first; ``"user:string"`` takes numbers for texts. Texts of rows become a column called like theirs,
        those of features the names of the features.
    value : str, optional
        Column of the value; without one each entry is 1.
    label, weight : str, optional
        Columns that become "y" and "sample_weight" of the row, in float64, which must hold whole numbers exactly. All
        triples of a row must have the same; rows without a triple have nan.
    zero_based : bool
        Whether numbers of rows and features count from 0, or from 1.
    n_rows, n_features : int, optional
        More rows or features than there are numbers; with `encode` "hash" how many features to hash to. By default
        those that an export of a store put into the metadata, for its columns row and feature.
    encode, unknown
        Of features that are texts: see `categories.Categories`.
    dtype : optional
        Of the values; by default that of their column, without one float32. Hashed ones have signs, so that it is a
        signed one then.
    """

    sorted_rows = False

    def __init__(
        self,
        table: Table,
        *,
        row: str,
        feature: str,
        value: str | None = None,
        label: str | None = None,
        weight: str | None = None,
        zero_based: bool = True,
        n_rows: int | None = None,
        n_features: int | None = None,
        encode: str = "dictionary",
        unknown: str = "add",
        dtype: DTypeLike | None = None,
    ) -> None:
        self._table = table
        self.name, self.size, self.unit = table.name, table.size, table.unit
        self._columns = columns = Columns(table, label=label, weight=weight)
        self._base = 0 if zero_based else 1
        self._row, row_text = self._id(row, "row")
        self._feature, feature_text = self._id(feature, "feature")
        found = np.dtype(np.float32)
        if value is not None:
            columns.numbers(columns.take(value, "value"), "value")
            found = columns.dtype(value)
        self._value = value
        self._dtype = options.value_dtype(
            self.name, found, None if dtype is None else number_dtype(dtype), signed=encode == "hash"
        )
        self.dtype: np.dtype[Any] | None = self._dtype
        texts = [option for option, text in (("row", row_text), ("feature", feature_text)) if text]
        self._numbering = Numbering(
            self.name,
            row=self._row,
            feature=self._feature,
            texts=texts,
            values={kept.name: kept.field for kept in columns.kept},
            dtype="float64",
            n_rows=n_rows,
            n_features=n_features,
            encode=encode,
            unknown=unknown,
            noun="column",
        )
        self.columns = self._numbering.columns
        self.hold, self.beside = self._numbering.hold, self._numbering.beside
        if self._numbering.categories is not None and self._numbering.numbers_texts:
            self.adopt = self._numbering.categories.adopt
        self._said = list[str]()  # what the metadata tell the number of
        self._set_shape(row_text, feature_text)
        self._options = {
            "row": row,
            "feature": feature,
            "value": value,
            "label": label,
            "weight": weight,
            "zero_based": zero_based,
            "n_rows": n_rows,
            "n_features": n_features,
            "encode": encode if feature_text else None,
            "unknown": unknown if feature_text else None,
            "dtype": None if dtype is None else str(self._dtype),
        }

    def _id(self, given: str, option: str) -> tuple[str, bool]:
        """A column of numbers of rows or features, and whether they are texts."""
        name, dtype = self._columns.typed(given, option, _IDS)
        self._columns.expect(name, option, ("text", "integer"), "whole numbers or texts")
        text = self._columns.kinds[name] == "text"
        if text and dtype == "int64":
            raise ValueError(f"{self.name}: {option}={given!r}: the column has texts, expected whole numbers")
        return name, text or dtype == "string"

    def _set_shape(self, row_text: bool, feature_text: bool) -> None:
        """What is known of the shape before anything was read: what is said, or what the table knows."""
        self.n_rows, self.n_features = self._numbering.n_rows, self._numbering.n_features
        rows = self.n_rows is None and not row_text
        features = self.n_features is None and not feature_text
        said = None
        if (rows or features) and (self._row, self._feature, self._base) == ("row", "feature", 0):
            said = said_shape(self._table, "triples")
        if rows:
            self.n_rows = self._length("row", self._row, None if said is None else said[0])
            if self.n_rows is not None:
                options.check_rows(self.name, self.n_rows, self._table.n_rows or 0)
        if features:
            found = self._length("feature", self._feature, None if said is None else said[1])
            self.n_features = None if found is None else options.width(self.name, found, None)
        elif not feature_text and (highest := self._table.highest(self._feature)) is not None:
            self.n_features = options.width(self.name, max(0, highest + 1 - self._base), self.n_features)

    def _length(self, option: str, name: str, said: int | None) -> int | None:
        """Rows or features that there are, as the table knows or its metadata say, which must not be fewer."""
        highest = self._table.highest(name)
        if said is None:
            return None if highest is None else max(0, highest + 1 - self._base)
        self._said.append(option)
        if highest is not None and highest >= said:
            raise SourceError(f"{self.name}: has {option} {highest}, expected one below {said}{self._hint(option)}")
        return said

    def _hint(self, option: str) -> str:
        return f", as its metadata say: pass n_{option}s=" if option in self._said else ""

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the features that were read, where they are texts and not hashed."""
        return self._numbering.feature_names

    @property
    def width(self) -> int:
        """Features that there are so far, those that were adopted included."""
        return self._numbering.width or self.n_features or 0

    def provenance(self) -> dict[str, Any]:
        """What the table says of itself, and the options."""
        facts = {**self._table.provenance(), "options": {k: v for k, v in self._options.items() if v is not None}}
        categories = self._numbering.categories
        return facts if categories is None else {**facts, **categories.facts()}

    def blocks(self, max_bytes: int) -> Iterator[Triples]:
        """Yield the entries in order of the table."""
        self._numbering.start()
        used = [name for name in self._columns.names if name in self._columns.taken]
        n_entries = highest = 0
        for batch, position in batches(self._table, used, max_bytes // 2):
            step = max(1, max_bytes // _TRIPLE_BYTES)
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                triples = self._triples(part, n_entries, position)
                n_entries += part.num_rows
                highest = max(highest, triples.n_rows)
                yield triples
        options.check_rows(self.name, max(highest, self.n_rows or 0), n_entries)

    def _triples(self, batch: Any, first: int, position: int) -> Triples:
        columns = self._columns
        for name in batch.schema.names:
            none = arrow.nulls(batch.column(name))
            if none is not None:
                raise SourceError(
                    f"{columns.where(first + int(np.argmax(none)), name)}: has no value, expected one in each triple"
                )
        signs = None
        if self._numbering.rows is None:
            rows = self._numbers(batch, "row", self._row, self.n_rows, first)
        else:
            rows, _ = self._coded(batch, "row", self._row, first)
        if self._numbering.categories is None:
            features = self._numbers(batch, "feature", self._feature, self.n_features, first)
        else:
            features, signs = self._coded(batch, "feature", self._feature, first)
        values: Array = np.ones(batch.num_rows, self._dtype)
        if self._value is not None:
            where = f"{self.name}: rows from {first} on, column {self._value!r}"
            numbers = arrow.numbers(batch.column(self._value))
            values = converted(where, numbers, self._dtype)
            if self._options["dtype"] is None and self._dtype.kind == "f" and numbers.dtype.kind in "iu":
                _, lost, _ = options.rounded_labels(numbers, np.dtype(np.float64))  # the signs of a hash ask for floats
                if lost is not None:
                    raise SourceError(
                        f"{columns.where(first + lost, self._value)}: {numbers[lost]} is a whole number that "
                        f"{self._dtype}, with room for the signs of a hash, lacks: give dtype='float64' if it may be "
                        "rounded"
                    )
        if signs is not None:
            values = self._signed(values, signs, first)
        for kept in columns.kept:
            exact = arrow.numbers(batch.column(kept.field))
            numbers, at, wrong = options.rounded_labels(exact, np.dtype(np.float64))
            if at is not None:
                raise SourceError(
                    f"{columns.where(first + at, kept.field)}: {exact[at]} {wrong}: give the values of the rows by "
                    "themselves (columns=, --column)"
                )
            if not np.isfinite(numbers).all():
                row = int(np.argmin(np.isfinite(numbers)))
                raise SourceError(f"{columns.where(first + row, kept.field)}: {numbers[row]}, expected a finite number")
            if (at := self._numbering.put(kept.name, rows, numbers)) is not None:
                raise SourceError(
                    f"{columns.where(first + at, kept.field)}: {numbers[at]:g} is another than in a triple before, of "
                    "the same row"
                )
        n_rows = int(rows.max(initial=-1)) + 1
        if features.min(initial=0) < 0:  # what is to be ignored; its rows are not
            there = features >= 0
            rows, features, values = rows[there], features[there], values[there]
        return Triples(rows, features, values, position, n_rows)

    def _signed(self, values: Array, signs: Array, first: int) -> Array:
        """Values with the signs of their features."""
        if values.dtype.kind == "i":
            lost = (values == np.iinfo(values.dtype).min) & (signs < 0)
            if lost.any():
                at = int(np.argmax(lost))
                where = self._columns.where(first + at, self._value or "")
                raise SourceError(
                    f"{where}: {values[at]} gets the sign - with its feature, which does not fit {values.dtype}: give "
                    "a wider dtype="
                )
        return np.multiply(values, signs, dtype=values.dtype)

    def _coded(self, batch: Any, option: str, name: str, first: int) -> tuple[Ints, Array | None]:
        """Numbers of texts."""
        spans = arrow.texts(batch.column(name))
        try:
            return self._numbering.codes(option, *spans)
        except BadNameError as error:
            where = self._columns.where(first + error.at, name)
            raise SourceError(f"{where}: {error.reason}, found {shown(spans.at(error.at))}") from None

    def _numbers(self, batch: Any, option: str, name: str, limit: int | None, first: int) -> Ints:
        """Numbers of rows or features, from 0."""
        numbers = arrow.numbers(batch.column(name))
        most = 2**62 if limit is None else limit + self._base
        if not len(numbers):
            return np.empty(0, np.int64)
        if int(numbers.min()) < self._base or int(numbers.max()) >= most:
            row = int(np.argmax((numbers < self._base) | (numbers >= most)))
            expected = f"{self._base} or more" if limit is None else f"{self._base} to {most - 1}"
            raise SourceError(
                f"{self._columns.where(first + row, name)}: {int(numbers[row])} is no number of a {option}, expected "
                f"{expected}{self._hint(option)}"
            )
        found = numbers.astype(np.int64, copy=False)
        return found - self._base if self._base else found
