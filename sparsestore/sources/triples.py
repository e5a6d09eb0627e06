"""Tables of triples: CSV or TSV with an entry a line, its row, its feature and its value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.errors import SourceError
from sparsestore.parallel import mapped, n_cores
from sparsestore.sources import options
from sparsestore.sources.base import Triples
from sparsestore.sources.dictionary import BadNameError
from sparsestore.sources.fields import Fields, unquoted
from sparsestore.sources.file import shown
from sparsestore.sources.numbering import Numbering
from sparsestore.sources.text import Piece

if TYPE_CHECKING:
    from sparsestore.kernels.table import Table

__all__ = ["CsvTriplesSource"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

_IDS = ("int64", "string")
_HIGHEST = 2**53
"""Numbers of rows and features are read as float64: below this each is exact."""


class CsvTriplesSource:
    """Entries of a table, compressed or not, in any order.

    The file is read once, in pieces; all that `blocks` holds at a time takes at most `max_bytes` + 16 MiB (and a
    decompressor's window: `text.TextFile`). Beside it are held, until all rows were given, and limited by `hold`:
    dictionaries of texts (about 40 bytes a text and the text itself), and labels and weights (8 bytes a row each).

    Parameters
    ----------
    path : Path
    row, feature : str or int
        Fields with the numbers of row and feature, or, as ``"user:string"``, with texts. These get their numbers in the
        order in which they come first: those of rows become a column called like the field, those of features the
        names of the features.
    value : str or int, optional
        Field with the value; without one each entry is 1.
    label, weight : str or int, optional
        Fields that become the columns "y" and "sample_weight" of the row. All lines of a row must have the same; rows
        without a line have nan.
    header, delimiter, dtype
        As for `csv.CsvSource`.
    zero_based : bool
        Whether numbers of rows and features count from 0, or from 1.
    n_rows, n_features : int, optional
        More rows or features than there are numbers; with `encode` "hash" how many features to hash to.
    encode, unknown
        Of features that are texts: see `categories.Categories`.
    """

    unit = "bytes"
    sorted_rows = False

    def __init__(
        self,
        path: Path,
        *,
        row: str | int,
        feature: str | int,
        value: str | int | None = None,
        label: str | int | None = None,
        weight: str | int | None = None,
        header: bool = True,
        delimiter: str | None = None,
        zero_based: bool = True,
        n_rows: int | None = None,
        n_features: int | None = None,
        encode: str = "dictionary",
        unknown: str = "add",
        dtype: DTypeLike = "float32",
    ) -> None:
        from sparsestore.kernels import table

        self.name = str(path)
        self._fields = fields = Fields(path, header, delimiter)
        self.size: int | None = fields.file.size
        self._dtype = options.text_dtype(dtype)
        self.dtype: np.dtype[Any] | None = self._dtype
        self._base = 0 if zero_based else 1
        kinds = np.full(len(fields.names), table.LEFT_OUT, np.uint8)
        self._places = np.zeros(len(kinds), np.int64)
        self._of: dict[str, tuple[int, int]] = {}  # field, and its place among those of its kind
        texts = set()
        for option, given in {"row": row, "feature": feature, "value": value, "label": label, "weight": weight}.items():
            if given is None:
                continue
            kind, field = table.NUMBER, -1
            if option in ("row", "feature"):
                field, id_dtype = fields.typed(given, option, "int64", _IDS)
                if id_dtype == "string":
                    kind = table.TEXT
                    texts.add(option)
            else:
                field = fields.number(given, option)
            if kinds[field] != table.LEFT_OUT:
                raise ValueError(f"{self.name}: {option}={given!r}: the field {fields.names[field]!r} is taken already")
            self._places[field] = np.count_nonzero(kinds == kind)
            self._of[option] = field, int(self._places[field])
            kinds[field] = kind
        self._kinds = kinds
        columns = {"label": "y", "weight": "sample_weight"}
        self._numbering = Numbering(
            self.name,
            row=self._name_of("row"),
            feature=self._name_of("feature"),
            texts=sorted(texts),
            values={column: self._name_of(option) for option, column in columns.items() if option in self._of},
            dtype=self._dtype,
            n_rows=n_rows,
            n_features=n_features,
            encode=encode,
            unknown=unknown,
            noun="field",
        )
        self.columns = self._numbering.columns
        self.n_rows, self.n_features = self._numbering.n_rows, self._numbering.n_features
        self.hold, self.beside = self._numbering.hold, self._numbering.beside
        if self._numbering.categories is not None and self._numbering.numbers_texts:
            self.adopt = self._numbering.categories.adopt
        self._options = {
            "row": row,
            "feature": feature,
            "value": value,
            "label": label,
            "weight": weight,
            "header": header,
            "delimiter": delimiter,
            "zero_based": zero_based,
            "n_rows": n_rows,
            "n_features": n_features,
            "encode": encode if "feature" in texts else None,
            "unknown": unknown if "feature" in texts else None,
            "dtype": str(self._dtype),
        }

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the features that were read, where they are texts and not hashed."""
        return self._numbering.feature_names

    @property
    def width(self) -> int:
        """Features that there are so far, those that were adopted included."""
        return self._numbering.width

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, and the options that say how the file was read."""
        facts = options.provenance(self._fields.file.path, "csv", self._options)
        categories = self._numbering.categories
        return facts if categories is None else {**facts, **categories.facts()}

    def blocks(self, max_bytes: int) -> Iterator[Triples]:
        """Yield the entries in the order of the file."""
        from sparsestore.kernels import table

        self._numbering.start()
        n_threads = n_cores()
        n_entries = highest = 0

        def parsed(piece: Piece) -> tuple[Piece, Table]:
            return piece, table.table(
                piece.text,
                self._kinds,
                self._places,
                delimiter=ord(self._fields.delimiter),
                n_lines=piece.n_lines,
            )

        with closing(mapped(parsed, self._fields.pieces(max_bytes // 2, n_threads), n_threads)) as tables:
            for piece, found in tables:
                if found.status != table.OK:
                    raise self._fields.error(piece, found.status, found.offset, found.field)
                if not len(found.starts):
                    continue
                triples = self._triples(piece, found)
                n_entries += len(found.starts)
                highest = max(highest, triples.n_rows)
                yield triples
        options.check_rows(self.name, max(highest, self.n_rows or 0), n_entries)

    def _triples(self, piece: Piece, found: Table) -> Triples:
        signs = None
        if self._numbering.rows is None:
            rows = self._ids(piece, found, "row", self.n_rows)
        else:
            rows, _ = self._coded(piece, found, "row")
        if self._numbering.categories is None:
            features = self._ids(piece, found, "feature", self.n_features)
        else:
            features, signs = self._coded(piece, found, "feature")
        values: Array = np.ones(len(rows), self._dtype)
        if "value" in self._of:
            exact = self._numbers(piece, found, "value")
            values, at = options.rounded(exact, self._dtype)
            if at is not None:
                raise self._error(piece, found, at, "value", f"is beyond {self._dtype}: give dtype='float64'")
        if signs is not None:
            values = values * signs.astype(values.dtype)
        for option, column in (("label", "y"), ("weight", "sample_weight")):
            if option not in self._of:
                continue
            numbers = self._numbers(piece, found, option)
            bad = ~np.isfinite(numbers)
            if bad.any():
                raise self._error(piece, found, int(np.argmax(bad)), option, "is no finite number")
            _, at, wrong = options.rounded_labels(numbers, self._dtype)
            if at is not None:
                raise self._error(piece, found, at, option, f"{wrong}: give dtype='float64'")
            if (at := self._numbering.put(column, rows, numbers)) is not None:
                raise self._error(piece, found, at, option, "is another than in a line before, of the same row")
        n_rows = int(rows.max(initial=-1)) + 1
        if features.min(initial=0) < 0:  # what is to be ignored; its rows are not
            kept = features >= 0
            rows, features, values = rows[kept], features[kept], values[kept]
        return Triples(rows, features, values, piece.position, n_rows)

    def _numbers(self, piece: Piece, found: Table, option: str) -> NDArray[np.float64]:
        """Numbers of a field, none of which is empty."""
        field, place = self._of[option]
        numbers = np.ascontiguousarray(found.numbers[:, place])
        for at in np.flatnonzero(np.isnan(numbers)).tolist():
            if not self._token(piece, found, at, field).strip():
                raise self._error(piece, found, at, option, "is empty")
        return numbers

    def _ids(self, piece: Piece, found: Table, option: str, limit: int | None) -> Ints:
        """Numbers of rows or features."""
        numbers = self._numbers(piece, found, option)
        most = _HIGHEST if limit is None else limit + self._base
        wrong = ~((numbers >= self._base) & (numbers < most) & (np.rint(numbers) == numbers))
        if wrong.any():
            at = int(np.argmax(wrong))
            if limit is not None and np.rint(numbers[at]) == numbers[at]:
                expected = f"expected {self._base} to {most - 1}"
            else:
                name = self._name_of(option)
                expected = f"expected a whole number from {self._base}: texts are {option}='{name}:string'"
            raise self._error(piece, found, at, option, f"is no number of a {option}, {expected}")
        return numbers.astype(np.int64) - self._base

    def _coded(self, piece: Piece, found: Table, option: str) -> tuple[Ints, Array | None]:
        """Numbers of texts."""
        text, starts, stops = unquoted(piece.text, found.spans[:, self._of[option][1]])
        try:
            return self._numbering.codes(option, text, starts, stops)
        except BadNameError as error:
            raise self._error(piece, found, error.at, option, error.reason) from None

    def _error(self, piece: Piece, found: Table, at: int, option: str, reason: str) -> SourceError:
        line = piece.line_at(int(found.starts[at]))
        field = self._of[option][0]
        token = shown(self._token(piece, found, at, field))
        return SourceError(f"{self.name}:{line}: field {shown(self._name_of(option))} {reason}, found {token}")

    def _token(self, piece: Piece, found: Table, at: int, field: int) -> str:
        """The text of a field, for messages."""
        stop = int(found.starts[at + 1]) if at + 1 < len(found.starts) else len(piece.text)
        line = piece.text[int(found.starts[at]) : stop].tobytes().split(b"\n")[0].removesuffix(b"\r")
        return self._fields.split(line)[field]

    def _name_of(self, option: str) -> str:
        return self._fields.names[self._of[option][0]]
