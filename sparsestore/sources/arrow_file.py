"""Files of Arrow's own format, Feather version 2 among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsestore.errors import SourceError
from sparsestore.sources import arrow, options
from sparsestore.sources.file import FileState, printable
from sparsestore.sources.table import rows_within

__all__ = ["ArrowTable"]


class ArrowTable:
    """An Arrow IPC file (not a stream) as a table, a record batch of it at a time, which is as large as it was written.

    Parameters
    ----------
    path : Path
    """

    unit = "rows"
    format = "arrow"

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._state = FileState.of(path)
        self._pa = arrow.required()
        with self._read() as reader:
            self.schema: Any = arrow.readable(reader.schema, self.name)
        self.n_rows: int | None = None
        self.size: int | None = None

    def _read(self) -> Any:
        import pyarrow.ipc as ipc

        try:
            return ipc.open_file(self._pa.OSFile(str(self._path)))
        except (self._pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(f"{self.name}: is no Arrow file that can be read: {printable(error)}") from error

    def batches(self, columns: Sequence[str], max_bytes: int) -> Iterator[tuple[Any, int]]:
        """Yield batches of these columns, in order, of about so many bytes."""
        n_rows = rows_within(self.schema, columns, max_bytes)
        row = 0
        with self._read() as reader:
            for number in range(reader.num_record_batches):
                try:
                    batch = reader.get_batch(number).select(list(columns))
                    batch.validate(full=True)
                except (self._pa.ArrowException, OSError) as error:
                    raise SourceError(f"{self.name}: batch {number} is damaged: {printable(error)}") from error
                for start in range(0, batch.num_rows, n_rows):
                    piece = batch.slice(start, n_rows)
                    row += piece.num_rows
                    yield piece, row
        self._state.check(self._path)

    def highest(self, column: str) -> int | None:  # noqa: ARG002
        """Not known."""
        return None

    def provenance(self) -> dict[str, Any]:
        """Path, size and time of change."""
        return options.provenance(self._path, self.format, {})
