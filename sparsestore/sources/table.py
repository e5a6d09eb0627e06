"""Typed tables: batches of columns from a file, a query or a frame, and what each column is taken for."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import SourceError
from sparsestore.sources import arrow, options
from sparsestore.sources.fields import DTYPES
from sparsestore.sources.file import printable, shown
from sparsestore.sources.layouts import converted

__all__ = ["NUMBERS", "Columns", "Kept", "Table", "batches", "rows_within", "said_shape"]

Array = NDArray[Any]

NUMBERS = ("bool", "integer", "float")
"""Kinds of columns that have numbers: see `arrow.kind_of`."""

_BATCH_ROWS = 1 << 16
_LONGEST_FACTS = 1 << 10


class Table(Protocol):
    """What gives batches.

    Attributes
    ----------
    name : str
        The path, or what messages call it.
    schema : pyarrow.Schema
    n_rows : int or None
    size : int or None
        Total of the position, in `unit`.
    """

    name: str
    schema: Any
    n_rows: int | None
    size: int | None
    unit: str

    def batches(self, columns: Sequence[str], max_bytes: int) -> Iterator[tuple[Any, int]]:
        """Yield batches of these columns, in order, of about so many bytes, and how far the table was read."""
        ...

    def highest(self, column: str) -> int | None:
        """The highest number of a column of whole numbers, where that is known without reading it."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Where the data come from: "source", "format" and what else is known; no password."""
        ...


class Kept(NamedTuple):
    """A column of the table that becomes one of the store."""

    field: str
    name: str
    dtype: str


