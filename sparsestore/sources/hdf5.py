"""A dense matrix in an HDF5 file: a dataset of two dimensions, and labels in others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from sparsestore.errors import SourceError
from sparsestore.sources import containers, layouts, options
from sparsestore.sources.base import Block
from sparsestore.sources.containers import Container
from sparsestore.sources.file import FileState, shown

__all__ = ["Hdf5Source"]

_MOST_OBJECTS = 10_000  # that are looked at where no dataset was named
_DEEPEST = 16
_GENOMES = 16


class Hdf5Source:
    """Rows of a dense dataset of an HDF5 file; zeros are no entries.

    `blocks` holds at most `max_bytes`, and two chunks of at most `max_bytes` (or 1 MiB) each, a dataset with larger
    ones being refused. Whole chunks are read where that memory holds a row of them; otherwise each is read again for
    every part of its rows. Nothing is read beyond the file: see `hdf5_file.Hdf5File`.

    Parameters
    ----------
    path : Path
    dataset : str, optional
        Name of the dataset, such as "features/train"; needed where the file has more than one of two dimensions.
    label, weight : str, optional
        Names of datasets with a number for each row, which become the columns "y" and "sample_weight".
    n_features : int, optional
        A larger width than the dataset has.
    dtype : optional
        Another dtype of the values.
    """

    unit = "rows"
    sorted_rows = True

    def __init__(
        self,
        path: Path,
        *,
        dataset: str | None = None,
        label: str | None = None,
        weight: str | None = None,
        n_features: int | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        self.name = str(path)
        self._path = path
        self._state = FileState.of(path)
        self._beside: dict[str, str] = {}  # where columns are
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._meanings: dict[str, dict[str, list[str]]] = {}  # of numbers of enumerations
        with containers.opened(path, containers.HEADER_BYTES) as box:
            self._dataset = _only_matrix(box) if dataset is None else dataset
            stored = containers.numbers(box.array(self._dataset))
            if len(stored.shape) != 2:
                raise SourceError(f"{stored.name}: has shape {stored.shape}, expected 2 dimensions: (rows, features)")
            self._shape = stored.shape[0], stored.shape[1]
            if told := _enumeration(stored.dtype):
                self._meanings["feature_categories"] = {self._dataset: told}
            options.check_rows(stored.name, self._shape[0], prod(stored.shape))
            for name, where in (("y", label), ("sample_weight", weight)):
                if where is not None:
                    column = containers.numbers(containers.vector(box.array(where), self._shape[0]))
                    self._beside[name] = where
                    self.columns[name] = column.dtype.name, ()
                    if told := _enumeration(column.dtype):
                        self._meanings.setdefault("categories", {})[name] = told
        self._width = options.width(stored.name, self._shape[1], n_features)
        self._dtype = options.value_dtype(stored.name, stored.dtype, dtype)
        self._options = {
            "dataset": dataset,
            "label": label,
            "weight": weight,
            "n_features": n_features,
            "dtype": None if dtype is None else str(self._dtype),
        }
        self.n_rows: int | None = self._shape[0]
        self.n_features: int | None = self._width
        self.dtype: np.dtype[Any] | None = self._dtype
        self.size: int | None = self._shape[0]
        self._rows_read = 0, self._shape[0]

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, the dataset, the options, and what numbers of enumerations stand for."""
        facts = options.provenance(self._path, "hdf5", self._options)
        return {**facts, "dataset": self._dataset, **self._meanings}

    def parts(self, n: int) -> list[Hdf5Source]:
        """Sources of at most n consecutive parts of the rows."""
        found = list[Hdf5Source]()
        for start, stop in options.ranges(self._shape[0], n):
            part = copy.copy(self)
            part._rows_read, part.n_rows, part.size = (start, stop), stop - start, stop - start
            found.append(part)
        return found

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        self._state.check(self._path)
        with containers.opened(self._path, max_bytes) as box:
            read = containers.banded(box.array(self._dataset), max_bytes // 4)
            columns = {name: box.array(where) for name, where in self._beside.items()}
            first, end = self._rows_read
            made: dict[str, Any] = {"width": self._width, "dtype": self._dtype, "max_bytes": max_bytes // 2}
            name, shape = f"{self.name}: {self._dataset}", (end, self._shape[1])
            for block in layouts.dense_blocks(name, read, shape, first=first, **made):
                start, stop = block.position - len(block.x), block.position
                beside = {name: containers.targets(stored, start, stop) for name, stored in columns.items()}
                yield replace(block, columns=beside, position=stop - first)
        self._state.check(self._path)


def _enumeration(dtype: np.dtype[Any]) -> list[str]:
    """Names of the numbers of a type that has them, in their order; none of another type."""
    names = dict(dtype.metadata or {}).get("enum") or {}
    numbered = sorted((int(number), shown(name)) for name, number in names.items())
    return options.told([f"{number} {name}" for number, name in numbered])


def _only_matrix(box: Container) -> str:
    """Name of the only dataset of two dimensions."""
    if like := _looks_like(box):
        raise SourceError(f"{box.name}: looks like {like[0]}: give format={like[1]!r} (--format {like[1]})")
    found, n_objects, todo = list[str](), 0, [(name, 1) for name in box.children("")]
    while todo:
        path, depth = todo.pop(0)
        n_objects += 1
        if n_objects > _MOST_OBJECTS:
            raise SourceError(f"{box.name}: has more than {_MOST_OBJECTS} objects: give dataset= (--dataset)")
        if box.kind(path) == "array":
            found += [path] if len(box.shape(path)) == 2 else []
        elif depth < _DEEPEST:
            todo += [(f"{path}/{name}", depth + 1) for name in box.children(path)]
    if len(found) != 1:
        there = f"one of {', '.join(shown(path, 80) for path in found[:8])}" if found else "it has none"
        raise SourceError(
            f"{box.name}: has {len(found)} datasets of 2 dimensions, expected one: give dataset= (--dataset), {there}"
        )
    return found[0]


def _looks_like(box: Container) -> tuple[str, str] | None:
    """Format of its own that the file seems to have: (what it is, its name)."""
    groups = [name for name in box.children("")[:_GENOMES] if box.kind(name) == "group"]
    if any(box.kind(f"{name}/barcodes") and box.kind(f"{name}/indptr") for name in groups):
        return "a matrix of 10x Genomics", "tenx"
    if box.attribute("", "encoding-type") == "anndata" or (box.kind("obs") and box.kind("var")):
        return "AnnData", "h5ad"
    if box.attribute("", "binsparse") is not None:
        return "binsparse", "binsparse"
    return None
