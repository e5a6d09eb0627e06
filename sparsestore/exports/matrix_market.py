"""Matrix Market text: a banner, a size line, and entries ``row column value`` in row order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsestore.exports.base import Table
from sparsestore.exports.text import write_lines
from sparsestore.sources.base import Block

__all__ = ["MatrixMarketExport"]


class MatrixMarketExport:
    """A general coordinate file: of the field ``integer`` where the dtype is one of whole numbers, else ``real``.

    Entries are counted before they are written, from the offsets of rows alone unless features were selected. Numbers
    come back exactly; nan and inf are written so. Explicit zeros are written.
    """

    def __init__(self, table: Table, suffix: str) -> None:
        self._table, self._suffix = table, suffix
        self.left_out = table.left_out()

    def write(self, path: Path) -> list[str]:
        """Write the file."""
        import sparsestore.kernels.decimals  # noqa: F401 - before threads need it

        table = self._table
        field = "real" if table.dtype.kind == "f" else "integer"
        head = f"%%MatrixMarket matrix coordinate {field} general\n"
        head += f"{table.n_rows} {table.n_features} {table.count_entries()}\n"
        write_lines(path, self._suffix, table, head.encode(), _lines)
        return []


def _lines(block: Block) -> NDArray[np.uint8]:
    from sparsestore.kernels import decimals

    first, x = block.position - len(block.x) + 1, block.x
    values = decimals.decimals(x.data)
    return decimals.triple_lines(first, x.indptr, x.indices, values, base=1, delimiter=ord(" "))
