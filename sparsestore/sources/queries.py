"""Queries of databases as tables: DuckDB, SQLite, PostgreSQL. Read once, in the order in which the database answers."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sparsestore.errors import SourceError
from sparsestore.sources import arrow
from sparsestore.sources.file import printable
from sparsestore.sources.table import rows_within

__all__ = ["DuckdbQuery", "PostgresqlQuery", "SqliteQuery"]

_ROWS = 1 << 14


class _Query:
    """What the queries have in common."""

    unit = "rows"
    n_rows: int | None = None
    size: int | None = None
    format = ""

    def __init__(self, address: str, sql: str) -> None:
        if not sql.strip():
            raise ValueError(f"{self.format}: sql is empty, expected a query such as 'select * from visits'")
        self.name = f"{self.format} {address}"
        self._sql = sql
        self._address = address

    def highest(self, column: str) -> int | None:  # noqa: ARG002
        """Not known."""
        return None

    def provenance(self) -> dict[str, Any]:
        """The database and the query; no user, no password. A query is no file, so that nothing is resumed."""
        return {"source": self.name, "format": self.format, "sql": self._sql}


class DuckdbQuery(_Query):
    """Rows of a query of DuckDB, of a database or of the files that the query names.

    DuckDB takes at most 512 MiB beside `max_bytes`, and spills to `TMPDIR`.

    Parameters
    ----------
    address : path, or "duckdb:"
        A database, opened for reading; the latter is an empty one in memory, for queries of files.
    sql : str
    """

    format = "duckdb"

    def __init__(self, address: Path, *, sql: str) -> None:
        super().__init__("" if str(address) == "duckdb:" else str(address), sql)
        self.name = self.name.strip()
        with self._connected() as connection:
            try:
                self.schema: Any = connection.sql(f"select * from ({_body(sql)}) limit 0").to_arrow_table().schema
            except Exception as error:
                raise SourceError(f"{self.name}: the query fails: {printable(error, 300)}") from error

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            import duckdb
        except ImportError as error:
            raise ImportError(
                f'queries of DuckDB need duckdb ({error}): pip install "sparsestore[sql]"', name="duckdb"
            ) from error
        arrow.required()
        try:
            connection = duckdb.connect(self._address or ":memory:", read_only=bool(self._address))
        except duckdb.Error as error:
            raise SourceError(f"{self.name}: can not be opened: {printable(error, 300)}") from error
        with closing(connection):
            connection.execute("set memory_limit='512MiB'")
            connection.execute("set preserve_insertion_order=true")  # else an "order by" may be lost
            yield connection

    def batches(self, columns: Sequence[str], max_bytes: int) -> Iterator[tuple[Any, int]]:
        """Yield batches of these columns, in order, of about so many bytes."""
        n_rows = rows_within(self.schema, columns, max_bytes)
        row = 0
        with self._connected() as connection:
            try:
                # con.sql and not con.execute, which loses the order of batches
                for batch in connection.sql(self._sql).to_arrow_reader(n_rows):
                    row += batch.num_rows
                    yield batch.select(list(columns)), row
            except Exception as error:
                if isinstance(error, SourceError):
                    raise
                raise SourceError(f"{self.name}: the query fails behind row {row}: {printable(error, 300)}") from error


class SqliteQuery(_Query):
    """Rows of a query of SQLite, read by Python's own module.

    SQLite's values have types, its columns none: a column is of whole numbers, of floats, or of text, as its first
    16,384 values are; whole numbers may become floats there, any other change later is an error.

    Parameters
    ----------
    path : Path
    sql : str
    """

    format = "sqlite"

    def __init__(self, path: Path, *, sql: str) -> None:
        super().__init__(str(path), sql)
        pa = arrow.required()
        with self._cursor() as cursor:
            names = [column[0] for column in cursor.description]
            rows = cursor.fetchmany(_ROWS)
        values = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        fields = []
        for name, column in zip(names, values, strict=True):
            try:
                type_ = pa.array(column).type
            except pa.ArrowException:
                kinds = ", ".join(sorted({type(value).__name__ for value in column if value is not None}))
                if {type(value) for value in column if value is not None} <= {int, float}:
                    type_ = pa.float64()
                else:
                    raise SourceError(
                        f"{self.name}: column {name!r} has values of {kinds}, expected one type: cast it in the query"
                    ) from None
            fields.append(pa.field(name, pa.string() if pa.types.is_null(type_) else type_))
        self.schema: Any = pa.schema(fields)

    @contextmanager
    def _cursor(self) -> Iterator[sqlite3.Cursor]:
        connection = sqlite3.connect(f"{Path(self._address).absolute().as_uri()}?mode=ro", uri=True)
        with closing(connection):
            try:
                cursor = connection.execute(self._sql)
                if cursor.description is None:
                    raise SourceError(f"{self.name}: the query gives no columns, expected a select")
                yield cursor
            except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter of names, and of SQLite's own messages
                raise SourceError(f"{self.name}: the query fails: {printable(error, 300)}") from error

    def batches(self, columns: Sequence[str], max_bytes: int) -> Iterator[tuple[Any, int]]:
        """Yield batches of these columns, in order, of about so many bytes."""
        n_rows = rows_within(self.schema, columns, max_bytes)
        pa = arrow.required()
        row = 0
        with self._cursor() as cursor:
            while rows := cursor.fetchmany(min(n_rows, _ROWS)):
                arrays = []
                for field, values in zip(self.schema, zip(*rows, strict=True), strict=True):
                    self._check(field, values, row)
                    try:
                        arrays.append(pa.array(values, field.type))
                    except (pa.ArrowException, TypeError) as error:
                        where = f"{self.name}: rows {row} to {row + len(rows)}, column {field.name!r}"
                        raise SourceError(
                            f"{where}: {printable(error, 300)}: "
                            f"expected {field.type} as in the first rows: cast it in the query"
                        ) from error
                row += len(rows)
                yield pa.record_batch(arrays, schema=self.schema).select(list(columns)), row

    def _check(self, field: Any, values: Sequence[Any], first: int) -> None:
        """Raise where a value would become another one: Arrow cuts off the fraction of Python's floats."""
        if not arrow.required().types.is_integer(field.type):
            return
        for row, value in enumerate(values, first):
            if type(value) is float and not value.is_integer():
                raise SourceError(
                    f"{self.name}: row {row}, column {field.name!r}: {value}, expected {field.type} as in the first "
                    "rows: cast it in the query"
                )


