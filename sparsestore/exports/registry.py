"""Which output formats there are, and the one for a path."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsestore.exports.base import Exporter, Table
from sparsestore.exports.text import COMPRESSIONS

__all__ = ["FORMATS", "Format", "format_of", "make"]


@dataclass(frozen=True, slots=True)
class Format:
    """A line of the table: where a format lies, and the suffixes that mean it."""

    module: str
    name: str
    suffixes: tuple[str, ...]
    text: bool = False
    """Whether a suffix of `COMPRESSIONS` may follow."""

    def load(self) -> type[Any]:
        """Import the class."""
        loaded: type[Any] = getattr(importlib.import_module(f"sparsestore.exports.{self.module}"), self.name)
        return loaded


FORMATS = {
    "svmlight": Format("svmlight", "SvmlightExport", (".svmlight", ".svm", ".libsvm"), text=True),
    "matrix_market": Format("matrix_market", "MatrixMarketExport", (".mtx", ".mm"), text=True),
    "csv": Format("triples", "TriplesExport", (".csv", ".tsv"), text=True),
    "npz": Format("npz", "NpzExport", (".npz",)),
    "parquet": Format("parquet", "ParquetExport", (".parquet",)),
    "h5ad": Format("h5ad", "H5adExport", (".h5ad",)),
}


def format_of(path: Path, format: str | None) -> str:
    """The format's name: as given, or as the suffix tells.

    Raises
    ------
    ValueError
    """
    compressed = path.suffix.lower() in COMPRESSIONS
    plain = path.with_suffix("") if compressed else path
    if format is None:
        format = next((name for name, known in FORMATS.items() if plain.suffix.lower() in known.suffixes), None)
    if format is None:
        table = "; ".join(f"{name} ({' '.join(known.suffixes)})" for name, known in FORMATS.items())
        raise ValueError(
            f"{path}: the suffix {plain.suffix!r} tells no format: give format=, one of {table}. "
            f"Text may also be compressed ({' '.join(COMPRESSIONS)})"
        )
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known, expected one of {', '.join(FORMATS)}")
    if compressed and not FORMATS[format].text:
        raise ValueError(f"{path}: a {format} file is not compressed as a whole: leave out {path.suffix}")
    return format


def make(format: str, table: Table, path: Path, options: dict[str, Any]) -> Exporter:
    """The exporter of a format.

    Raises
    ------
    ValueError
        Where the format has no such option, or can not hold the table.
    """
    loaded = FORMATS[format].load()
    parameters = inspect.signature(loaded).parameters.values()
    known = [each.name for each in parameters if each.kind == each.KEYWORD_ONLY and each.name != "tabs"]
    if unknown := [option for option in options if option not in known]:
        raise ValueError(
            f"{', '.join(unknown)}: no option of format {format}, expected only {', '.join(known) or 'none'}"
        )
    suffix = path.suffix.lower()
    if format == "csv":
        options = {**options, "tabs": ".tsv" in [part.lower() for part in path.suffixes[-2:]]}
    made: Exporter = loaded(table, suffix if suffix in COMPRESSIONS else "", **options)
    return made
