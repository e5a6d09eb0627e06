"""Typed tables with lists: the features of a row and their values, or vectors of Spark ML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import Rows, index_dtype, number_dtype, summed
from sparsestore.errors import SourceError
from sparsestore.sources import arrow, options
from sparsestore.sources.arrow import Lists
from sparsestore.sources.base import Block
from sparsestore.sources.layouts import converted
from sparsestore.sources.table import Columns, Table, batches, said_shape
from sparsestore.values import overflow

__all__ = ["ListTableSource"]

Array = NDArray[Any]
Ints = NDArray[np.int64]


class ListTableSource:
    """Rows of a typed table in which a column of lists, or of vectors, has the entries of each row.

    `blocks` holds at most `max_bytes` and a batch of the table.

    Parameters
    ----------
    table : Table
    indices, values : str, optional
        Columns of lists: the features of a row, in any order, and their values; without `values` each is 1. Several at
        one feature add up. No list is an empty one.
    vector : str, optional
        A column of vectors of Spark ML (``VectorUDT``), all of one size, or of lists of which element i is feature i.
    label, weight, keep, drop
        As for `wide_table.WideTableSource`; other columns are left out.
    zero_based : bool
        Whether features of `indices` count from 0, or from 1.
    n_features : int, optional
        More features than there are, or than the first vector has. By default as many as an export of a store put into
        the metadata, for its column indices.
    dtype : optional
        Of the values; by default that of the column, without one float32.
    """

    sorted_rows = True

    def __init__(
        self,
        table: Table,
        *,
        indices: str | None = None,
        values: str | None = None,
        vector: str | None = None,
        label: str | None = None,
        weight: str | None = None,
        keep: Sequence[str] | str | None = None,
        drop: Sequence[str] | str | None = None,
        zero_based: bool = True,
        n_features: int | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        self._table = table
        self.name, self.size, self.unit = table.name, table.size, table.unit
        self.n_rows: int | None = table.n_rows
        self._columns = columns = Columns(table, label=label, weight=weight, keep=keep, drop=drop)
        self.columns = columns.schema()
        if (indices is None) == (vector is None) or (values is not None and indices is None):
            raise ValueError(f"{self.name}: a table of lists needs indices=, and values= with it, or vector=")
        found: np.dtype[Any] = np.dtype(np.float32)
        if indices is not None:
            columns.expect(columns.take(indices, "indices"), "indices", ("list",), "lists")
            if columns.dtype(indices).kind not in "iu":
                raise ValueError(
                    f"{self.name}: indices={indices!r} is of type {columns.type(indices)}, expected whole numbers"
                )
        if values is not None:
            columns.expect(columns.take(values, "values"), "values", ("list",), "lists")
            found = columns.dtype(values)
        if vector is not None:
            columns.expect(columns.take(vector, "vector"), "vector", ("list", "vector"), "vectors or lists")
            found = np.dtype(np.float64) if columns.kinds[vector] == "vector" else columns.dtype(vector)
        self._indices, self._values, self._vector = indices, values, vector
        self._base = 0 if zero_based else 1
        self.n_features: int | None = None if n_features is None else options.width(self.name, 0, n_features)
        self._hint = ""
        if n_features is None and (indices, self._base) == ("indices", 0) and (said := said_shape(table, "lists")):
            self.n_features = options.width(self.name, said[1], None)
            self._hint = ", as its metadata say: pass n_features="
        self._size: int | None = None  # of vectors
        self._dtype = options.value_dtype(self.name, found, None if dtype is None else number_dtype(dtype))
        self.dtype: np.dtype[Any] | None = self._dtype
        self._options = {
            "indices": indices,
            "values": values,
            "vector": vector,
            "label": label,
            "weight": weight,
            "keep": options.parts(keep) or None,
            "drop": options.parts(drop) or None,
            "zero_based": zero_based if indices is not None else None,
            "n_features": n_features,
            "dtype": None if dtype is None else str(self._dtype),
        }

    def provenance(self) -> dict[str, Any]:
        """What the table says of itself, and the options."""
        return {**self._table.provenance(), "options": {k: v for k, v in self._options.items() if v is not None}}

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        columns = self._columns
        used = [name for name in columns.names if columns.taken.get(name, "drop") != "drop"]
        self._size = None
        first = 0
        for batch, position in batches(self._table, used, max_bytes // 2):
            if self._indices is not None:
                name, features, values = self._indices, *self._pairs(batch, first)
            else:
                name, features, values = self._vector or "", *self._vectors(batch, first)
            yield Block(self._rows(name, features, values, first), columns.beside(batch, first), position)
            first += batch.num_rows

    def _lists(self, batch: Any, name: str, first: int) -> Lists:
        return arrow.lists(batch.column(name), f"{self.name}: rows from {first} on, column {name!r}")

    def _pairs(self, batch: Any, first: int) -> tuple[Ints, Lists]:
        """Features and values of lists of both."""
        name = self._indices or ""
        features = self._lists(batch, name, first)
        if self._values is None:
            values = Lists(features.indptr, np.ones(len(features.values), self._dtype))
        else:
            values = self._lists(batch, self._values, first)
        wrong = features.indptr != values.indptr
        if wrong.any():
            row = int(np.argmax(wrong)) - 1
            raise SourceError(
                f"{self._columns.where(first + row, name)}: has {np.diff(features.indptr)[row]} features, and "
                f"{np.diff(values.indptr)[row]} values"
            )
        return features.values.astype(np.int64) - self._base, values

    def _vectors(self, batch: Any, first: int) -> tuple[Ints, Lists]:
        """Features and values of vectors."""
        name = self._vector or ""
        if self._columns.kinds[name] == "list":
            values = self._lists(batch, name, first)
            numbers = np.arange(len(values.values)) - np.repeat(values.indptr[:-1], np.diff(values.indptr))
        else:
            where = f"{self.name}: rows from {first} on, column {name!r}"
            features, values, sizes = arrow.vectors(batch.column(name), where)
            if self._size is None and len(sizes):
                self._size = int(sizes[0])
            if (sizes != self._size).any():
                row = int(np.argmax(sizes != self._size))
                raise SourceError(
                    f"{self._columns.where(first + row, name)}: a vector of {sizes[row]}, expected {self._size} as in "
                    "the first row"
                )
            numbers = features.values.astype(np.int64)
        kept = values.values != 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[values.indptr]
        return numbers[kept], Lists(indptr, values.values[kept])

    def _rows(self, name: str, numbers: Ints, values: Lists, first: int) -> Rows:
        from sparsestore.kernels import bucket

        least = self._size or 0
        limit = self.n_features
        if limit is not None and least > limit:
            raise SourceError(
                f"{self.name}: column {name!r} has vectors of {least}, expected at most n_features={limit}"
            )
        if self._size is not None:  # whatever the width: a vector has no element beyond its own size
            limit = self._size
        low, high = int(numbers.min(initial=0)), int(numbers.max(initial=-1))
        if low < 0 or (limit is not None and high >= limit):
            bad = (numbers < 0) | (numbers >= (high + 1 if limit is None else limit))
            row = int(np.searchsorted(values.indptr, int(np.argmax(bad)), side="right")) - 1
            expected = f"{self._base} or more" if limit is None else f"{self._base} to {limit - 1 + self._base}"
            raise SourceError(
                f"{self._columns.where(first + row, name)}: feature {int(numbers[bad][0]) + self._base}, expected "
                f"{expected}{self._hint}"
            )
        width = self.n_features
        if width is None:
            width = options.width(self.name, max(high + 1, least), None)
        indices = numbers.astype(index_dtype(width))
        data = np.array(converted(f"{self.name}: rows from {first} on", values.values, self._dtype))
        bucket.sort_in_rows(values.indptr, indices, bucket.as_bits(data))
        rows, lost = summed(Rows(values.indptr, indices, data, width))
        if lost is not None:
            row, feature = rows.place(lost)
            where = self._columns.where(first + row, name)
            raise SourceError(f"{where}: feature {feature + self._base}: {overflow(self._dtype)}")
        return rows
