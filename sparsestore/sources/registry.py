"""Which formats there are, and the source for a path or an object."""

from __future__ import annotations

import importlib
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsestore.sources.base import Source
from sparsestore.sources.file import check_file
from sparsestore.sources.text import COMPRESSIONS

__all__ = ["FORMATS", "Format", "open_source"]


@dataclass(frozen=True, slots=True)
class Format:
    """A line of the table: where a format's source lies, and the suffixes that mean it."""

    module: str
    name: str
    suffixes: tuple[str, ...]
    text: bool
    """Whether a suffix of `COMPRESSIONS` may follow."""
    folder: bool = False
    """Whether it may be a folder: then its class looks at what is there."""

    def load(self) -> type[Any]:
        """Import the class."""
        loaded: type[Any] = getattr(importlib.import_module(f"sparsestore.sources.{self.module}"), self.name)
        return loaded


FORMATS = {
    "svmlight": Format("svmlight", "SvmlightSource", (".svmlight", ".svm", ".libsvm"), text=True),
    "matrix_market": Format("matrix_market", "MatrixMarketSource", (".mtx", ".mm"), text=True),
    "csv": Format("csv", "CsvSource", (".csv", ".tsv"), text=True),
    "libffm": Format("libffm", "LibffmSource", (".ffm", ".libffm"), text=True),
    "uci": Format("uci", "UciSource", (".uci",), text=True),
    "lda_c": Format("lda_c", "LdaCSource", (".ldac", ".blei"), text=True),
    "npz": Format("npz", "NpzSource", (".npz",), text=False),
    "npy": Format("npy", "NpySource", (".npy",), text=False),
    "hdf5": Format("hdf5", "Hdf5Source", (".h5", ".hdf5"), text=False),
    "h5ad": Format("h5ad", "H5adSource", (".h5ad",), text=False, folder=True),
    "tenx": Format("tenx", "TenxSource", (), text=False, folder=True),
    "binsparse": Format("binsparse", "BinsparseSource", (), text=False, folder=True),
    "sparsestore": Format("store", "StoreSource", (".zarr",), text=False, folder=True),
}


def open_source(data: Any, *, format: str | None = None, **options: Any) -> Source:
    """Open a file, or an object in memory, as a source of rows.

    Parameters
    ----------
    data : path, scipy.sparse matrix or array, numpy array, Store, View, Source, or iterable of blocks (x, y)
    format : str, optional
        A key of `FORMATS`; by default the file's suffix tells. The content is never asked: an LDA-C file parses as
        svmlight without an error, its word count becoming the label.
    **options
        As the format's class takes them.

    Raises
    ------
    ValueError
        An unknown format, or an option that the format does not have.
    FileNotFoundError
    """
    if not isinstance(data, (str, os.PathLike)):
        return _in_memory(data, format, options)
    path = Path(data)
    if format is None:
        format = _by_suffix(path)
    elif format not in FORMATS:
        raise ValueError(f"format={format!r} is not known, expected one of {', '.join(FORMATS)}")
    if FORMATS[format].folder and not path.is_file():
        return _made(FORMATS[format].load(), format, path, options)
    check_file(path)
    if path.suffix.lower() in COMPRESSIONS and not FORMATS[format].text:
        raise ValueError(f"{path}: a {format} file can not be read through {path.suffix}: unpack it first")
    return _made(FORMATS[format].load(), format, path, options)


def _by_suffix(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    for name, known in FORMATS.items():
        if plain.suffix.lower() in known.suffixes:
            return name
    table = "; ".join(f"{name} ({' '.join(known.suffixes)})" for name, known in FORMATS.items())
    raise ValueError(
        f"{path}: the suffix {plain.suffix!r} tells no format: give format=, one of {table}. "
        f"Text may also be compressed ({' '.join(COMPRESSIONS)})"
    )


def _in_memory(data: Any, format: str | None, options: dict[str, Any]) -> Source:
    if isinstance(data, Source):
        if options:
            raise ValueError(f"{data.name}: is opened already, expected no options, found {', '.join(options)}")
        return data
    from sparsestore.sources.iterable import IterableSource
    from sparsestore.sources.memory import MemorySource
    from sparsestore.sources.store import StoreSource

    if format is not None:
        raise ValueError(f"format={format!r} is for files, found a {type(data).__name__} in memory")
    if StoreSource.takes(data):
        return _made(StoreSource, "sparsestore", data, options)
    if IterableSource.takes(data) and not MemorySource.takes(data):
        return _made(IterableSource, "iterable", data, options)
    return _made(MemorySource, "memory", data, options)


def _made(source: type[Any], name: str, data: Any, options: dict[str, Any]) -> Source:
    known = [
        parameter
        for parameter in inspect.signature(source).parameters.values()
        if parameter.kind == parameter.KEYWORD_ONLY
    ]
    names = [parameter.name for parameter in known]
    if unknown := [option for option in options if option not in names]:
        raise ValueError(f"{', '.join(unknown)}: no option of format {name}, expected only {', '.join(names)}")
    made: Source = source(data, **options)
    return made
