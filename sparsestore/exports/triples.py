"""Tables of triples, CSV or TSV: ``row,feature,value``, a line an entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsestore.exports.base import Table
from sparsestore.exports.text import Ends, write_lines
from sparsestore.sources.base import Block

__all__ = ["TriplesExport"]


class TriplesExport:
    """A header ``row,feature,value``, then a line an entry, in row order; rows and features are counted from 0.

    Numbers come back exactly; nan and inf are written so. Explicit zeros are written. The shape is not in the file: a
    warning says so where the last row or feature has no entry.

    Parameters
    ----------
    feature_names : bool
        Write names of features in place of their numbers, quoted where they have to be.
    delimiter : str, optional
        A character; a tab where the name ends in ``.tsv``, else a comma.
    """

    def __init__(
        self,
        table: Table,
        suffix: str,
        *,
        feature_names: bool = False,
        delimiter: str | None = None,
        tabs: bool = False,
    ) -> None:
        self._table, self._suffix = table, suffix
        self._delimiter = delimiter or ("\t" if tabs else ",")
        if (
            len(self._delimiter) != 1
            or not self._delimiter.isascii()
            or self._delimiter in '"\r\n.-+'
            or (self._delimiter.isalnum())
        ):
            raise ValueError(
                f"delimiter={delimiter!r}, expected one character that is in no number, such as ; or a tab"
            )
        if feature_names and table.feature_names is None:
            raise ValueError("feature_names=True: the features have no names")
        self.left_out = table.left_out(names=feature_names)
        self._names = self._quoted() if feature_names else None
        self._ends = Ends()

    def write(self, path: Path) -> list[str]:
        """Write the file."""
        import sparsestore.kernels.decimals  # noqa: F401 - before threads need it

        table = self._table
        head = self._delimiter.join(("row", "feature", "value")) + "\n"
        write_lines(path, self._suffix, table, head.encode(), self._lines)
        if self._ends.found() != (table.n_rows, table.n_features):
            return [
                f"the last row or feature has no entry: whoever reads it must be told of {table.n_rows} rows and "
                f"{table.n_features} features"
            ]
        return []

    def _lines(self, block: Block) -> NDArray[np.uint8]:
        from sparsestore.kernels import decimals

        self._ends.see(block)
        first, x = block.position - len(block.x), block.x
        values = decimals.decimals(x.data)
        return decimals.triple_lines(
            first, x.indptr, x.indices, values, base=0, delimiter=ord(self._delimiter), names=self._names
        )

    def _quoted(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Names of all features as fields, one after the other, and where each ends."""
        special = {self._delimiter, '"', "\n", "\r"}
        names = [] if self._table.feature_names is None else self._table.feature_names.tolist()
        fields = [
            ('"' + name.replace('"', '""') + '"' if special & set(name) or name != name.strip() else name).encode()
            for name in names
        ]
        ends = np.append(0, np.cumsum([len(field) for field in fields], dtype=np.int64))
        return np.frombuffer(b"".join(fields), np.uint8), ends
