"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsestore.errors import SourceError
from sparsestore.sources import arrow, options
from sparsestore.sources.file import FileState
from sparsestore.sources.table import rows_within

__all__ = ["ParquetTable"]

_BUFFER = 1 << 16  # for each column that is read


class ParquetTable:
    """A Parquet file as a table. Pages are read one after the other, never a whole column of a row group.

    Parameters
    ----------
    path : Path
    """

    unit = "rows"
    format = "parquet"

    def __init__(self, path: Path) -> None:
        pa = arrow.required()
        self.name = str(path)
        self._path = path
        self._state = FileState.of(path)
        with self._opened() as file:
            self.schema: Any = file.schema_arrow
            self._metadata = file.metadata
        self._pa = pa
        self.n_rows: int | None = int(self._metadata.num_rows)
        self.size: int | None = self.n_rows

    def _opened(self) -> Any:
        """The file; what Arrow says is said of it."""
        pa = arrow.required()
        import pyarrow.parquet as parquet

        try:
            # with pre_buffer Arrow would keep what it read: 0.9 GiB of 100 million triples
            return parquet.ParquetFile(
                self._path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(f"{self.name}: is no Parquet file that can be read: {_line(error)}") from error

    def batches(self, columns: Sequence[str], max_bytes: int) -> Iterator[tuple[Any, int]]:
        """Yield batches of these columns, in order, of about so many bytes."""
        pa = self._pa
        row = 0
        with self._opened() as file:
            try:
                for batch in file.iter_batches(batch_size=self._step(columns, max_bytes), columns=list(columns)):
                    row += batch.num_rows
                    yield batch.select(list(columns)), row
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise SourceError(f"{self.name}: damaged behind row {row}: {_line(error)}") from error
        self._state.check(self._path)
        if row != self.n_rows:
            raise SourceError(f"{self.name}: has {row} rows, expected {self.n_rows} as it says itself")

    def _step(self, columns: Sequence[str], max_bytes: int) -> int:
        """Rows of a batch: fewer where a row is long, by what the file says of its columns."""
        groups = [self._metadata.row_group(number) for number in range(min(self._metadata.num_row_groups, 8))]
        wanted = set(columns)
        rows = sum(group.num_rows for group in groups)
        size = 0
        for group in groups:
            for number in range(group.num_columns):
                column = group.column(number)
                if column.path_in_schema.split(".")[0] in wanted:
                    size += column.total_uncompressed_size
        most = max_bytes * max(rows, 1) // max(size, 1)
        return int(max(1, min(most, rows_within(self.schema, columns, max_bytes))))

    def highest(self, column: str) -> int | None:
        """The highest number of a column, where each row group says it."""
        number = {self._metadata.schema.column(at).path: at for at in range(self._metadata.num_columns)}.get(column)
        if number is None:
            return None
        found = -1
        for at in range(self._metadata.num_row_groups):
            group = self._metadata.row_group(at)
            statistics = group.column(number).statistics
            if not group.num_rows:
                continue
            if statistics is None or not statistics.has_min_max or not isinstance(statistics.max, int):
                return None
            found = max(found, int(statistics.max))
        return found

    def provenance(self) -> dict[str, Any]:
        """Path, size and time of change."""
        return options.provenance(self._path, self.format, {})


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
