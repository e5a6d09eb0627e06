"""Frames in memory: pandas, polars, Arrow, and whatever else gives a stream of Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sparsestore.errors import SourceError
from sparsestore.sources import arrow
from sparsestore.sources.file import printable
from sparsestore.sources.table import rows_within

__all__ = ["FrameTable"]


class FrameTable:
    """A frame as a table. Its index, where it has one, is left out.

    Parameters
    ----------
    data : object with ``__arrow_c_stream__``
        A DataFrame of pandas or polars, a table of Arrow, a relation of DuckDB, ...: see "The Arrow PyCapsule
        Interface" of Arrow's specification.
    """

    unit = "rows"

    def __init__(self, data: Any) -> None:
        pa = arrow.required()
        self.name = f"{type(data).__module__.partition('.')[0]} {type(data).__name__} in memory"
        if any("Sparse" in str(dtype) for dtype in getattr(data, "dtypes", ())):
            raise ValueError(
                f"{self.name}: has sparse columns: convert data.sparse.to_coo(), and its columns beside it"
            )
        if hasattr(data, "reset_index"):  # which copies all of a frame of pandas
            data = data.copy(deep=False)
            data.index = range(len(data))
        self._data = data
        self._once = hasattr(data, "read_next_batch")  # a reader of batches gives them once
        with self._told():
            self.schema: Any = data.schema if self._once else pa.RecordBatchReader.from_stream(self._data).schema
        n = getattr(data, "shape", (None,))[0]
        self.n_rows: int | None = n if isinstance(n, int) and not self._once else None
        self.size: int | None = self.n_rows

    @staticmethod
    def takes(data: Any) -> bool:
        """Whether it gives a stream of Arrow."""
        return hasattr(data, "__arrow_c_stream__")

    def batches(self, columns: Sequence[str], max_bytes: int) -> Iterator[tuple[Any, int]]:
        """Yield batches of these columns, in order, of about so many bytes."""
        n_rows = rows_within(self.schema, columns, max_bytes)
        pa = arrow.required()
        with self._told():
            reader = self._data if self._once else pa.RecordBatchReader.from_stream(self._data)
        row = 0
        while True:
            with self._told():
                batch = next(reader, None)
            if batch is None:
                return
            chosen = batch.select(list(columns))
            for start in range(0, chosen.num_rows, n_rows):
                piece = chosen.slice(start, n_rows)
                row += piece.num_rows
                yield piece, row

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What Arrow can not make of a frame, as a column that has texts and numbers, as a SourceError."""
        try:
            yield
        except arrow.required().ArrowException as error:
            raise SourceError(f"{self.name}: {printable(error)}") from error

    def highest(self, column: str) -> int | None:  # noqa: ARG002
        """Not known."""
        return None

    def provenance(self) -> dict[str, Any]:
        """What it was; nothing more is known."""
        return {"source": self.name}
