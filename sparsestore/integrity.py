"""verify: every object of a version, and every row, compared with what was written."""

from __future__ import annotations

import numpy as np

from sparsestore.errors import CorruptStoreError, SparsestoreError
from sparsestore.manifest import versions
from sparsestore.reader import Reader, check_rows

__all__ = ["verify"]

_STEP_BYTES = 16 << 20


def verify(reader: Reader, *, deep: bool = True) -> list[str]:
    """All problems of a version, a line each; an empty list when it is sound.

    Parameters
    ----------
    reader : Reader
    deep : bool
        Compare every byte with its crc32c and check every row: sorted column numbers within range. Otherwise only that
        each object is there, with the right length.

    Notes
    -----
    Memory: at most 64 MiB (a block of rows as stored, decoded and copied out), and about a byte a row for the offsets.
    """
    problems: list[str] = []
    storage = reader.storage
    if reader.version not in versions(storage):
        problems.append(f"{storage.name}: version {reader.version}: its manifest is gone")
    for number in range(len(reader.lines)):
        found = _verify_objects(reader, number, deep)
        if deep and not found:
            found = _verify_rows(reader, number)
        problems += found
    return problems


def _verify_objects(reader: Reader, number: int, deep: bool) -> list[str]:
    line, start = reader.lines[number], int(reader.segment_starts[number])
    rows = f"rows {start} to {start + line.rows}"
    where = f"{reader.storage.name}: version {reader.version}"
    try:
        entries = reader.objects(number)
    except (SparsestoreError, OSError) as error:
        return [str(error)]
    problems = []
    for entry in entries:
        try:
            length = reader.storage.length(entry.key)
        except FileNotFoundError:
            problems.append(f"{where}, {entry.key} ({rows}): the object is missing")
            continue
        except CorruptStoreError as error:
            problems.append(str(error))
            continue
        if length != entry.length:
            problems.append(f"{where}, {entry.key} ({rows}): it has {length} bytes, expected {entry.length}")
            continue
        if deep:
            try:
                found = reader.storage.crc32c(entry.key)
            except OSError as error:
                problems.append(f"{where}, {entry.key} ({rows}): {error}")
                continue
            if found != entry.crc32c:
                problems.append(
                    f"{where}, {entry.key}, bytes 0 to {length} ({rows}): "
                    f"crc32c {found:08x}, expected {entry.crc32c:08x}"
                )
    return problems


def _verify_rows(reader: Reader, number: int) -> list[str]:
    """CSR invariants of a segment whose bytes are those that were written: a writer may have been wrong too."""
    line, start = reader.lines[number], int(reader.segment_starts[number])
    a_row = 64 + line.nnz / line.rows * 12
    step = max(1, int(_STEP_BYTES / a_row))
    problems = []
    for first in range(start, start + line.rows, step):
        last = min(first + step, start + line.rows)
        where = f"{reader.storage.name}: version {reader.version}, segments/{line.id} (rows {first} to {last})"
        try:
            check_rows(reader.read(first, last), where)
            for name in reader.columns:
                reader.column(name, np.arange(first, last))
        except (SparsestoreError, OSError) as error:
            problems.append(str(error))
    return problems
