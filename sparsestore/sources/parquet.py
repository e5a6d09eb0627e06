"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsestore.errors import SourceError
from sparsestore.sources import arrow, options
from sparsestore.sources.file import FileState, printable
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
            self.schema: Any = arrow.readable(file.schema_arrow, self.name)
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
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last one of names
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(f"{self.name}: is no Parquet file that can be read: {printable(error)}") from error

    def batches(self, columns: Sequence[str], max_bytes: int) -> Iterator[tuple[Any, int]]:
        """Yield batches of these columns, in order, of about so many bytes."""
        row = 0
        with self._opened() as file:
            with self._reading("row 0"):
                step = self._step(file, columns, max_bytes)
            read = file.iter_batches(batch_size=step, columns=list(columns))
            while True:
                with self._reading(f"row {row}"):
                    batch = next(read, None)
                if batch is None:
                    break
                row += batch.num_rows
                yield batch.select(list(columns)), row
        self._state.check(self._path)
        if row != self.n_rows:
            raise SourceError(f"{self.name}: has {row} rows, expected {self.n_rows} as it says itself")

    @contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        """What Arrow says of damage, as a SourceError."""
        try:
            yield
        except (self._pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last one of names
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(f"{self.name}: damaged behind {where}: {printable(error)}") from error

    def _step(self, file: Any, columns: Sequence[str], max_bytes: int) -> int:
        """Rows of a batch: fewer where a row is long, by what the file says of its columns."""
        numbers = range(min(self._metadata.num_row_groups, 8))
        groups = [self._metadata.row_group(number) for number in numbers]
        rows = max(1, sum(group.num_rows for group in groups))
        most = rows_within(self.schema, columns, max_bytes)
        if most * sum(group.total_byte_size for group in groups) <= max_bytes * rows:
            return most
        paths = [self._metadata.schema.column(at).path for at in range(self._metadata.num_columns)]
        wanted, size = set(columns), 0
        for number, group in zip(numbers, groups, strict=True):
            self._try(file, number, columns)
            size += sum(
                group.column(at).total_uncompressed_size
                for at, path in enumerate(paths)
                if path in wanted or path.split(".")[0] in wanted
            )
        return int(max(1, min(max_bytes * rows // max(size, 1), most)))

    @staticmethod
    def _try(file: Any, group: int, columns: Sequence[str]) -> None:
        """Read a row of a group: where it is damaged what the file says of its columns, to ask would end the process.

        Arrow's reader raises, Arrow's metadata do not.
        """
        next(file.iter_batches(batch_size=1, row_groups=[group], columns=list(columns)), None)

    def highest(self, column: str) -> int | None:
        """The highest number of a column, where each row group says it."""
        found = -1
        with self._opened() as file, self._reading(f"the statistics of {column!r}"):
            schema = self._metadata.schema
            number = {schema.column(at).path: at for at in range(self._metadata.num_columns)}.get(column)
            if number is None:
                return None
            for at in range(self._metadata.num_row_groups):
                group = self._metadata.row_group(at)
                self._try(file, at, [column])
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
