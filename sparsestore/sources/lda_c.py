"""LDA-C text: ``n term:count term:count ...``, a document a line, n the number of its terms.

Format: D. Blei, "Latent Dirichlet Allocation in C", readme.txt, 2004. It reads as svmlight, with n for a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from sparsestore.errors import SourceError
from sparsestore.sources.base import Block
from sparsestore.sources.svmlight import SvmlightSource
from sparsestore.sources.text import Piece

if TYPE_CHECKING:
    from sparsestore.kernels.tokenise import Lines

__all__ = ["LdaCSource"]


class LdaCSource(SvmlightSource):
    """Documents of an LDA-C file, compressed or not; terms count from 0, and nothing stands beside the rows.

    Memory, limits and errors are those of `SvmlightSource`; a number of terms that is not that of its line is an error.
    Words stand in another file, which is not read.

    Parameters
    ----------
    path : Path
    n_features : int, optional
        Number of terms; a higher one is an error. Without it the highest term of the file decides.
    dtype : float32 or float64
        Of the counts.
    sort : bool
        Whether terms out of order are sorted; else they are an error. A term that stands twice always is.
    """

    format = "lda_c"

    def __init__(
        self, path: Path, *, n_features: int | None = None, dtype: DTypeLike = "float32", sort: bool = False
    ) -> None:
        super().__init__(path, n_features=n_features, zero_based=True, dtype=dtype, qid=False, sort=sort)
        self._qid = 0  # there is none to be skipped
        self._options = {"n_features": n_features, "dtype": str(self.dtype), "sort": sort}
        self.columns = {}

    def _blocks(self, piece: Piece, lines: Lines, width: int, max_bytes: int) -> Iterator[Block]:
        n_terms = np.diff(lines.indptr)
        wrong = lines.labels != n_terms
        if wrong.any():
            row = int(np.argmax(wrong))
            raise SourceError(
                f"{self.name}:{piece.line_at(int(lines.starts[row]))}: the line begins with {lines.labels[row]:.17g}, "
                f"and {int(n_terms[row])} terms follow: was it cut short, or is it svmlight?"
            )
        for block in super()._blocks(piece, lines, width, max_bytes):
            yield Block(block.x, {}, block.position)
