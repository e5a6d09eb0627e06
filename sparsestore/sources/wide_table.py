"""Typed tables with a column a feature: numbers, ranges of numbers, and texts that become features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import Rows, index_dtype, number_dtype
from sparsestore.errors import SourceError
from sparsestore.sources import arrow, options
from sparsestore.sources.base import Block
from sparsestore.sources.categories import Categories, with_codes
from sparsestore.sources.dictionary import BadNameError
from sparsestore.sources.file import shown
from sparsestore.sources.layouts import converted
from sparsestore.sources.ranges import Ranges
from sparsestore.sources.table import NUMBERS, Columns, Table, batches
from sparsestore.values import overflow

__all__ = ["WideTableSource"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

_MISSING = ("error", "zero", "nan")


class WideTableSource:
    """Rows of a typed table in which each column is a feature; 0 is no entry.

    `blocks` holds at most `max_bytes` and twice a batch of the table, beside a dictionary of categories.

    Parameters
    ----------
    table : Table
    label, weight : str, optional
        Columns that become "y" and "sample_weight", in their dtype. They must have a value in each row.
    keep : sequence of str, or str, optional
        Columns kept as columns: ``["user", "when:int64"]``, in their dtype or the one behind the colon. Where one has
        no value it is nan, or masked.
    drop : sequence of str, or str, optional
        Columns that are left out.
    missing : {"error", "zero", "nan"}
        What no value of a feature is: an error, no entry, or an entry that is nan; of a category the category "".
    categorical, encode, n_features, unknown, bucket
        As for `csv.CsvSource`; whole numbers may be categories too.
    dtype : optional
        Of the values; by default numpy's common dtype of the columns that are features, of categories alone float32.
        Hashed ones have signs, so that it is a signed one then.
    """

    sorted_rows = True

    def __init__(
        self,
        table: Table,
        *,
        label: str | None = None,
        weight: str | None = None,
        keep: Sequence[str] | str | None = None,
        drop: Sequence[str] | str | None = None,
        missing: str = "error",
        categorical: Sequence[str] | str | None = None,
        encode: str = "dictionary",
        n_features: int | None = None,
        unknown: str = "add",
        bucket: Mapping[str, Sequence[float]] | str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        if missing not in _MISSING:
            raise ValueError(f"missing={missing!r}, expected one of {', '.join(_MISSING)}")
        self._table = table
        self.name, self.size, self.unit = table.name, table.size, table.unit
        self.n_rows: int | None = table.n_rows
        self._missing = missing
        self._columns = Columns(table, label=label, weight=weight, keep=keep, drop=drop)
        self.columns = self._columns.schema()
        self._set_features(options.parts(categorical), Ranges.parsed(bucket))
        self._set_categories(encode, n_features, unknown)
        self._dtype = self._dtype_of(None if dtype is None else number_dtype(dtype))
        self.dtype: np.dtype[Any] | None = self._dtype
        self._options = {
            "label": label,
            "weight": weight,
            "keep": options.parts(keep) or None,
            "drop": options.parts(drop) or None,
            "missing": missing,
            "categorical": options.parts(categorical) or None,
            "encode": encode if categorical is not None else None,
            "n_features": n_features,
            "unknown": unknown if categorical is not None else None,
            "bucket": bucket if bucket is None or isinstance(bucket, str) else {k: list(v) for k, v in bucket.items()},
            "dtype": None if dtype is None else str(self._dtype),
        }

    def _set_features(self, categorical: list[str], bucket: Any) -> None:
        """Decide which columns are numbers, ranges and texts."""
        columns = self._columns
        ranged, self._categorical = list[tuple[str, Ranges]](), list[str]()
        for pattern, edges in bucket:
            for name in columns.matching(pattern, "bucket"):
                columns.numbers(name, "bucket")
                ranged.append((name, Ranges(name, edges)))
        for pattern in categorical:
            for name in columns.matching(pattern, "categorical"):
                columns.expect(name, "categorical", ("text", "integer", "bool"), "texts or whole numbers")
                self._categorical.append(name)
        self._numeric = [name for name in columns.names if name not in columns.taken]
        for name in self._numeric:
            kind = columns.kinds[name]
            if kind not in NUMBERS:
                ways = {"text": "categorical=, keep= or drop=", "list": "drop=, indices= or vector="}
                raise ValueError(
                    f"{self.name}: column {name!r} is of type {columns.type(name)}, which is no number: give it in "
                    f"{ways.get(kind, 'drop=, or vector=' if kind == 'vector' else 'keep= or drop=')}"
                )
        self._before = list(self._numeric)
        self._ranges = list[tuple[str, Ranges, int]]()
        for name, ranges in ranged:
            self._ranges.append((name, ranges, len(self._before)))
            self._before += ranges.names
        options.check_names(self.name, self._before)

    def _set_categories(self, encode: str, n_features: int | None, unknown: str) -> None:
        """How texts get the numbers behind those of the other features."""
        self._categories: Categories | None = None
        if not self._categorical:
            if n_features is not None or encode != "dictionary" or unknown != "add":
                raise ValueError(
                    f"{self.name}: encode, n_features and unknown are for categories: give categorical= too"
                )
            if not self._before:
                raise ValueError(f"{self.name}: no column is left for a feature")
            self.n_features: int | None = len(self._before)
            return
        prefixes = [f"{name}=" for name in self._categorical]
        self._categories = Categories(
            self.name, prefixes, encode=encode, n_features=n_features, first=self._before, unknown=unknown
        )
        self.hold = self._categories.hold
        self.n_features = n_features if encode == "hash" else None
        if encode != "hash":
            if n_features is not None:
                raise ValueError(f"{self.name}: n_features={n_features} is for encode='hash': a dictionary finds out")
            self.adopt = self._categories.adopt

    def _dtype_of(self, wanted: np.dtype[Any] | None) -> np.dtype[Any]:
        """Dtype of the values."""
        types = {self._columns.dtype(name) for name in self._numeric}
        found = np.result_type(*types) if types else np.dtype(np.float32)
        if found.kind == "b" and (self._ranges or self._categorical):
            found = np.dtype(np.float32)
        if self._missing == "nan" and wanted is None and found.kind != "f":
            found = np.result_type(found, np.float32)
        hashed = self._categories is not None and self._categories.encode == "hash"
        return options.value_dtype(self.name, found, wanted, signed=hashed)

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the features: of columns, of ranges, and of texts that were read."""
        if self._categories is None:
            return self._before
        more = self._categories.names()
        return None if more is None else [*self._before, *more]

    def provenance(self) -> dict[str, Any]:
        """What the table says of itself, and the options."""
        facts = {**self._table.provenance(), "options": {k: v for k, v in self._options.items() if v is not None}}
        return facts if self._categories is None else {**facts, **self._categories.facts()}

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        if self._categories is not None:
            self._categories.start()
        used = [name for name in self._columns.names if self._columns.taken.get(name) != "drop"]
        first = 0
        # a number becomes an entry with its row, twice
        share = max_bytes // (2 + 24 * len(self._numeric) // max(1, 8 * len(used)))
        for batch, position in batches(self._table, used, share):
            yield Block(self._rows(batch, first), self._columns.beside(batch, first), position)
            first += batch.num_rows

    def _rows(self, batch: Any, first: int) -> Rows:
        from sparsestore.kernels import bucket

        n = batch.num_rows
        at_rows, at_features, at_values = list[Array](), list[Array](), list[Array]()
        for number, name in enumerate(self._numeric):
            column = batch.column(name)
            none = self._none(column, name, first)
            where = f"{self.name}: rows from {first} on, column {name!r}"
            numbers = arrow.numbers(column)
            values = converted(where, numbers, self._dtype)
            if self._options["dtype"] is None and self._dtype.kind == "f" and numbers.dtype.kind in "iu":
                _, lost, _ = options.rounded_labels(numbers, np.dtype(np.float64))  # smaller dtypes have all they hold
                if lost is not None:
                    raise SourceError(
                        f"{self._columns.where(first + lost, name)}: {numbers[lost]} is a whole number that "
                        f"{self._dtype}, the common dtype of the features, lacks: give dtype='float64' if it may be "
                        "rounded, or keep= or drop= it"
                    )
            if none is not None and self._missing == "nan":
                if self._dtype.kind != "f":
                    raise SourceError(
                        f"{self._columns.where(first + int(np.argmax(none)), name)}: has no value, and "
                        f"dtype={self._dtype} no nan: give a dtype of floats, or missing='zero'"
                    )
                values = np.where(none, np.array(np.nan, self._dtype), values)
            at = np.flatnonzero(values)
            at_rows.append(at.astype(np.uint32))
            at_features.append(np.full(len(at), number, np.int32))
            at_values.append(values[at])
        rows = np.concatenate([*at_rows, np.empty(0, np.uint32)])
        features = np.concatenate([*at_features, np.empty(0, np.int32)])
        values = np.concatenate([*at_values, np.empty(0, self._dtype)])
        indptr = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=n), out=indptr[1:])
        indices, data = np.empty_like(features), np.empty_like(values)
        cursors = indptr[:-1].astype(np.uint64)
        # column after column, so that in each row the features ascend
        bucket.place(rows, features, bucket.as_bits(values), np.uint64(0), cursors, indices, bucket.as_bits(data))
        codes, signs = self._codes(batch, first)
        width = self.n_features if self.n_features is not None else self._width()
        found = Rows(indptr, indices.astype(index_dtype(width), copy=False), data, width)
        if codes is None:
            return found
        found, bad = with_codes(found, codes, signs, width)
        if bad is not None:
            row, feature = found.place(bad)
            raise SourceError(f"{self.name}: row {first + row}, feature {feature}: {overflow(self._dtype)}")
        return found

    def _width(self) -> int:
        return self._categories.width if self._categories is not None else len(self._before)

    def _none(self, column: Any, name: str, first: int) -> NDArray[np.bool_] | None:
        """Where a feature has no value; an error where that is one."""
        none = arrow.nulls(column)
        if none is not None and self._missing == "error":
            where = self._columns.where(first + int(np.argmax(none)), name)
            raise SourceError(f"{where}: has no value: give missing='zero' or missing='nan' if that is meant")
        return none

    def _codes(self, batch: Any, first: int) -> tuple[Ints | None, Array | None]:
        """Features of ranges and texts, (n, columns), and their signs."""
        n = batch.num_rows
        codes = list[Array]()
        for name, ranges, start in self._ranges:
            column = batch.column(name)
            none = self._none(column, name, first)
            found = ranges.codes(arrow.numbers(column).astype(np.float64), start)
            codes.append((found if none is None else np.where(none, -1, found))[:, np.newaxis])
        signs = None
        if self._categories is not None:
            there = np.ones((n, len(self._categorical)), bool)
            texts = []
            for place, name in enumerate(self._categorical):
                column = batch.column(name)
                none = self._none(column, name, first)
                if none is not None and self._missing == "zero":
                    there[:, place] = ~none
                texts.append(arrow.texts(column))
            try:
                found, signs = self._categories.of_rows(texts, there)
            except BadNameError as error:
                row, place = divmod(error.at, there.shape[1])
                where = self._columns.where(first + row, self._categorical[place])
                raise SourceError(f"{where}: {error.reason}, found {shown(texts[place].at(row))}") from None
            codes.append(found)
            if signs is not None:
                signs = np.concatenate([np.ones((n, len(self._ranges)), np.int8), signs], axis=1)
        return (np.concatenate(codes, axis=1) if codes else None), signs
