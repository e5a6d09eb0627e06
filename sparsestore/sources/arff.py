"""ARFF: names and types of attributes, then rows, sparse ``{index value, ...}`` or dense.

Format: https://waikato.github.io/weka-wiki/formats_and_processing/arff_stable/.
"""

from __future__ import annotations

import json
import re
import zlib
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
from sparsestore.sources.file import shown
from sparsestore.sources.text import Piece, TextFile

if TYPE_CHECKING:
    from sparsestore.kernels.arff import Rows as Found

__all__ = ["ArffSource"]

Array = NDArray[Any]

_PIECE = 8 << 20
_LONGEST_LINE = 8 << 20
_MAX_ATTRIBUTES = 1 << 20
_MAX_HEADER = 64 << 20
_TOLD_BYTES = 1 << 20  # of the values of features that stand in the provenance, which each version repeats
_MISSING = ("error", "zero", "nan")
_DTYPES = ("string", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
_WEIGHTS = "{}"

_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_PLAIN = re.compile(rb"@attribute[ \t]+([\w.+:/-]+)[ \t]+(?:numeric|real|integer)\s*", re.IGNORECASE)  # nearly all
_ATTRIBUTE = re.compile(rf"\s*({_QUOTED}|[^\s{{}},%'\"][^\s{{}},%]*)\s*(\S.*?)\s*", re.DOTALL)
_VALUE = re.compile(rf"\s*({_QUOTED}|[^\s{{}},%'\"][^\s{{}},%]*)\s*([,}}])")
_NUMERIC, _NOMINAL, _STRING, _DATE = "numeric", "nominal", "string", "date"
_TYPES = {"numeric": _NUMERIC, "real": _NUMERIC, "integer": _NUMERIC, "string": _STRING, "date": _DATE}


class _Attribute(NamedTuple):
    name: str
    kind: str
    values: tuple[bytes, ...]


class _Kept(NamedTuple):
    """An attribute that becomes a column."""

    attribute: int
    name: str
    dtype: str


class ArffSource:
    """Rows of an ARFF file, sparse or dense, compressed or not. Values that are 0 are no entries.

    The file is read once, in pieces; all that `blocks` holds at a time takes at most `max_bytes` + 16 MiB (and a
    decompressor's window: `text.TextFile`), beside the names of the attributes and their values, at most 64 MiB. A line
    may have 8 MiB, a file 1,048,576 attributes.

    Attributes become the features, of their names. Nominal ones are the number of the value, from 0, as WEKA keeps
    them: what a sparse row leaves out is 0, which is a nominal attribute's first value. Indices count from 0 and must
    ascend. Text and dates are no numbers: keep or drop them. A number beyond the dtype is an error, never inf.

    Parameters
    ----------
    path : Path
    label, weight : str, optional
        Attributes that become the columns "y" and "sample_weight"; a nominal one the number of its value. ``"{}"`` as
        the weight: those behind the rows, ``{...}, {0.5}``, 1 where a row has none; else a row with one is an error.
    keep : sequence of str, or str, optional
        Other attributes that become columns, of their own names, numbers as numbers and all others as text, or as is
        said behind a colon: ``["class", "age:int64"]`` or ``"class,age:int64"``. A nominal one as a number is that of
        its value. Text that a sparse row leaves out is "".
    drop : sequence of str, or str, optional
        Attributes that are left out.
    missing : {"error", "zero", "nan"}
        What ``?`` is where it is a feature's value: an error, no entry, or an entry that is nan. It always is an error
        as a label, weight or whole number; nan as another number, "" as text.
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
        label: str | None = None,
        weight: str | None = None,
        keep: Sequence[str] | str | None = None,
        drop: Sequence[str] | str | None = None,
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
        self._missing = _MISSING.index(missing)
        self._options = {
            "label": label,
            "weight": weight,
            "keep": keep if keep is None or isinstance(keep, str) else list(keep),
            "drop": drop if drop is None or isinstance(drop, str) else list(drop),
            "missing": missing,
            "dtype": str(self._dtype),
        }
        self._attributes: list[_Attribute] = []
        self._numbers_of: dict[str, int] = {}
        self._header()
        self._set_attributes(label, weight, options.parts(keep), options.parts(drop))

    # ---- the header

    def _header(self) -> None:
        """Read the attributes, and where the rows begin."""
        self._line = self._skip = size = 0
        for piece in self._file.pieces(65536, _LONGEST_LINE):
            for raw in piece.text.tobytes().split(b"\n")[:-1]:
                self._line += 1
                self._skip += len(raw) + 1
                if plain := _PLAIN.fullmatch(raw):
                    size += len(raw)
                    self._put(plain[1].decode(), _NUMERIC, (), size)
                    continue
                word, *rest = raw.split(maxsplit=1) or [b"%"]
                if word.lower() == b"@data":
                    return
                if word.lower() == b"@attribute":
                    size += len(raw)
                    self._add(b"".join(rest), size)
                elif word.lower() != b"@relation" and not word.startswith(b"%"):
                    raise self._wrong(f"expected @relation, @attribute or @data, found {shown(raw)}")
        raise SourceError(f"{self.name}:{self._line + 1}: the file ends before @data")

    def _wrong(self, reason: str) -> SourceError:
        return SourceError(f"{self.name}:{self._line}: {reason}")

    def _put(self, name: str, kind: str, values: tuple[bytes, ...], size: int) -> None:
        """Note an attribute; `size` is the length of all lines of attributes so far."""
        if size > _MAX_HEADER or len(self._attributes) == _MAX_ATTRIBUTES:
            raise self._wrong(f"more than {_MAX_ATTRIBUTES} attributes, or {_MAX_HEADER} bytes of them")
        if not name or name in self._numbers_of:
            raise self._wrong(f"a second attribute {shown(name)}: rename it" if name else "an attribute without a name")
        self._numbers_of[name] = len(self._attributes)
        self._attributes.append(_Attribute(name, kind, values))

    def _add(self, line: bytes, size: int) -> None:
        """An attribute: its name and type."""
        from sparsestore.kernels.arff import unquoted

        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise self._wrong(f"the line is no UTF-8 text: {error.reason}: save it as UTF-8") from None
        found = _ATTRIBUTE.fullmatch(text)
        if not found:
            raise self._wrong(f"expected @attribute name type, found {shown(text)}")
        name, rest = unquoted(found[1].encode()).decode(), found[2]
        values: tuple[bytes, ...] = ()
        if rest.startswith("{"):
            kind, values = _NOMINAL, self._nominal(name, rest)
        else:
            kind = _TYPES.get(re.split(r"[\s%]", rest, maxsplit=1)[0].lower(), "")
        if not kind:
            raise self._wrong(
                f"attribute {shown(name)} is of the type {shown(rest)}, expected numeric, real, integer, string, date "
                "or values in braces"
            )
        self._put(name, kind, values, size)

    def _nominal(self, name: str, text: str) -> tuple[bytes, ...]:
        """The values of a nominal attribute."""
        from sparsestore.kernels.arff import unquoted

        values: dict[bytes, None] = {}
        at = 1
        while found := _VALUE.match(text, at):
            value = unquoted(found[1].encode())
            if value in values:
                raise self._wrong(f"attribute {shown(name)} has the value {shown(value)} twice")
            values[value] = None
            at = found.end()
            if found[2] == "}":
                if text[at:].strip() and not text[at:].strip().startswith("%"):
                    break
                return tuple(values)
        raise self._wrong(f"attribute {shown(name)}: expected values in braces, found {shown(text[at - 1 :])}")

    def _set_attributes(self, label: str | None, weight: str | None, keep: list[str], drop: list[str]) -> None:
        """Decide what each attribute is."""
        from sparsestore.kernels import arff

        attributes = self._attributes
        kinds = np.full(len(attributes), arff.FEATURE, np.uint8)
        self._numbers: list[_Kept] = []
        self._texts: list[_Kept] = []
        self._weighted = weight == _WEIGHTS and _WEIGHTS not in self._numbers_of

        def take(given: str, option: str, kind: int) -> int:
            number = self._numbers_of.get(given, -1)
            if number < 0:
                known = ", ".join(shown(name) for name in list(self._numbers_of)[:8])
                more = ", ..." if len(attributes) > 8 else ""
                raise ValueError(
                    f"{self.name}: {option}={given!r}: there is no such attribute, expected one of {known}{more}"
                )
            if kinds[number] != arff.FEATURE:
                raise ValueError(f"{self.name}: {option}={given!r}: the attribute is taken already")
            kinds[number] = kind
            return number

        for given, option, name in ((label, "label", "y"), (weight, "weight", "sample_weight")):
            if given is None or (option == "weight" and self._weighted):
                continue
            number = take(given, option, arff.NUMBER)
            if attributes[number].kind in (_STRING, _DATE):
                raise ValueError(f"{self.name}: {option}={given!r}: is a {attributes[number].kind}, expected numbers")
            self._numbers.append(_Kept(number, name, self._dtype.name))
        for each in keep:
            given, _, dtype = each.rpartition(":") if ":" in each else (each, "", "")
            if dtype not in (*_DTYPES, ""):
                raise ValueError(f"{self.name}: keep={each!r}: expected name:dtype with one of {', '.join(_DTYPES)}")
            number = take(given, "keep", arff.TEXT)
            kind = attributes[number].kind
            dtype = dtype or (self._dtype.name if kind == _NUMERIC else "string")
            if dtype != "string" and kind in (_STRING, _DATE):
                raise ValueError(f"{self.name}: keep={each!r}: is a {kind}, expected no dtype, or string")
            as_number = dtype != "string" and (kind == _NOMINAL or np.dtype(dtype).kind == "f")
            kinds[number] = arff.NUMBER if as_number else arff.TEXT
            (self._numbers if as_number else self._texts).append(_Kept(number, attributes[number].name, dtype))
        for given in drop:
            take(given, "drop", arff.LEFT_OUT)
        features = np.flatnonzero(kinds == arff.FEATURE)
        for number in features.tolist():
            if attributes[number].kind in (_STRING, _DATE):
                raise SourceError(
                    f"{self.name}: attribute {shown(attributes[number].name)} is a {attributes[number].kind}, which is "
                    "no feature: keep= it, or drop= it"
                )
        if not len(features):
            raise ValueError(f"{self.name}: no attribute is left for a feature")
        self._kinds, self._places = kinds, np.zeros(len(attributes), np.int64)
        self._places[features] = np.arange(len(features))
        for kept in (self._numbers, self._texts):
            for place, column in enumerate(kept):
                self._places[column.attribute] = place
        self.n_features: int | None = len(features)
        self.feature_names = [attributes[number].name for number in features.tolist()]
        options.check_names(self.name, self.feature_names)
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        if self._weighted:
            self.columns["sample_weight"] = self._dtype.name, ()
        for column in (*self._numbers, *self._texts):
            if column.name in self.columns:
                raise ValueError(f"{self.name}: two attributes become the column {column.name!r}: keep one of them")
            self.columns[column.name] = column.dtype, ()

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, the options, and what numbers of nominal attributes stand for."""
        from sparsestore.kernels import arff

        facts = options.provenance(self._file.path, "arff", self._options)
        columns = {column.name: column.attribute for column in self._numbers}
        features = dict(zip(self.feature_names, np.flatnonzero(self._kinds == arff.FEATURE).tolist(), strict=True))
        if told := self._meanings(columns):
            facts["categories"] = told
        if told := self._meanings(features):
            if sum(len(value) for values in told.values() for value in values) > _TOLD_BYTES:
                text = json.dumps(told)
                told = {"{}": [f"{len(told)} nominal attributes: crc32 {zlib.crc32(text.encode()):08x}"]}
            facts["feature_categories"] = told
        return facts

    def _meanings(self, attributes: Mapping[str, int]) -> dict[str, list[str]]:
        """What the numbers of those attributes that are nominal stand for."""
        return {
            name: options.told([value.decode() for value in self._attributes[number].values])
            for name, number in attributes.items()
            if self._attributes[number].kind == _NOMINAL
        }

    # ---- the rows

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        from sparsestore.kernels import arff
        from sparsestore.kernels.names import names_of

        nominal = [(value, number) for number, a in enumerate(self._attributes) for value in a.values]
        counts = np.array([len(attribute.values) for attribute in self._attributes], np.int64)
        firsts = np.where(counts > 0, np.cumsum(counts) - counts, -1)
        names = names_of([value for value, _ in nominal], [number for _, number in nominal])
        attributes = arff.Attributes(self._kinds, self._places, firsts, names)
        n_threads = n_cores()
        # 24: a value of 2 bytes becomes an entry of 12 to 16, and its value twice; and what stands beside the rows
        cost = 24 + 8 * len(self.columns)
        piece_bytes = min(_PIECE, max(max_bytes // (cost * (n_threads + 1)), 4096))
        pieces = self._file.pieces(piece_bytes, _LONGEST_LINE, skip=self._skip, line=self._line + 1)

        def parsed(piece: Piece) -> tuple[Piece, Found]:
            return piece, arff.arff(
                piece.text, attributes, missing=self._missing, weighted=self._weighted, n_lines=piece.n_lines
            )

        with closing(mapped(parsed, pieces, n_threads)) as parts:
            for piece, found in parts:
                if found.status != arff.OK:
                    raise self._error(piece, found)
                if len(found.starts):
                    yield self._block(piece, found)

    def _block(self, piece: Piece, found: Found) -> Block:
        columns: dict[str, Array] = {}
        if self._weighted:
            columns["sample_weight"] = self._rounded(piece, found, found.weights, _Kept(-1, "sample_weight", "float32"))
        for place, column in enumerate(self._numbers):
            columns[column.name] = self._column(piece, found, place, column)
        for place, column in enumerate(self._texts):
            columns[column.name] = self._text(piece, found, place, column)
        values = self._rounded(piece, found, found.values, None)
        indices = found.indices.astype(index_dtype(self.n_features or 0), copy=False)
        return Block(Rows(found.indptr, indices, values, self.n_features or 0), columns, piece.position)

    def _row_error(self, piece: Piece, found: Found, row: int, reason: str) -> SourceError:
        return SourceError(f"{self.name}:{piece.line_at(int(found.starts[row]))}: {reason}")

    def _rounded(self, piece: Piece, found: Found, exact: Array, column: _Kept | None) -> Array:
        """Numbers in their dtype; `column` is None for values."""
        own = column is not None and column.name not in ("y", "sample_weight")
        dtype = np.dtype(column.dtype) if own and column else self._dtype
        if column is not None and column.name == "y":
            values, at, wrong = options.rounded_labels(exact, dtype)
        else:
            values, at = options.rounded(exact, dtype)
            wrong = f"is beyond {dtype}"
        if at is None:
            return values
        row = at if column is not None else int(np.searchsorted(found.indptr, at, side="right")) - 1
        noun = "value" if column is None else self._noun(column)
        wider = f"keep it as '{column.name}:float64'" if own and column else "give dtype='float64'"
        raise self._row_error(piece, found, row, f"{noun} {float(exact[at])!r} {wrong}: {wider}")

    def _noun(self, column: _Kept) -> str:
        if column.attribute < 0:
            return "weight"
        return f"attribute {shown(self._attributes[column.attribute].name)}"

    def _column(self, piece: Piece, found: Found, place: int, column: _Kept) -> Array:
        """A column of floats, or of numbers of nominal values."""
        exact = np.ascontiguousarray(found.numbers[:, place])
        whole = column.dtype not in ("float32", "float64")
        if whole or column.name in ("y", "sample_weight"):
            limits = np.iinfo(column.dtype) if whole else None
            bad = ~np.isfinite(exact) | (exact > limits.max if limits is not None else False)
            if bad.any():
                row = int(np.argmax(bad))
                value = "?" if np.isnan(exact[row]) else f"{exact[row]:g}"
                expected = column.dtype if whole else "a finite number"
                raise self._row_error(piece, found, row, f"{self._noun(column)} is {value}, expected {expected}")
        return exact.astype(column.dtype) if whole else self._rounded(piece, found, exact, column)

    def _text(self, piece: Piece, found: Found, place: int, column: _Kept) -> Array:
        """A column of text, or of whole numbers, which float64 could not hold."""
        from sparsestore.kernels.arff import UNKNOWN, unquoted

        attribute = self._attributes[column.attribute]
        left_out = attribute.values[0] if attribute.values else b"" if attribute.kind != _NUMERIC else b"0"
        payload = piece.text.tobytes()
        out = np.empty(len(found.starts), object if column.dtype == "string" else column.dtype)
        for row, (begin, end) in enumerate(found.spans[:, place].tolist()):
            text = left_out if begin == -1 else b"" if begin == UNKNOWN else unquoted(payload[begin:end])
            try:
                out[row] = text.decode() if column.dtype == "string" else options.whole(text)
            except (ValueError, OverflowError) as error:
                kind = "UTF-8 text" if column.dtype == "string" else f"number of {column.dtype}"
                what = shown(text) if begin != UNKNOWN else "?"
                raise self._row_error(piece, found, row, f"{self._noun(column)} is no {kind}, found {what}") from error
            if column.dtype == "string" and begin >= 0 and attribute.values and text not in attribute.values:
                raise self._row_error(piece, found, row, f"{self._noun(column)} has no value {shown(text)}")
        return out

    def _error(self, piece: Piece, found: Found) -> SourceError:
        from sparsestore.kernels import arff as a

        n = len(self._attributes)
        line = piece.text[found.offset : found.offset + 200].tobytes().split(b"\n")[0].rstrip(b"\r")
        token = shown((re.split(rb"[\s,}%]", line, maxsplit=1) or [b""])[0])
        attribute = self._attributes[found.field] if found.field < n else None
        name = f"attribute {shown(attribute.name)}" if attribute else ""
        if found.status == a.BAD_VALUE and attribute and attribute.values:
            some = ", ".join(shown(value) for value in attribute.values[:4])
            more = ", ..." if len(attribute.values) > 4 else ""
            reason = f"{name} has no value {token}, expected one of {some}{more}"
        elif found.status == a.BAD_VALUE:
            reason = f"{name} is not a number that float64 can hold, found {token}"
        elif found.status == a.BAD_INDEX:
            reason = f"expected a number of an attribute, a blank and a value, found {shown(line)}"
        elif found.status == a.OUT_OF_RANGE:
            reason = f"attribute number {token}, expected 0 to {n - 1}"
        elif found.status == a.UNORDERED:
            reason = f"numbers of attributes not ascending, found {token} after a higher one"
        elif found.status == a.DUPLICATE:
            reason = f"attribute number {token} stands twice in the row, expected once"
        elif found.status == a.FEW:
            reason = f"{found.field} values, expected {n}"
        elif found.status == a.MANY:
            reason = f"expected the end of the line behind the values of {n} attributes, found {shown(line)}"
        elif found.status == a.MISSING:
            reason = f"{name} is missing (?): give missing='zero' or missing='nan' if that is meant"
        elif found.status == a.OPEN_QUOTE:
            reason = f"{name} goes on over the end of the line, found {shown(line)}"
        elif found.status == a.NO_VALUE:
            reason = f"{name} has no value, found {shown(line)}"
        elif found.status == a.NO_END:
            reason = f"expected a comma behind the value of {name}, found {shown(line)}"
        elif found.status == a.WEIGHT:
            reason = f"the row has a weight, {shown(line)}: give weight='{{}}' to keep such weights"
        else:
            reason = f"the weight is not a finite number in braces, found {shown(line)}"
        return SourceError(f"{self.name}:{piece.line_at(found.offset)}: {reason}")
