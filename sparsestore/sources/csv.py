"""Wide tables: CSV or TSV with a field a feature, most of them 0."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
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
from sparsestore.sources.file import shown
from sparsestore.sources.text import COMPRESSIONS, Piece, TextFile

if TYPE_CHECKING:
    from sparsestore.kernels.table import Table

__all__ = ["CsvSource"]

Array = NDArray[Any]

_PIECE = 8 << 20
_LONGEST_LINE = 8 << 20
_MAX_FIELDS = 1 << 20
_MISSING = ("error", "zero", "nan")
_DTYPES = ("string", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
_DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}


class _Kept(NamedTuple):
    """A field that becomes a column."""

    field: int
    name: str
    dtype: str


class CsvSource:
    """Rows of a table with a field a feature, compressed or not. Fields that are 0 are no entries.

    The file is read once, in pieces; all that `blocks` holds at a time takes at most `max_bytes` + 16 MiB (and a
    decompressor's window: `text.TextFile`). A line may have 8 MiB, and 1,048,576 fields.

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
        What an empty field of a feature is: an error, no entry, or an entry that is nan. An empty label or weight, or
        whole number, always is an error; an empty one of a column of floats is nan, of text "".
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
        dtype: DTypeLike = "float32",
    ) -> None:
        if missing not in _MISSING:
            raise ValueError(f"missing={missing!r}, expected one of {', '.join(_MISSING)}")
        self.name = str(path)
        self._file = TextFile(path)
        self.size: int | None = self._file.size
        self._dtype = options.text_dtype(dtype)
        self.dtype: np.dtype[Any] | None = self._dtype
        self._delimiter = _delimiter(delimiter, path)
        self._missing = _MISSING.index(missing)
        self._options = {
            "header": header,
            "delimiter": delimiter,
            "label": label,
            "weight": weight,
            "keep": keep if keep is None or isinstance(keep, str) else list(keep),
            "drop": drop if drop is None or isinstance(drop, str) else list(drop),
            "missing": missing,
            "dtype": str(self._dtype),
        }
        fields, self._skip = self._first_line(header)
        self._names = fields
        self._header = header
        self._set_fields(label, weight, _parts(keep), _parts(drop))

    def _set_fields(self, label: Any, weight: Any, keep: list[str], drop: list[str]) -> None:
        """Decide what each field is."""
        from sparsestore.kernels import table

        names = self._names
        kinds = np.full(len(names), table.FEATURE, np.uint8)
        self._numbers: list[_Kept] = []
        self._texts: list[_Kept] = []

        def take(given: str | int, option: str, kind: int) -> int:
            field = self._field(given, option)
            if kinds[field] != table.FEATURE:
                raise ValueError(f"{self.name}: {option}={given!r}: the field {names[field]!r} is taken already")
            kinds[field] = kind
            return field

        for given, option, name in ((label, "label", "y"), (weight, "weight", "sample_weight")):
            if given is not None:
                self._numbers.append(_Kept(take(given, option, table.NUMBER), name, self._dtype.name))
        for each in keep:
            given, _, dtype = each.rpartition(":") if ":" in each else (each, "", "string")
            if dtype not in _DTYPES:
                raise ValueError(f"{self.name}: keep={each!r}: expected name:dtype with one of {', '.join(_DTYPES)}")
            number = dtype != "string" and np.dtype(dtype).kind == "f"
            field = take(given, "keep", table.NUMBER if number else table.TEXT)
            (self._numbers if number else self._texts).append(_Kept(field, names[field], dtype))
        for each in drop:
            take(each, "drop", table.LEFT_OUT)
        self._kinds = kinds
        self._places = np.zeros(len(names), np.int64)
        features = np.flatnonzero(kinds == table.FEATURE)
        self._places[features] = np.arange(len(features))
        for kept in (self._numbers, self._texts):
            for place, column in enumerate(kept):
                self._places[column.field] = place
        if not len(features):
            raise ValueError(f"{self.name}: no field is left for a feature")
        self.n_features: int | None = len(features)
        self.feature_names = [names[field] for field in features.tolist()] if self._header else None
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        for column in (*self._numbers, *self._texts):
            if column.name in self.columns:
                raise ValueError(f"{self.name}: two fields become the column {column.name!r}: keep one of them")
            self.columns[column.name] = column.dtype, ()

    def _field(self, given: str | int, option: str) -> int:
        """Number of a field that is called by its name, or by its number where there is no header."""
        names = self._names
        if isinstance(given, str) and given in names:
            return names.index(given)
        if not self._header and str(given).isdecimal() and int(given) < len(names):
            return int(given)
        known = ", ".join(shown(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
        expected = f"one of {known}" if self._header else f"a number from 0 to {len(names) - 1}"
        raise ValueError(f"{self.name}: {option}={given!r}: there is no such field, expected {expected}")

    def _first_line(self, header: bool) -> tuple[list[str], int]:
        """Names of the fields, and how many bytes of text stand before the rows."""
        for piece in self._file.pieces(65536, _LONGEST_LINE):
            line = piece.text.tobytes().split(b"\n")[0]
            try:
                text = line.removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{self.name}:1: the line is no UTF-8 text: {error.reason} at byte {error.start}: save it as UTF-8"
                ) from None
            fields = next(csv.reader([text], delimiter=self._delimiter), [])
            if len(fields) > _MAX_FIELDS:
                raise SourceError(f"{self.name}:1: {len(fields)} fields, expected at most {_MAX_FIELDS}")
            if not any(fields):
                raise SourceError(
                    f"{self.name}:1: an empty line, expected {'names of fields' if header else 'numbers'}"
                )
            if not header:
                return [str(number) for number in range(len(fields))], 0
            seen: dict[str, int] = {}
            for number, field in enumerate(fields):
                if not field or field in seen:
                    what = f"is {shown(field)} as field {seen[field]} is" if field else "is empty"
                    raise SourceError(
                        f"{self.name}:1: the name of field {number} {what}: rename it, or give header=False "
                        "(--no-header)"
                    )
                seen[field] = number
            return fields, len(line) + 1
        raise SourceError(f"{self.name}:1: the file is empty")

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, and the options that say how the file was read."""
        return options.provenance(self._file.path, "csv", self._options)

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        from sparsestore.kernels import table

        n_threads = n_cores()
        # 24: a field of 2 bytes becomes an entry of 12 to 16, and its value twice; and what stands beside the rows
        piece_bytes = min(_PIECE, max(max_bytes // (24 * (n_threads + 1)), 4096))
        pieces = self._file.pieces(piece_bytes, _LONGEST_LINE, skip=self._skip, line=1 + self._header)

        def parsed(piece: Piece) -> tuple[Piece, Table]:
            return piece, table.table(
                piece.text,
                self._kinds,
                self._places,
                delimiter=ord(self._delimiter),
                missing=self._missing,
                n_lines=piece.n_lines,
            )

        with closing(mapped(parsed, pieces, n_threads)) as tables:
            for piece, found in tables:
                if found.status != table.OK:
                    raise self._error(piece, found)
                if len(found.starts):
                    yield self._block(piece, found)

    def _block(self, piece: Piece, found: Table) -> Block:
        values = self._rounded(piece, found, found.values, None)
        indices = found.indices.astype(index_dtype(self.n_features or 0), copy=False)
        columns = {}
        for place, column in enumerate(self._numbers):
            columns[column.name] = self._column(piece, found, place, column)
        for place, column in enumerate(self._texts):
            columns[column.name] = self._text(piece, found, place, column)
        return Block(Rows(found.indptr, indices, values, self.n_features or 0), columns, piece.position)

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
        noun = "value" if column is None else f"field {shown(self._names[column.field])}"
        own = column is not None and column.name not in ("y", "sample_weight")
        wider = f"keep it as '{self._names[column.field]}:float64'" if own and column else "give dtype='float64'"
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
                    f"{shown(self._names[column.field])} is empty or no finite number"
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
                out[row] = _whole(text)
        except (ValueError, OverflowError) as error:
            kind = "UTF-8 text" if column.dtype == "string" else f"number of {column.dtype}"
            raise SourceError(
                f"{self.name}:{piece.line_at(int(found.starts[row]))}: field {shown(self._names[column.field])} is no "
                f"{kind}, found {shown(texts[row])}"
            ) from error
        return out

    def _error(self, piece: Piece, found: Table) -> SourceError:
        from sparsestore.kernels import table as t

        line = piece.line_at(found.offset)
        n = len(self._names)
        token = piece.text[found.offset : found.offset + 200].tobytes().split(b"\n")[0]
        field = shown(self._names[found.field]) if found.field < n else ""
        token = token.split(self._delimiter.encode())[0].rstrip(b"\r")
        if found.status == t.FEW:
            reason = f"{found.field} fields, expected {n}"
        elif found.status == t.MANY:
            reason = f"more than {n} fields, expected {n}: is the delimiter {self._delimiter!r}?"
        elif found.status == t.MISSING:
            reason = f"field {field} is empty: give missing='zero' or missing='nan' if that is meant"
        elif found.status == t.OPEN_QUOTE:
            reason = f"field {field} goes on behind its closing quote or over the end of the line, which is not read"
        else:
            reason = f"field {field} is not a number that float64 can hold, found {shown(token)}"
            if not found.offset and piece.line == 1 and not self._header:
                reason += ": is this a header?"
        return SourceError(f"{self.name}:{line}: {reason}")


def _delimiter(given: str | None, path: Path) -> str:
    if given is None:
        plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
        return "\t" if plain.suffix.lower() == ".tsv" else ","
    found = _DELIMITERS.get(given, given)
    if len(found.encode()) != 1 or found in '\r\n"' or found.isalnum() or found in "+-.":
        raise ValueError(f"delimiter={given!r}, expected one character that no number has, or {', '.join(_DELIMITERS)}")
    return found


def _parts(given: Sequence[Any] | str | None) -> list[Any]:
    """A list, or one that is written with commas."""
    if given is None:
        return []
    return [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)


def _whole(text: bytes) -> int:
    """A whole number, exactly; ValueError where it is none."""
    digits = text.strip()
    if not digits.lstrip(b"+-").isdigit() or len(digits) > 40:
        raise ValueError(digits)
    return int(digits)
