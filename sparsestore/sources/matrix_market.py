"""Matrix Market text: a banner, comments, a size line, and entries ``row column value`` in any order.

Format: R. Boisvert, R. Pozo, K. Remington, "The Matrix Market exchange formats: initial design", NISTIR 5935, 1996.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.errors import SourceError
from sparsestore.parallel import mapped, n_cores
from sparsestore.sources import options
from sparsestore.sources.base import Triples
from sparsestore.sources.file import shown
from sparsestore.sources.text import Piece, TextFile

if TYPE_CHECKING:
    from sparsestore.kernels.tokenise import Entries

__all__ = ["Header", "MatrixMarketSource"]

_PIECE = 8 << 20
_LONG_LINE = 1 << 20
_FIELDS = ("real", "integer", "pattern")
_SYMMETRIES = ("general", "symmetric", "skew-symmetric")
_HIGHEST = 10**18 - 1  # the tokenizer reads 18 digits


class Header(NamedTuple):
    """What stands before the entries."""

    dense: bool
    field: str
    symmetry: str
    shape: tuple[int, int]
    n_entries: int
    """As declared."""
    size_line: int
    """Number of the line that declares them, the last before the entries."""
    nbytes: int
    """Of text, the size line included: where the entries start."""


class MatrixMarketSource:
    """Entries of a Matrix Market file, compressed or not, as triples in the order of the file.

    `blocks` holds at most `max_bytes` + 16 MiB (and a decompressor's window: `text.TextFile`), whatever the header
    says: its number of entries is compared with the size of a plain file at once, and with the entries at the end.

    The banner may be in any case (gensim writes it in lower case, scipy then refuses it). Read are coordinate files,
    real, integer and pattern (values 1), general, symmetric and skew-symmetric (an entry off the diagonal stands for
    two; either triangle may be given), and general array files, whose zeros are dropped. Complex matrices are refused.
    Blank lines and comments are skipped everywhere. Entries given twice are yielded twice: whoever sorts the triples
    sums them.

    Parameters
    ----------
    path : Path
    n_features : int, optional
        A larger width than the header has.
    dtype : float32 or float64
        Of the values, which are read in float64 and rounded once. In field integer a value, or a sum of entries at one
        place, that would change is an error.
    """

    unit = "bytes"
    sorted_rows = False
    format = "matrix_market"

    def __init__(self, path: Path, *, n_features: int | None = None, dtype: DTypeLike = "float32") -> None:
        self.name = str(path)
        self._file = TextFile(path)
        self._header = self._read_header()
        self._check_size()
        self._dtype = options.text_dtype(dtype)
        self.whole = self._header.field == "integer"
        self._options = {"n_features": n_features, "dtype": str(self._dtype)}
        self.n_entries = self._header.n_entries
        self.n_rows: int | None = self._header.shape[0]
        self.n_features: int | None = options.width(self.name, self._header.shape[1], n_features)
        self.dtype: np.dtype[Any] | None = self._dtype
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.size: int | None = self._file.size

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, the banner's words, and the options."""
        facts = options.provenance(self._file.path, self.format, self._options)
        return {**facts, "field": self._header.field, "symmetry": self._header.symmetry}

    def blocks(self, max_bytes: int) -> Iterator[Triples]:
        """Yield the entries in the order of the file, mirrored ones beside those they mirror."""
        from sparsestore.kernels import tokenise

        header = self._header
        done, line = 0, header.size_line
        n_threads = n_cores()
        # 24: an entry of 4 bytes becomes two triples of 24
        piece_bytes = min(_PIECE, max(max_bytes // (24 * (n_threads + 1)), 4096))
        pieces = self._file.pieces(piece_bytes, _LONG_LINE, skip=header.nbytes, line=header.size_line + 1)

        def entries(piece: Piece, most: int) -> Entries:
            return tokenise.entries(
                piece.text, *header.shape, most=most, indexed=not header.dense, valued=header.field != "pattern"
            )

        with closing(mapped(lambda piece: (piece, entries(piece, header.n_entries)), pieces, n_threads)) as parsed:
            for piece, found in parsed:
                if found.status != tokenise.OK or done + found.n > header.n_entries:
                    found = entries(piece, header.n_entries - done)  # which is first: one too many, or a bad one?
                    raise self._error(piece, found)
                yield self._triples(piece, found, done)
                done += found.n
                line = piece.line_at(len(piece.text)) - 1
        if done < header.n_entries:
            raise SourceError(
                f"{self.name}:{line}: the file ends after {done} of {header.n_entries} entries that line "
                f"{header.size_line} declares: it was cut short"
            )

    def _triples(self, piece: Piece, found: Entries, done: int) -> Triples:
        rows, columns, header = found.rows, found.columns, self._header
        if header.field == "pattern":
            values: NDArray[Any] = np.ones(found.n, self._dtype)
        else:
            values = self._values(piece, found.values)
        if header.dense:
            at = np.arange(done, done + found.n)
            kept = values != 0
            columns, rows = np.divmod(at[kept], max(1, header.shape[0]))
            values = values[kept]
        elif header.symmetry != "general":
            mirrored = rows != columns
            sign = -1 if header.symmetry == "skew-symmetric" else 1
            if sign == -1 and (values[~mirrored] != 0).any():
                line = self._line_of(piece, int(np.argmax(~mirrored & (values != 0))))
                raise SourceError(
                    f"{self.name}:{line}: an entry on the diagonal of a skew-symmetric matrix, expected none"
                )
            # a mirrored entry stands right behind its own: where both triangles are given, which is last is the file's
            at = np.repeat(np.arange(found.n), 1 + mirrored)
            second = np.zeros(len(at), bool)
            np.equal(at[1:], at[:-1], out=second[1:])
            rows, columns, values = rows[at], columns[at], values[at]
            rows[second], columns[second] = columns[second], rows[second]
            values[second] *= sign
        return Triples(rows, columns, values, piece.position)

    def _values(self, piece: Piece, exact: NDArray[np.float64]) -> NDArray[Any]:
        values, at = options.rounded(exact, self._dtype)
        if at is not None:
            raise SourceError(
                f"{self.name}:{self._line_of(piece, at)}: value {float(exact[at])!r} is beyond {self._dtype}: "
                "give dtype='float64'"
            )
        if self._header.field == "integer":
            wrong = (values != exact) | (np.rint(exact) != exact) | (np.abs(exact) >= 2**53)  # 2**53 + 1 reads as 2**53
            if wrong.any():
                at = int(np.argmax(wrong))
                raise SourceError(
                    f"{self.name}:{self._line_of(piece, at)}: value {float(exact[at])!r}, expected a whole number that "
                    f"{self._dtype} holds exactly" + (": give dtype='float64'" if self._dtype == np.float32 else "")
                )
        return values

    def _read_header(self) -> Header:
        """Everything up to the size line; nothing is allocated by what it says."""
        number = nbytes = 0
        words: list[str] = []
        for piece in self._file.pieces(65536, _LONG_LINE):
            for line in piece.text.tobytes().split(b"\n")[:-1]:
                number, nbytes = number + 1, nbytes + len(line) + 1
                if number == 1:
                    words = self._banner(line)
                elif line.strip() and not line.lstrip().startswith(b"%"):
                    return self._size_line(words, line, number, nbytes)
        raise SourceError(f"{self.name}:{number + 1}: the file ends before the size line")

    def _banner(self, line: bytes) -> list[str]:
        # as bytes: text knows more blanks than ASCII has
        words = [word.decode("ascii", "replace") for word in line.lower().split()]
        if words[:2] != ["%%matrixmarket", "matrix"] or len(words) != 5:
            raise SourceError(
                f"{self.name}:1: expected the banner %%MatrixMarket matrix coordinate real general, or the like, found "
                f"{shown(line.strip())}"
            )
        layout, field, symmetry = words[2:]
        if layout not in ("coordinate", "array"):
            raise SourceError(f"{self.name}:1: layout {shown(layout)}, expected coordinate or array")
        if field not in _FIELDS or (layout == "array" and field == "pattern"):
            raise SourceError(
                f"{self.name}:1: field {shown(field)} can not be stored, expected one of {', '.join(_FIELDS)}"
            )
        if symmetry not in _SYMMETRIES or (layout == "array" and symmetry != "general"):
            known = "general" if layout == "array" else ", ".join(_SYMMETRIES)
            raise SourceError(f"{self.name}:1: symmetry {shown(symmetry)} of {layout} is not read, expected {known}")
        return words[2:]

    def _size_line(self, words: list[str], line: bytes, number: int, nbytes: int) -> Header:
        dense, tokens = words[0] == "array", line.split()
        wanted = "rows columns" if dense else "rows columns entries"
        if len(tokens) != len(wanted.split()) or not all(token.isdigit() and len(token) <= 18 for token in tokens):
            raise SourceError(f"{self.name}:{number}: expected the size line, {wanted}, found {shown(line.strip())}")
        sizes = [int(token) for token in tokens]
        shape = sizes[0], sizes[1]
        if words[2] != "general" and shape[0] != shape[1]:
            raise SourceError(
                f"{self.name}:{number}: a {words[2]} matrix of {shape[0]} x {shape[1]}, expected a square one"
            )
        n_entries = prod(shape) if dense else sizes[2]
        if n_entries > _HIGHEST:
            raise SourceError(f"{self.name}:{number}: {n_entries} entries, expected at most {_HIGHEST}")
        options.check_rows(f"{self.name}:{number}", shape[0], n_entries)
        return Header(dense, words[1], words[2], shape, n_entries, number, nbytes)

    def _check_size(self) -> None:
        if self._file.compressed:
            return  # only the end tells
        header = self._header
        shortest = 2 if header.dense else 4 if header.field == "pattern" else 6  # "1", "1 1", "1 1 1" and a newline
        room = (self._file.size - header.nbytes + 1) // shortest  # the last line may lack its newline
        if header.n_entries > room:
            raise SourceError(
                f"{self.name}:{header.size_line}: declares {header.n_entries} entries, but the file of "
                f"{self._file.size} bytes can hold {room} at most: it was cut short, or the size line is wrong"
            )

    def _line_of(self, piece: Piece, entry: int) -> int:
        """Number of the line that holds an entry of a piece."""
        for number, line in enumerate(piece.text.tobytes().split(b"\n"), piece.line):
            if line.strip() and not line.lstrip().startswith(b"%"):
                if entry == 0:
                    return number
                entry -= 1
        return piece.line

    def _error(self, piece: Piece, entries: Entries) -> SourceError:
        from sparsestore.kernels import tokenise as t

        header = self._header
        start = piece.text[: entries.offset].tobytes().rfind(b"\n") + 1
        line = piece.text[start : start + 200].tobytes().split(b"\n")[0].strip()
        wanted = "value" if header.dense else "row column" if header.field == "pattern" else "row column value"
        if entries.status == t.TOO_MANY:
            reason = f"more entries than the {header.n_entries} that line {header.size_line} declares"
        elif entries.status in (t.OUT_OF_RANGE, t.BELOW_BASE):
            reason = f"expected rows 1 to {header.shape[0]} and columns 1 to {header.shape[1]}"
        elif entries.status == t.BAD_VALUE:
            reason = "the value is not a number that float64 can hold"
        else:
            reason = f"expected {wanted}"
        return SourceError(f"{self.name}:{piece.line_at(entries.offset)}: {reason}, found {shown(line)}")
