"""Wide tables of text: CSV or TSV with a field a feature, most of them 0, or texts that become features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import Rows, index_dtype
from sparsestore.errors import SourceError
from sparsestore.parallel import mapped, n_cores
from sparsestore.sources import options
from sparsestore.sources.base import Block
from sparsestore.sources.categories import Categories, with_codes
from sparsestore.sources.dictionary import BadNameError
from sparsestore.sources.fields import Fields, unquoted
from sparsestore.sources.file import shown
from sparsestore.sources.ranges import Ranges
from sparsestore.sources.text import Piece
from sparsestore.values import overflow

if TYPE_CHECKING:
    from sparsestore.kernels.table import Table

__all__ = ["CsvSource"]

Array = NDArray[Any]

_MISSING = ("error", "zero", "nan")


class _Kept(NamedTuple):
    """A field that becomes a column."""

    field: int
    name: str
    dtype: str


class CsvSource:
    """Rows of a table with a field a feature, compressed or not. Fields that are 0 are no entries.

    The file is read once, in pieces; all that `blocks` holds at a time takes at most `max_bytes` + 16 MiB (and a
    decompressor's window: `text.TextFile`), beside a dictionary of categories. A line may have 8 MiB, and 1,048,576
    fields.

    Fields are numbers as Python reads them; blanks and quotes around one, blank lines and CRLF are fine. Quoted fields
    end on their line. A number beyond the dtype is an error, never inf; a line with more or fewer fields than the first
    too.

    Parameters
    ----------
    path : Path
    header : bool
        Whether the first line has the names of the fields, which become the names of the features. Without one, fields
        are called by number, from 0, and features have no names.
    delimiter : str, optional
        One byte between fields, or "tab", "comma", "semicolon", "space", "pipe". By default "," and, in files called
        ``.tsv``, a tab.
    label, weight : str or int, optional
        Names or numbers of the fields that become the columns "y" and "sample_weight".
    keep : sequence of str, or str, optional
        Other fields that become columns, of their own names: text, or what is said behind a colon:
        ``["user", "age:int64", "price:float32"]`` or ``"user,age:int64"``. Without a header a number: ``"3:int64"``
        becomes the column "3".
    drop : sequence of str, or str, optional
        Fields that are left out.
    missing : {"error", "zero", "nan"}
        What an empty field of a feature is: an error, no entry, or an entry that is nan; of a category the category of
        those that are empty. An empty label or weight, or whole number, always is an error; an empty one of a column of
        floats is nan, of text "".
    categorical : sequence of str, or str, optional
        Fields of text, or patterns such as ``"C*"``: each text of a field is a feature of value 1, ``field=text``.
    encode : {"dictionary", "hash"}
        How categories get their numbers, behind those of the other features: in the order in which they come first, or
        by a signed hash, which needs `n_features`. See `categories.Categories`.
    n_features : int, optional
        All features, where categories are hashed.
    unknown : {"add", "ignore", "error"}
        What a category becomes that is none of the features given: those of the store that is appended to, or
        `feature_names` of `convert`.
    bucket : mapping or str, optional
        Fields of numbers, or patterns, of which not the value is kept but in which range it lies, as a feature of value
        1: ``{"age": [18, 30, 50]}`` or ``"age:18|30|50"`` has four, up to 18, from 18 to below 30, and so on;
        ``"I*:log2"`` has one up to 0, one below 1, and one from each power of two to the next. nan is in none.
    dtype : float32 or float64
        Of values, labels and weights, which are read in float64 and rounded once.
    """

    unit = "bytes"
    sorted_rows = True
    n_rows: int | None = None

    def __init__(
        self,
        path: Path,
        *,
        header: bool = True,
        delimiter: str | None = None,
        label: str | int | None = None,
        weight: str | int | None = None,
        keep: Sequence[str] | str | None = None,
        drop: Sequence[str | int] | str | None = None,
        missing: str = "error",
        categorical: Sequence[str] | str | None = None,
        encode: str = "dictionary",
        n_features: int | None = None,
        unknown: str = "add",
        bucket: Mapping[str, Sequence[float]] | str | None = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        if missing not in _MISSING:
            raise ValueError(f"missing={missing!r}, expected one of {', '.join(_MISSING)}")
        self.name = str(path)
        self._fields = Fields(path, header, delimiter)
        self.size: int | None = self._fields.file.size
        self._dtype = options.text_dtype(dtype)
        self.dtype: np.dtype[Any] | None = self._dtype
        self._missing = _MISSING.index(missing)
        self._options = {
            "header": header,
            "delimiter": delimiter,
            "label": label,
            "weight": weight,
            "keep": keep if keep is None or isinstance(keep, str) else list(keep),
            "drop": drop if drop is None or isinstance(drop, str) else list(drop),
            "missing": missing,
            "categorical": categorical if categorical is None or isinstance(categorical, str) else list(categorical),
            "encode": encode if categorical is not None else None,
            "n_features": n_features,
            "unknown": unknown if categorical is not None else None,
            "bucket": bucket if bucket is None or isinstance(bucket, str) else {k: list(v) for k, v in bucket.items()},
            "dtype": str(self._dtype),
        }
        self._set_fields(
            label, weight, options.parts(keep), options.parts(drop), options.parts(categorical), Ranges.parsed(bucket)
        )
        self._set_features(encode, n_features, unknown)

    def _set_fields(
        self, label: Any, weight: Any, keep: list[str], drop: list[str], categorical: list[str], bucket: Any
    ) -> None:
        """Decide what each field is."""
        from sparsestore.kernels import table

        names = self._fields.names
        kinds = np.full(len(names), table.FEATURE, np.uint8)
        self._numbers: list[_Kept] = []
        self._texts: list[_Kept] = []

        def take(field: int, option: str, given: Any, kind: int) -> int:
            if kinds[field] != table.FEATURE:
                raise ValueError(f"{self.name}: {option}={given!r}: the field {names[field]!r} is taken already")
            kinds[field] = kind
            return field

        def named(pattern: Any, option: str) -> list[int]:
            return self._fields.matching(pattern, option, [k for k in range(len(names)) if kinds[k] == table.FEATURE])

        for given, option, name in ((label, "label", "y"), (weight, "weight", "sample_weight")):
            if given is not None:
                field = take(self._fields.number(given, option), option, given, table.NUMBER)
                self._numbers.append(_Kept(field, name, self._dtype.name))
        for each in keep:
            field, dtype = self._fields.typed(each, "keep", "string")
            number = dtype != "string" and np.dtype(dtype).kind == "f"
            take(field, "keep", each, table.NUMBER if number else table.TEXT)
            (self._numbers if number else self._texts).append(_Kept(field, names[field], dtype))
        for each in drop:
            take(self._fields.number(each, "drop"), "drop", each, table.LEFT_OUT)
        self._ranges: list[tuple[int, Ranges]] = []
        for pattern, edges in bucket:
            for field in named(pattern, "bucket"):
                self._ranges.append((take(field, "bucket", pattern, table.NUMBER), Ranges(names[field], edges)))
        self._categorical: list[int] = []
        for pattern in categorical:
            self._categorical += [
                take(field, "categorical", pattern, table.TEXT) for field in named(pattern, "categorical")
            ]
        self._kinds = kinds
        self._places = np.zeros(len(names), np.int64)
        self._numeric = np.flatnonzero(kinds == table.FEATURE)
        self._places[self._numeric] = np.arange(len(self._numeric))
        ranged = [field for field, _ in self._ranges]
        for fields in (
            [each.field for each in self._numbers] + ranged,
            [e.field for e in self._texts] + self._categorical,
        ):
            self._places[fields] = np.arange(len(fields))
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        for column in (*self._numbers, *self._texts):
            if column.name in self.columns:
                raise ValueError(f"{self.name}: two fields become the column {column.name!r}: keep one of them")
            self.columns[column.name] = column.dtype, ()

    def _set_features(self, encode: str, n_features: int | None, unknown: str) -> None:
        """Decide which number each feature has: those of numbers, of ranges, of texts."""
        names = self._fields.names
        self._before = [names[field] for field in self._numeric.tolist()]
        self._first_of_range = []
        for _, ranges in self._ranges:
            self._first_of_range.append(len(self._before))
            self._before += ranges.names
        if self._fields.header:
            options.check_names(f"{self.name}:1", self._before)
        self._categories: Categories | None = None
        if self._categorical:
            prefixes = [f"{names[field]}=" for field in self._categorical]
            self._categories = Categories(
                self.name, prefixes, encode=encode, n_features=n_features, first=self._before, unknown=unknown
            )
            self.n_features: int | None = n_features if encode == "hash" else None
            self.hold = self._categories.hold
            if encode != "hash":
                if n_features is not None:
                    raise ValueError(
                        f"{self.name}: n_features={n_features} is for encode='hash': a dictionary finds out"
                    )
                self.adopt = self._categories.adopt
            return
        if n_features is not None or encode != "dictionary" or unknown != "add":
            raise ValueError(f"{self.name}: encode, n_features and unknown are for categories: give categorical= too")
        if not self._before:
            raise ValueError(f"{self.name}: no field is left for a feature")
        self.n_features = len(self._before)

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the features, of texts those that were read."""
        if self._categories is None:
            return self._before if self._fields.header else None
        more = self._categories.names()
        return None if more is None else [*self._before, *more]

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, and the options that say how the file was read."""
        facts = options.provenance(self._fields.file.path, "csv", self._options)
        return facts if self._categories is None else {**facts, **self._categories.facts()}

    def parts(self, n: int) -> list[CsvSource]:
        """Sources of at most n consecutive parts of the file; one where it is compressed, or has a dictionary."""
        if self._categories is not None and self._categories.encode != "hash":
            return [self]
        found = list[CsvSource]()
        for fields in self._fields.parts(n):
            part = copy.copy(self)
            part._fields, part.size = fields, fields.file.size
            found.append(part)
        return found

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        from sparsestore.kernels import table

        n_threads = n_cores()
        if self._categories is not None:
            self._categories.start()

        def parsed(piece: Piece) -> tuple[Piece, Table]:
            return piece, table.table(
                piece.text,
                self._kinds,
                self._places,
                delimiter=ord(self._fields.delimiter),
                missing=self._missing,
                n_lines=piece.n_lines,
            )

        with closing(mapped(parsed, self._fields.pieces(max_bytes, n_threads), n_threads)) as tables:
            for piece, found in tables:
                if found.status != table.OK:
                    raise self._fields.error(piece, found.status, found.offset, found.field)
                if len(found.starts):
                    yield self._block(piece, found)

    def _block(self, piece: Piece, found: Table) -> Block:
        values = self._rounded(piece, found, found.values, None)
        columns = {}
        for place, column in enumerate(self._numbers):
            columns[column.name] = self._column(piece, found, place, column)
        for place, column in enumerate(self._texts):
            columns[column.name] = self._text(piece, found, place, column)
        codes, signs = self._codes(piece, found)
        width = self.n_features or (self._categories.width if self._categories is not None else 0)
        rows = Rows(found.indptr, found.indices.astype(index_dtype(width), copy=False), values, width)
        if codes is not None:
            rows, bad = with_codes(rows, codes, signs, width)
            if bad is not None:
                row, feature = rows.place(bad)
                line = piece.line_at(int(found.starts[row]))
                raise SourceError(f"{self.name}:{line}: feature {feature}: {overflow(values.dtype)}")
        return Block(rows, columns, piece.position)

    def _codes(self, piece: Piece, found: Table) -> tuple[NDArray[np.int64] | None, Array | None]:
        """Features of ranges and texts, (n, fields), and their signs."""
        n = len(found.starts)
        codes = list[Array]()
        for place, ((field, ranges), first) in enumerate(zip(self._ranges, self._first_of_range, strict=True)):
            numbers = found.numbers[:, len(self._numbers) + place]
            codes.append(ranges.codes(numbers, first)[:, np.newaxis])
            if self._missing == 0 and np.isnan(numbers).any():
                self._refuse_empty(piece, found, np.flatnonzero(np.isnan(numbers)), field)
        signs = None
        if self._categories is not None:
            spans = found.spans[:, len(self._texts) :]
            text, starts, stops = unquoted(piece.text, spans.reshape(-1, 2))
            k = len(self._categorical)
            starts, stops = starts.reshape(n, k), stops.reshape(n, k)
            empty = starts == stops
            if self._missing == 0 and empty.any():
                place = int(np.argmax(empty.any(axis=0)))
                self._refuse_empty(piece, found, np.flatnonzero(empty[:, place]), self._categorical[place])
            there = ~empty if self._missing == 1 else np.ones(empty.shape, bool)
            texts = [(text, starts[:, place], stops[:, place]) for place in range(k)]
            try:
                found_codes, signs = self._categories.of_rows(texts, there)
            except BadNameError as error:
                row, place = divmod(error.at, k)
                line = piece.line_at(int(found.starts[row]))
                name = shown(self._fields.names[self._categorical[place]])
                token = text[starts[row, place] : stops[row, place]].tobytes()
                raise SourceError(f"{self.name}:{line}: field {name} {error.reason}, found {shown(token)}") from None
            codes.append(found_codes)
            if signs is not None:
                signs = np.concatenate([np.ones((n, len(self._ranges)), np.int8), signs], axis=1)
        return (np.concatenate(codes, axis=1) if codes else None), signs

    def _refuse_empty(self, piece: Piece, found: Table, rows: Array, field: int) -> None:
        """Raise where a row's field is empty, not nan."""
        for row in rows.tolist():
            stop = int(found.starts[row + 1]) if row + 1 < len(found.starts) else len(piece.text)
            line = piece.text[int(found.starts[row]) : stop].tobytes().split(b"\n")[0].removesuffix(b"\r")
            if not self._fields.split(line)[field]:
                from sparsestore.kernels import table

                raise self._fields.error(piece, table.MISSING, int(found.starts[row]), field)

    def _rounded(self, piece: Piece, found: Table, exact: Array, column: _Kept | None) -> Array:
        """Numbers in their dtype; `column` is None for values."""
        dtype = self._dtype if column is None else np.dtype(column.dtype)
        if column is not None and column.name == "y":
            values, at, wrong = options.rounded_labels(exact, dtype)
        else:
            values, at = options.rounded(exact, dtype)
            wrong = f"is beyond {dtype}"
        if at is None:
            return values
        row = at if column is not None else int(np.searchsorted(found.indptr, at, side="right")) - 1
        noun = "value" if column is None else f"field {shown(self._fields.names[column.field])}"
        own = column is not None and column.name not in ("y", "sample_weight")
        wider = f"keep it as '{self._fields.names[column.field]}:float64'" if own and column else "give dtype='float64'"
        raise SourceError(
            f"{self.name}:{piece.line_at(int(found.starts[row]))}: {noun} {float(exact[at])!r} {wrong}: {wider}"
        )

    def _column(self, piece: Piece, found: Table, place: int, column: _Kept) -> Array:
        """A column of floats."""
        exact = np.ascontiguousarray(found.numbers[:, place])
        if column.name in ("y", "sample_weight"):
            bad = ~np.isfinite(exact)
            if bad.any():
                row = int(np.argmax(bad))
                noun = "label" if column.name == "y" else "weight"
                raise SourceError(
                    f"{self.name}:{piece.line_at(int(found.starts[row]))}: the {noun} "
                    f"{shown(self._fields.names[column.field])} is empty or no finite number"
                )
        return self._rounded(piece, found, exact, column)

    def _text(self, piece: Piece, found: Table, place: int, column: _Kept) -> Array:
        """A column of text, or of whole numbers, which float64 could not hold."""
        payload = piece.text.tobytes()
        texts = [payload[a:b] for a, b in found.spans[:, place].tolist()]
        texts = [t[1:-1].replace(b'""', b'"') if len(t) > 1 and t[:1] == b'"' else t for t in texts]
        row = 0
        try:
            if column.dtype == "string":
                strings = np.empty(len(texts), object)
                for row, text in enumerate(texts):
                    strings[row] = text.decode()
                return strings
            out = np.empty(len(texts), column.dtype)
            for row, text in enumerate(texts):
                out[row] = options.whole(text)
        except (ValueError, OverflowError) as error:
            kind = "UTF-8 text" if column.dtype == "string" else f"number of {column.dtype}"
            raise SourceError(
                f"{self.name}:{piece.line_at(int(found.starts[row]))}: field {shown(self._fields.names[column.field])} "
                f"is no {kind}, found {shown(texts[row])}"
            ) from error
        return out
