"""UCI bag of words: three lines with the numbers of documents, terms and entries, then ``document term count``.

Format: D. Newman, "Bag of Words", UCI Machine Learning Repository, 2008, https://doi.org/10.24432/C5ZG6P.
"""

from __future__ import annotations

from sparsestore.errors import SourceError
from sparsestore.sources import options
from sparsestore.sources.file import shown
from sparsestore.sources.matrix_market import Header, MatrixMarketSource

__all__ = ["UciSource"]

_LINES = ("documents", "terms", "entries")
_LONG_LINE = 1 << 10


class UciSource(MatrixMarketSource):
    """Entries of a UCI bag of words, compressed or not, as triples in the order of the file.

    Read as a Matrix Market file of whole numbers is, with its options, limits and errors; documents and terms count
    from 1. Words stand in another file (``vocab.*.txt``), which is not read.
    """

    format = "uci"

    def _read_header(self) -> Header:
        sizes: list[int] = []
        nbytes = 0
        for piece in self._file.pieces(4096, _LONG_LINE):
            for line in piece.text.tobytes().split(b"\n")[:-1]:
                nbytes += len(line) + 1
                number, found = len(sizes) + 1, line.strip()
                if not (found.isdigit() and len(found) <= 18):
                    raise SourceError(
                        f"{self.name}:{number}: expected the number of {_LINES[len(sizes)]}, found {shown(found)}"
                    )
                sizes.append(int(found))
                if len(sizes) == len(_LINES):
                    options.check_rows(f"{self.name}:1", sizes[0], sizes[2])
                    return Header(False, "integer", "general", (sizes[0], sizes[1]), sizes[2], number, nbytes)
        raise SourceError(f"{self.name}:{len(sizes) + 1}: the file ends before the number of {_LINES[len(sizes)]}")