class PostgresqlQuery(_Query):
    """Rows of a query of PostgreSQL, streamed by COPY (ADBC), so that neither side holds them.

    Parameters
    ----------
    address : str
        ``postgresql://host/database``, or ``postgresql:``; what is not said libpq finds in the environment
        (``PGHOST``, ``PGUSER``, ``PGPASSWORD``, ``~/.pgpass``, ...). A password in it is used and forgotten: no
        message and no store has it.
    sql : str
    dsn : str, optional
        Anything else that libpq understands, in place of the address; by default the environment's
        ``SPARSESTORE_DSN``.
    """

    format = "postgresql"

    def __init__(self, address: str, *, sql: str, dsn: str | None = None) -> None:
        bare = str(address) in ("postgresql:", "postgres:", "postgresql://")
        given = dsn if dsn is not None else os.environ.get("SPARSESTORE_DSN") if bare else None
        self._dsn = given if given is not None else "postgresql://" if bare else str(address)
        super().__init__(_public(self._dsn), sql)
        self.name = self.name.strip()
        with self._executed(f"select * from ({_body(sql)}) as q limit 0") as reader:
            self.schema: Any = reader.schema

    @contextmanager
    def _executed(self, sql: str) -> Iterator[Any]:
        arrow.required()
        try:
            from adbc_driver_postgresql import dbapi
        except ImportError as error:
            raise ImportError(
                f'PostgreSQL needs adbc-driver-postgresql ({error}): pip install "sparsestore[sql]"',
                name="adbc_driver_postgresql",
            ) from error
        try:
            connection = dbapi.connect(self._dsn)
        except dbapi.Error as error:
            raise SourceError(f"{self.name}: can not be reached: {self._told(error)}") from None
        with closing(connection), closing(connection.cursor()) as cursor:
            try:
                cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(4 << 20)})
                cursor.execute(sql)
                yield cursor.fetch_record_batch()
            except dbapi.Error as error:
                raise SourceError(f"{self.name}: the query fails: {self._told(error)}") from None

    def batches(self, columns: Sequence[str], max_bytes: int) -> Iterator[tuple[Any, int]]:
        """Yield batches of these columns, in order, of about so many bytes."""
        n_rows = rows_within(self.schema, columns, max_bytes)
        row = 0
        with self._executed(_body(self._sql)) as reader:  # which ADBC puts into a COPY
            try:
                for batch in reader:
                    chosen = batch.select(list(columns))
                    for start in range(0, chosen.num_rows, n_rows):
                        piece = chosen.slice(start, n_rows)
                        row += piece.num_rows
                        yield piece, row
            except (arrow.required().ArrowException, OSError) as error:  # Arrow's error of a stream is Python's
                raise SourceError(f"{self.name}: the query fails behind row {row}: {self._told(error)}") from None

    def _told(self, error: BaseException) -> str:
        """What went wrong, without anything of the address that is no host or database."""
        text = printable(error, 300)
        parts = urlsplit(self._dsn) if "://" in self._dsn else None
        secrets = [parts.password, parts.query] if parts else self._dsn.split()
        for secret in secrets:
            text = text.replace(secret, "...") if secret else text
        return text


def _public(dsn: str) -> str:
    """Host and database of an address."""
    if "://" not in dsn:
        words = dict(word.split("=", 1) for word in dsn.split() if "=" in word)
        return f"{words.get('host', '')}/{words.get('dbname', '')}".strip("/")
    parts = urlsplit(dsn)
    return f"{parts.hostname or ''}{parts.path}"


def _body(sql: str) -> str:
    """A query as part of another: what comes behind it is in no comment at its end."""
    return f"{sql.strip().rstrip(';')}\n"
