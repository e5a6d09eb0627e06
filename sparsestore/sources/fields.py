"""Fields of a table of text: their names, how they are called, and what stands between them."""

from __future__ import annotations

import copy
import csv
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import SourceError
from sparsestore.sources.file import printable, shown
from sparsestore.sources.text import COMPRESSIONS, Piece, TextFile

__all__ = ["DTYPES", "LONGEST_LINE", "PIECE", "Fields", "unquoted"]

Array = NDArray[Any]

PIECE = 8 << 20
LONGEST_LINE = 8 << 20
DTYPES = ("string", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
"""What a field that becomes a column may be."""

_MAX_FIELDS = 1 << 20
_DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}


class Fields:
    """What the first line of a file of text says of its fields.

    Parameters
    ----------
    path : Path
    header : bool
        Whether it has their names. Otherwise they are called by number, from 0.
    delimiter : str, optional
        One byte between fields, or "tab", "comma", "semicolon", "space", "pipe". By default "," and, in files called
        ``.tsv``, a tab.

    Attributes
    ----------
    names : list of str
    file : TextFile
    delimiter : str
    header : bool
    skip : int
        Bytes of text before the rows.
    """

    def __init__(self, path: Path, header: bool, delimiter: str | None) -> None:
        self.file = TextFile(path)
        self.header = header
        self.delimiter = _delimiter(delimiter, path)
        self._name = str(path)
        self.names, self.skip = self._first_line()

    def number(self, given: str | int, option: str) -> int:
        """Number of a field that is called by its name, or by its number where there is no header."""
        names = self.names
        if isinstance(given, str) and given in names:
            return names.index(given)
        if not self.header and str(given).isdecimal() and int(given) < len(names):
            return int(given)
        known = ", ".join(shown(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
        expected = f"one of {known}" if self.header else f"a number from 0 to {len(names) - 1}"
        raise ValueError(f"{self._name}: {option}={given!r}: there is no such field, expected {expected}")

    def typed(self, given: str | int, option: str, default: str, dtypes: Sequence[str] = DTYPES) -> tuple[int, str]:
        """Number and dtype of a field that is called by its name, or by its name, a colon and a dtype."""
        name, colon, dtype = str(given).rpartition(":")
        if isinstance(given, int) or not colon or given in self.names:
            return self.number(given, option), default
        if dtype not in dtypes:
            raise ValueError(f"{self._name}: {option}={given!r}: expected name:dtype with one of {', '.join(dtypes)}")
        return self.number(name, option), dtype

    def matching(self, pattern: str | int, option: str, among: Sequence[int]) -> list[int]:
        """Numbers of the fields that a name or a pattern such as ``C*`` calls, of some that may be meant."""
        if isinstance(pattern, int) or pattern in self.names or not set(pattern) & set("*?["):
            return [self.number(pattern, option)]
        found = [field for field in among if fnmatch.fnmatchcase(self.names[field], pattern)]
        if not found:
            raise ValueError(f"{self._name}: {option}={pattern!r}: no field that is left is called so")
        return found

    def split(self, line: bytes) -> list[str]:
        """Fields of a line, for messages."""
        text = line.decode(errors="replace")
        try:
            return next(csv.reader([text], delimiter=self.delimiter), [])
        except csv.Error:  # of a lone \r, or a very long field
            return text.split(self.delimiter)

    def parts(self, n: int) -> list[Fields]:
        """The same fields of at most n consecutive parts of the file."""
        found = list[Fields]()
        for file in self.file.parts(n):
            part = copy.copy(self)
            part.file = file
            part.skip = 0 if file.start else self.skip
            found.append(part)
        return found

    def pieces(self, max_bytes: int, n_threads: int) -> Any:
        """Pieces of the lines behind the first, of a size for so many threads."""
        # 24: a field of 2 bytes becomes an entry of 12 to 16, and its value twice; and what stands beside the rows
        piece_bytes = min(PIECE, max(max_bytes // (24 * (n_threads + 1)), 4096))
        return self.file.pieces(piece_bytes, LONGEST_LINE, skip=self.skip, line=1 + bool(self.skip))

    def error(self, piece: Piece, status: int, offset: int, field: int) -> SourceError:
        """What a scan of a piece found to be wrong."""
        from sparsestore.kernels import table as t

        n = len(self.names)
        token = piece.text[offset : offset + 200].tobytes().split(b"\n")[0]
        name = shown(self.names[field]) if field < n else ""
        token = token.split(self.delimiter.encode())[0].rstrip(b"\r")
        if status == t.FEW:
            reason = f"{field} fields, expected {n}"
        elif status == t.MANY:
            reason = f"more than {n} fields, expected {n}: is the delimiter {self.delimiter!r}?"
        elif status == t.MISSING:
            reason = f"field {name} is empty: give missing='zero' or missing='nan' if that is meant"
        elif status == t.OPEN_QUOTE:
            reason = f"field {name} goes on behind its closing quote or over the end of the line, which is not read"
        else:
            reason = f"field {name} is not a number that float64 can hold, found {shown(token)}"
            if not offset and piece.line_at(0) == 1 and not self.header:
                reason += ": is this a header?"
        return SourceError(f"{self._name}:{piece.line_at(offset)}: {reason}")

    def _first_line(self) -> tuple[list[str], int]:
        """Names of the fields, and how many bytes of text stand before the rows."""
        for piece in self.file.pieces(65536, LONGEST_LINE):
            line = piece.text.tobytes().split(b"\n")[0]
            try:
                text = line.removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{self._name}:1: the line is no UTF-8 text: {error.reason} at byte {error.start}: save it as UTF-8"
                ) from None
            try:
                fields = next(csv.reader([text], delimiter=self.delimiter, strict=True), [])
            except csv.Error as error:
                reason = printable(str(error).replace(self.delimiter, repr(self.delimiter)[1:-1]))  # which may be a tab
                raise SourceError(f"{self._name}:1: the line has no fields that can be read: {reason}") from None
            if len(fields) > _MAX_FIELDS:
                raise SourceError(f"{self._name}:1: {len(fields)} fields, expected at most {_MAX_FIELDS}")
            if not any(fields):
                raise SourceError(
                    f"{self._name}:1: an empty line, expected {'names of fields' if self.header else 'numbers'}"
                )
            if not self.header:
                return [str(number) for number in range(len(fields))], 0
            seen: dict[str, int] = {}
            for number, field in enumerate(fields):
                if not field or field in seen:
                    what = f"is {shown(field)} as field {seen[field]} is" if field else "is empty"
                    raise SourceError(
                        f"{self._name}:1: the name of field {number} {what}: rename it, or give header=False "
                        "(--no-header)"
                    )
                seen[field] = number
            return fields, len(line) + 1
        raise SourceError(f"{self._name}:1: the file is empty")


def unquoted(text: NDArray[np.uint8], spans: NDArray[np.int64]) -> tuple[NDArray[np.uint8], Array, Array]:
    """A text and spans of it without the quotes around fields; doubled quotes inside one become single.

    Parameters
    ----------
    text : (n,) uint8 array
    spans : (k, 2) int64 array
        Where each field begins and ends, quotes included.
    """
    starts, stops = spans[:, 0].copy(), spans[:, 1].copy()
    quoted = (stops - starts > 1) & (text[starts] == 34)
    if not quoted.any():
        return text, starts, stops
    starts += quoted
    stops -= quoted
    payload = text.tobytes()
    if b'""' not in payload:
        return text, starts, stops
    more, end = list[bytes](), len(text)
    for at in np.flatnonzero(quoted).tolist():
        field = payload[starts[at] : stops[at]]
        if b'""' in field:
            more.append(field.replace(b'""', b'"'))
            starts[at], stops[at] = end, end + len(more[-1])
            end += len(more[-1])
    return np.frombuffer(payload + b"".join(more), np.uint8), starts, stops


def _delimiter(given: str | None, path: Path) -> str:
    if given is None:
        plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
        return "\t" if plain.suffix.lower() == ".tsv" else ","
    found = _DELIMITERS.get(given, given)
    if len(found.encode()) != 1 or found in '\r\n"' or found.isalnum() or found in "+-.":
        raise ValueError(f"delimiter={given!r}, expected one character that no number has, or {', '.join(_DELIMITERS)}")
    return found
