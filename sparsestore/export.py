"""From a store to a file of another format: streamed in bounded memory, there as a whole or not at all."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsestore.errors import ResourceError, StoreExistsError
from sparsestore.exports.base import Table
from sparsestore.exports.registry import format_of, make
from sparsestore.layout import parse_bytes
from sparsestore.progress import Progress, shown
from sparsestore.sources.store import StoreSource
from sparsestore.storage import naming
from sparsestore.view import View

__all__ = ["MIN_BYTES", "Exported", "export"]

MIN_BYTES = 8 << 20
"""The smallest `max_bytes`."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path : str
    format : str
    rows, features : int
    nbytes : int
        Length of the file.
    warnings : list of str
        What the format could not hold, and what a reader must be told.
    """

    path: str
    format: str
    rows: int
    features: int
    nbytes: int
    warnings: list[str]


def export(
    store: str | os.PathLike[str] | View,
    dst: str | os.PathLike[str],
    *,
    format: str | None = None,
    version: int | None = None,
    rows: slice | str | None = None,
    select: Sequence[int] | Sequence[str] | str | None = None,
    overwrite: bool = False,
    max_bytes: int | str = "256MiB",
    progress: Progress | bool | None = None,
    **options: Any,
) -> Exported:
    """Write rows of a store to a file of another format.

    The file is written under a temporary name in the same folder and renamed when it is whole: on an error, or Ctrl-C,
    nothing is left. What the format can not hold is refused, or left out with a `UserWarning` that lists it.

    Memory is at most `max_bytes` and what a compressor takes (`sparsestore.exports.text.write_lines`); npz takes up to
    8 bytes a row beside it. A row that alone exceeds this is held whole.

    Parameters
    ----------
    store : path, Store or View
    dst : str or path-like
        The file. Text may be compressed, by its suffix: .gz, .bz2, .xz or .zst.
    format : str, optional
        A key of `sparsestore.exports.registry.FORMATS`; by default the suffix tells.
    version : int, optional
        Of the store at a path; the newest by default.
    rows : slice or str, optional
        Some of the rows, such as ``slice(1000)`` or ``"1000:2000"``.
    select : sequence of int or str, or str, optional
        Some of the features, renumbered in the order given, as `StoreSource` takes them.
    overwrite : bool
        Replace a file that is there.
    max_bytes : int or str
        Memory; at least 8 MiB.
    progress : callable, bool or None
        Called as ``progress(position, total, "rows")``; as in `sparsestore.progress.shown`.
    **options
        As the format's class takes them: `label`, `zero_based`, `qid`, `feature_names`, `delimiter`, `layout`, ...

    Returns
    -------
    Exported

    Raises
    ------
    FileNotFoundError
        Where there is no store, or no folder for the file.
    FileExistsError
        Where the file is there and `overwrite` is false.
    ValueError
        A bad argument, or something that the format can not hold.
    ImportError
        Where the format's library is not installed; it names the extra.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile, sparsestore as ss
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> store = ss.convert(np.array([[0, 2.5], [1, 0]]), folder / "tiny.zarr", columns={"y": [0, 1]})
    >>> export(store, folder / "tiny.svm").rows
    2
    >>> print((folder / "tiny.svm").read_text(), end="")
    0 2:2.5
    1 1:1
    """
    limit = parse_bytes(max_bytes)
    if limit < MIN_BYTES:
        raise ResourceError(f"max_bytes is {limit}, expected at least {MIN_BYTES} (8 MiB) to work with")
    path = Path(dst)
    format = format_of(path, format)
    source = _Counted(store, rows=rows, select=select, store_version=version)
    _check(path, overwrite)
    with shown("exporting", progress) as report:
        table = Table(source, source.feature_names, limit, report)
        exporter = make(format, table, path, options)
        said = []
        if exporter.left_out:
            said.append(f"{path}: {format} can not hold {', '.join(exporter.left_out)}: left out")
            warnings.warn(said[0], stacklevel=2)
        with _replacing(path, overwrite) as temporary:
            notes = [f"{path}: {note}" for note in exporter.write(temporary)]
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return Exported(str(path), format, table.n_rows, table.n_features, path.stat().st_size, said + notes)


class _Counted(StoreSource):
    """A store that knows its number of entries where that costs no reading of them."""

    @property
    def nnz(self) -> int | None:
        """Entries, or None where they have to be read to be counted."""
        return self._view.nnz if self._features is None else None


def _check(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise StoreExistsError(f"{path}: is a folder, expected a file")
    if path.is_symlink() and not path.exists() and not overwrite:
        raise StoreExistsError(
            f"{path}: is a link to what is not there: choose another name, or pass overwrite=True (--overwrite)"
        )
    if path.exists() and not overwrite:
        raise StoreExistsError(f"{path}: is there already: choose another name, or pass overwrite=True (--overwrite)")
    if path.exists() and not path.is_file():
        raise StoreExistsError(f"{path}: is a pipe or a device, expected a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")


@contextmanager
def _replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """An empty file that gets its name when the block ends, and goes where it raises."""
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(path):
            temporary.open("xb").close()
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if overwrite:
                temporary.replace(path)
            else:
                _rename(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _rename(temporary: Path, path: Path) -> None:
    """Give a file its name, unless another process made one of that name meanwhile."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise StoreExistsError(f"{path}: was made by another process meanwhile") from None
    except OSError:  # no links on this file system
        _check(path, overwrite=False)
        temporary.replace(path)
    else:
        with suppress(OSError):  # the first time of two: the other is for an interrupt that comes in this one
            temporary.unlink()
