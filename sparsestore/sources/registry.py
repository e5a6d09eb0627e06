"""Which formats there are, and the source for a path or an object."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsestore.sources.base import Source
from sparsestore.sources.file import check_file
from sparsestore.sources.options import pythonic
from sparsestore.sources.text import COMPRESSIONS
from sparsestore.storage import local_path

__all__ = ["FORMATS", "Format", "keywords", "open_source"]


_TABLES = {
    "": "wide_table.WideTableSource",
    "row": "triple_table.TripleTableSource",
    "feature": "triple_table.TripleTableSource",
    "indices": "list_table.ListTableSource",
    "vector": "list_table.ListTableSource",
}
"""Source of a typed table, by the first of these options that is given."""


@dataclass(frozen=True, slots=True)
class Format:
    """A line of the table: where a format's source lies, and the suffixes that mean it."""

    shapes: Mapping[str, str]
    """Module and class of the source, by the first of these options that is given; "" where none is."""
    suffixes: tuple[str, ...] = ()
    text: bool = False
    """Whether a suffix of `COMPRESSIONS` may follow."""
    folder: bool = False
    """Whether it may be a folder: then its class looks at what is there."""
    table: str | None = None
    """Module and class of what reads a typed table, from which the source makes rows."""
    schemes: tuple[str, ...] = ()
    """What an address that is no path begins with."""

    def load(self, options: Mapping[str, Any]) -> tuple[type[Any], type[Any] | None]:
        """Import the class of the source for some options, and that of its typed table."""
        shape = next((option for option in self.shapes if option and option in options), "")
        return _class(self.shapes[shape]), _class(self.table) if self.table else None


def _class(name: str) -> type[Any]:
    module, _, name = name.partition(".")
    loaded: type[Any] = getattr(importlib.import_module(f"sparsestore.sources.{module}"), name)
    return loaded


def _text(name: str, *suffixes: str, **shapes: str) -> Format:
    return Format({"": name, **shapes}, suffixes, text=True)


FORMATS = {
    "svmlight": _text("svmlight.SvmlightSource", ".svmlight", ".svm", ".libsvm"),
    "matrix_market": _text("matrix_market.MatrixMarketSource", ".mtx", ".mm"),
    "csv": _text("csv.CsvSource", ".csv", ".tsv", row="triples.CsvTriplesSource", feature="triples.CsvTriplesSource"),
    "libffm": _text("libffm.LibffmSource", ".ffm", ".libffm"),
    "vw": _text("vw.VwSource", ".vw"),
    "uci": _text("uci.UciSource", ".uci"),
    "lda_c": _text("lda_c.LdaCSource", ".ldac", ".blei"),
    "arff": _text("arff.ArffSource", ".arff"),
    "tfrecord": _text("tfrecord.TfrecordSource", ".tfrecord", ".tfrecords"),
    "npz": Format({"": "npz.NpzSource"}, (".npz",)),
    "npy": Format({"": "npy.NpySource"}, (".npy",)),
    "hdf5": Format({"": "hdf5.Hdf5Source"}, (".h5", ".hdf5")),
    "h5ad": Format({"": "h5ad.H5adSource"}, (".h5ad",), folder=True),
    "tenx": Format({"": "tenx.TenxSource"}, folder=True),
    "binsparse": Format({"": "binsparse.BinsparseSource"}, folder=True),
    "parquet": Format(_TABLES, (".parquet", ".pq"), table="parquet.ParquetTable"),
    "arrow": Format(_TABLES, (".arrow", ".feather", ".ipc"), table="arrow_file.ArrowTable"),
    "duckdb": Format(_TABLES, (".duckdb",), table="queries.DuckdbQuery", schemes=("duckdb:",)),
    "sqlite": Format(_TABLES, (".sqlite", ".sqlite3"), table="queries.SqliteQuery"),
    "postgresql": Format(_TABLES, table="queries.PostgresqlQuery", schemes=("postgresql:", "postgres:")),
    "sparsestore": Format({"": "store.StoreSource"}, (".zarr",), folder=True),
}