class Columns:
    """The columns of a table, each taken for one thing at most.

    Attributes
    ----------
    names : list of str
    kinds : dict of str to str
        What `arrow.kind_of` says of each.
    taken : dict of str to str
        The option that each of those taken serves.
    kept : list of Kept
        Those that become columns of the store.
    """

    def __init__(
        self,
        table: Table,
        *,
        label: str | None,
        weight: str | None,
        keep: Sequence[str] | str | None = None,
        drop: Sequence[str] | str | None = None,
    ) -> None:
        self.name = table.name
        self._schema = table.schema
        self.names: list[str] = list(table.schema.names)
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise SourceError(f"{self.name}: two columns are called {twice!r}: rename one")
        self.kinds = {name: arrow.kind_of(self.type(name)) for name in self.names}
        self.taken: dict[str, str] = {}
        self.kept: list[Kept] = []
        for name, option, column in ((label, "label", "y"), (weight, "weight", "sample_weight")):
            if name is not None:
                self.numbers(self.take(name, option), option)
                self.kept.append(Kept(name, column, self.dtype(name).name))
        for each in options.parts(keep):
            self.kept.append(self._kept_as(each))
        for each in options.parts(drop):
            self.take(each, "drop")

    def schema(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Columns of the store, as `Source.columns` has them."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for kept in self.kept:
            if kept.name in found:
                raise ValueError(f"{self.name}: two columns become the column {kept.name!r}: keep one of them")
            found[kept.name] = kept.dtype, ()
        return found

    def type(self, name: str) -> Any:
        """Arrow's type of a column."""
        return self._schema.field(name).type

    def dtype(self, name: str) -> np.dtype[Any]:
        """Numpy's dtype of a column of numbers, or of lists of them."""
        found = self.type(name)
        while hasattr(found, "value_type"):
            found = found.value_type
        dtype: np.dtype[Any] = np.dtype(found.to_pandas_dtype())
        return dtype

    def take(self, name: str, option: str) -> str:
        """Note what a column is used for."""
        if name not in self.kinds:
            known = ", ".join(shown(each) for each in self.names[:8]) + (", ..." if len(self.names) > 8 else "")
            raise ValueError(f"{self.name}: {option}={name!r}: there is no such column, expected one of {known}")
        if name in self.taken:
            raise ValueError(f"{self.name}: {option}={name!r}: the column is taken already, by {self.taken[name]}")
        self.taken[name] = option
        return name

    def matching(self, pattern: str, option: str) -> list[str]:
        """Take the columns that a name or a pattern such as ``C*`` calls."""
        if pattern in self.kinds or not set(pattern) & set("*?["):
            return [self.take(pattern, option)]
        found = [name for name in self.names if name not in self.taken and fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(f"{self.name}: {option}={pattern!r}: no column that is left is called so")
        return [self.take(name, option) for name in found]

    def typed(self, given: str, option: str, dtypes: Sequence[str]) -> tuple[str, str]:
        """Take a column that is called by its name, or by its name, a colon and a dtype; "" where none is said."""
        name, colon, dtype = given.rpartition(":")
        if not colon or given in self.kinds:
            name, dtype = given, ""
        if dtype and dtype not in dtypes:
            raise ValueError(f"{self.name}: {option}={given!r}: expected name:dtype with one of {', '.join(dtypes)}")
        return self.take(name, option), dtype

    def numbers(self, name: str, option: str) -> None:
        """Raise unless a column has numbers."""
        self.expect(name, option, NUMBERS, "numbers")

    def expect(self, name: str, option: str, kinds: Sequence[str], noun: str) -> None:
        """Raise unless a column is of one of some kinds."""
        if self.kinds[name] not in kinds:
            raise ValueError(f"{self.name}: {option}={name!r} is of type {printable(self.type(name))}, expected {noun}")

    def _kept_as(self, given: str) -> Kept:
        name, dtype = self.typed(given, "keep", DTYPES)
        if not dtype:
            if self.kinds[name] not in (*NUMBERS, "text"):
                raise ValueError(
                    f"{self.name}: keep={given!r} is of type {printable(self.type(name))}: say what it is to become, "
                    f"as '{name}:int64'"
                )
            dtype = "string" if self.kinds[name] == "text" else self.dtype(name).name
        return Kept(name, name, dtype)

    def where(self, row: int, name: str) -> str:
        """A value's place, for messages."""
        return f"{self.name}: row {row}, column {name!r}"

    def beside(self, batch: Any, first: int) -> dict[str, Array]:
        """Columns of the store of a batch that starts at row `first`."""
        return {kept.name: self._values(batch.column(kept.field), kept, first) for kept in self.kept}

    def _values(self, column: Any, kept: Kept, first: int) -> Array:
        """A column of the store, masked where there is no value."""
        pa = arrow.required()
        none = arrow.nulls(column)
        if none is not None and kept.name in ("y", "sample_weight"):
            where = self.where(first + int(np.argmax(none)), kept.field)
            raise SourceError(f"{where}: has no value, expected one in each row")
        if kept.dtype == "string":
            spans = arrow.texts(column)
            values: Array = np.empty(len(column), object)
            values[:] = [spans.at(row).decode() for row in range(len(column))]
            return values if none is None else np.ma.array(values, mask=none)
        dtype = np.dtype(kept.dtype)
        where = f"{self.name}: rows from {first} on, column {kept.field!r}"
        if self.kinds[kept.field] not in NUMBERS:
            try:
                column = column.cast(pa.from_numpy_dtype(dtype))
            except pa.ArrowException as error:
                raise SourceError(f"{where}: {printable(error)}: keep it as another dtype") from error
        values = converted(where, arrow.numbers(column), dtype)
        if kept.name in ("y", "sample_weight") and not (finite := np.isfinite(values)).all():
            row = int(np.argmin(finite))
            raise SourceError(f"{self.where(first + row, kept.field)}: {values[row]}, expected a finite number")
        if none is None:
            return values
        return np.where(none, np.array(np.nan, dtype), values) if dtype.kind == "f" else np.ma.array(values, mask=none)


def rows_within(schema: Any, columns: Sequence[str], max_bytes: int) -> int:
    """Rows of some columns that take about so many bytes: 64 for a text, 256 for a list; at most 65,536."""
    sizes = {"text": 64, "list": 256, "vector": 512, "other": 64}
    kinds = (arrow.kind_of(schema.field(name).type) for name in columns)
    return max(1, min(_BATCH_ROWS, max_bytes // max(1, sum(sizes.get(kind, 8) for kind in kinds))))


def batches(table: Table, columns: Sequence[str], max_bytes: int) -> Iterator[tuple[Any, int]]:
    """Batches of a table of which none takes much more than a quarter of `max_bytes`, however long their rows are."""
    share = max(max_bytes // 4, 1)  # Arrow takes two to three times that while it makes one
    for batch, position in table.batches(columns, share):
        n = batch.num_rows
        step = max(1, n // -(-batch.nbytes // share)) if batch.nbytes else n
        for start in range(0, n, max(step, 1)):
            piece = batch.slice(start, step)
            yield piece, position - (n - start - piece.num_rows if table.unit == "rows" else 0)


def said_shape(table: Table, layout: str) -> tuple[int, int] | None:
    """Rows and features that an export of a store put into the metadata of its "triples" or "lists".

    None where a table has none, or does not know how many rows it has itself: there is nothing to compare them with.

    Raises
    ------
    SourceError
        Where they are no shape.
    """
    text = (table.schema.metadata or {}).get(b"sparsestore")
    if text is None or table.n_rows is None:
        return None
    try:
        facts: Any = json.loads(text) if len(text) <= _LONGEST_FACTS else None
        if facts["layout"] != layout:
            return None
        n_rows, n_features = facts["shape"]
    except (ValueError, TypeError, LookupError, RecursionError):
        n_rows = n_features = None
    if type(n_rows) is int and type(n_features) is int and min(n_rows, n_features) >= 0:
        return n_rows, n_features
    wanted = "n_features=" if layout == "lists" else "n_rows= and n_features="
    raise SourceError(
        f"{table.name}: the metadata under 'sparsestore' are {shown(text)}, expected a shape of two whole numbers of "
        f"at least 0: pass {wanted}"
    )
