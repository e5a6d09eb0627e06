"""What the rows of triples have beside their entries: a value that each triple of a row repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import ResourceError

__all__ = ["RowValues"]


class RowValues:
    """One number for each row, known once a triple of the row was seen; nan until then.

    It takes 8 bytes a row, and while it grows, by half each time, the old array beside the new one.

    Parameters
    ----------
    name : str
        What messages call it.
    max_bytes : int, optional
        Most that it may take.
    """

    def __init__(self, name: str, max_bytes: int | None = None) -> None:
        self.name = name
        self._max_bytes = max_bytes
        self._values = np.full(1024, np.nan)

    def put(self, rows: NDArray[np.int64], values: NDArray[np.float64]) -> int | None:
        """Note the value of each row; the first place where a row has another than before, or None."""
        if not len(rows):
            return None
        most = int(rows.max()) + 1
        if most > len(self._values):
            room = max(most, len(self._values) * 3 // 2)
            if self._max_bytes is not None and 8 * room > self._max_bytes:
                raise ResourceError(
                    f"{self.name}: {most:,} rows have one, which takes {8 * room:,} bytes, expected at most "
                    f"{self._max_bytes:,}: give a larger max_bytes, or the values in a file of their own (--column)"
                )
            longer = np.full(room, np.nan)
            longer[: len(self._values)] = self._values
            self._values = longer
        new = np.flatnonzero(np.isnan(self._values[rows]))[::-1]  # so that the first of a row stays
        self._values[rows[new]] = values[new]
        wrong = self._values[rows] != values
        return int(np.argmax(wrong)) if wrong.any() else None

    def of(self, rows: NDArray[np.int64], dtype: Any) -> NDArray[Any]:
        """Values of some rows; nan where no triple had one."""
        out = np.full(len(rows), np.nan, dtype)
        known = rows < len(self._values)
        out[known] = self._values[rows[known]]
        return out