def open_source(data: Any, *, format: str | None = None, **options: Any) -> Source:
    """Open a file, or an object in memory, as a source of rows.

    Parameters
    ----------
    data : path, scipy.sparse matrix or array, numpy array, frame, Store, View, Source, or iterable
        A path may be a ``file://`` URL, or the address of a database (``"postgresql://host/name"``). Frames are those
        of pandas, polars and Arrow; an iterable gives blocks (x, y).
    format : str, optional
        A key of `FORMATS`; by default the file's suffix tells. The content is never asked: an LDA-C file parses as
        svmlight without an error, its word count becoming the label.
    **options
        As the format's class takes them.

    Raises
    ------
    ValueError
        An unknown format, an option that the format does not have, or an address that is neither.
    FileNotFoundError
    """
    if not isinstance(data, (str, os.PathLike)):
        return _in_memory(data, format, options)
    for name, known in FORMATS.items():
        if known.schemes and str(data).startswith(known.schemes):
            return _made(name, known, data, options)
    path = Path(local_path(data))
    if format is None:
        format = _by_suffix(path)
    elif format not in FORMATS:
        raise ValueError(f"format={format!r} is not known, expected one of {', '.join(FORMATS)}")
    if FORMATS[format].folder and not path.is_file():
        return _made(format, FORMATS[format], path, options)
    check_file(path)
    if path.suffix.lower() in COMPRESSIONS and not FORMATS[format].text:
        raise ValueError(f"{path}: a {format} file can not be read through {path.suffix}: unpack it first")
    return _made(format, FORMATS[format], path, options)


def _by_suffix(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    for name, known in FORMATS.items():
        if plain.suffix.lower() in known.suffixes:
            return name
    table = "; ".join(f"{name} ({' '.join(known.suffixes)})" for name, known in FORMATS.items() if known.suffixes)
    raise ValueError(
        f"{path}: the suffix {plain.suffix!r} tells no format: give format=, one of {table}. "
        f"Text may also be compressed ({' '.join(COMPRESSIONS)})"
    )


def _in_memory(data: Any, format: str | None, options: dict[str, Any]) -> Source:
    if isinstance(data, Source):
        if options:
            raise ValueError(f"{data.name}: is opened already, expected no options, found {', '.join(options)}")
        return data
    from sparsestore.sources.frame import FrameTable
    from sparsestore.sources.iterable import IterableSource
    from sparsestore.sources.memory import MemorySource
    from sparsestore.sources.store import StoreSource

    if format is not None:
        raise ValueError(f"format={format!r} is for files, found a {type(data).__name__} in memory")
    if StoreSource.takes(data):
        known = Format({"": "store.StoreSource"})
    elif FrameTable.takes(data):
        known = Format(_TABLES, table="frame.FrameTable")
    elif IterableSource.takes(data) and not MemorySource.takes(data):
        known = Format({"": "iterable.IterableSource"})
    else:
        known = Format({"": "memory.MemorySource"})
    name = known.shapes[""].partition(".")[0]
    return _made({"store": "sparsestore", "wide_table": "frame"}.get(name, name), known, data, options)


def _made(name: str, known: Format, data: Any, options: dict[str, Any]) -> Source:
    """Make a source, and the typed table that it reads where it reads one, each with its options."""
    options = {option: pythonic(value) for option, value in options.items()}
    source, table = known.load(options)
    own, of_table = keywords(source), keywords(table) if table else {}
    both = {**of_table, **own}
    if unknown := [option for option in options if option not in both]:
        raise ValueError(f"{', '.join(unknown)}: no option of format {name}, expected only {', '.join(both)}")
    missing = [option for option, parameter in both.items() if parameter.default is parameter.empty]
    if missing := [option for option in missing if option not in options]:
        beside = f" beside {', '.join(options)}" if options else ""
        raise ValueError(f"format {name} needs {', '.join(missing)}{beside}")
    for option, value in options.items():  # any text is true: "auto", which other readers know, would be one of them
        wanted = both[option].annotation
        if wanted in ("bool", "bool | None") and not (isinstance(value, bool) or (value is None and wanted != "bool")):
            raise ValueError(f"{option}={value!r}, expected True or False")
    if table is not None:
        data = table(data, **{option: value for option, value in options.items() if option in of_table})
    made: Source = source(data, **{option: value for option, value in options.items() if option in own})
    return made


def keywords(source: type[Any]) -> dict[str, inspect.Parameter]:
    """Options of a class: what its constructor takes by keyword only."""
    parameters = inspect.signature(source).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind == parameter.KEYWORD_ONLY}
