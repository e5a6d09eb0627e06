"""binsparse: sparse matrices in HDF5 or zarr, described by JSON.

Format: https://graphblas.org/binsparse-specification/, version 0.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.errors import SourceError
from sparsestore.sources import containers, layouts, options
from sparsestore.sources.base import Block, Triples
from sparsestore.sources.containers import Container, Stored
from sparsestore.sources.file import FileState, check_file, shown

__all__ = ["BinsparseSource"]

Array = NDArray[Any]

_ARRAYS = {
    "CSR": ("pointers_to_1", "indices_1", "values"),
    "CSC": ("pointers_to_1", "indices_1", "values"),
    "COOR": ("indices_0", "indices_1", "values"),
    "COOC": ("indices_0", "indices_1", "values"),
    "DMATR": ("values",),
}
_ALIASES = {"COO": "COOR", "DMAT": "DMATR"}
_TYPE = re.compile(r"(iso\[)?(u?int(?:8|16|32|64)|float(?:32|64)|bint8)(\])?")


class BinsparseSource:
    """A binsparse matrix. CSR and DMATR give rows; CSC, COOR and COOC give triples.

    `blocks` holds at most `max_bytes`, or one row, which may take four times as much; and five chunks of at most
    `max_bytes` (or 1 MiB) each, a file with larger ones being refused. The descriptor, the attribute "binsparse", must
    agree with the arrays. Values of type ``iso[...]`` (one for all entries) and ``bint8`` are read; complex ones,
    symmetric structures, fill values other than 0, DCSR, DCSC, DMATC, vectors and custom formats are refused. Zeros of
    a dense matrix are no entries.

    Parameters
    ----------
    path : Path
        An HDF5 file; a folder, or a .zip file, with a zarr hierarchy.
    group : str
        Where in it the matrix is; at the top by default.
    n_features : int, optional
        A larger width than the matrix has.
    dtype : optional
        Another dtype of the values.
    """

    def __init__(
        self, path: Path, *, group: str = "", n_features: int | None = None, dtype: DTypeLike | None = None
    ) -> None:
        if not path.is_dir():
            check_file(path)
        self.name = str(path)
        self._path = path
        self._group = group.strip("/")
        self._state = FileState.of(path)
        with containers.opened(path, containers.HEADER_BYTES) as box:
            self._read_descriptor(box)
        self._width = options.width(self.name, self._shape[1], n_features)
        self._dtype = options.value_dtype(self.name, self._found, dtype)
        self._options = {
            "group": self._group or None,
            "n_features": n_features,
            "dtype": None if dtype is None else str(self._dtype),
        }
        self.sorted_rows = self._kind in ("CSR", "DMATR")
        self.n_rows: int | None = self._shape[0]
        self.n_features: int | None = self._width
        self.dtype: np.dtype[Any] | None = self._dtype
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.unit = "rows" if self.sorted_rows else "bytes"
        self.size: int | None = self._shape[0] if self.sorted_rows else self._n_entries * self._found.itemsize

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, binsparse's format, and the options."""
        return {**options.provenance(self._path, "binsparse", self._options), "layout": self._kind}

    def blocks(self, max_bytes: int) -> Iterator[Block | Triples]:
        """Yield rows in order, or triples."""
        self._state.check(self._path)
        with containers.opened(self._path, max_bytes) as box:
            yield from self._parts(box, max_bytes)
        self._state.check(self._path)

    def _parts(self, box: Container, max_bytes: int) -> Iterator[Block | Triples]:
        arrays = [self._array(box, name) for name in _ARRAYS[self._kind]]
        made: dict[str, Any] = {"dtype": self._dtype, "max_bytes": max_bytes}
        if self._kind == "DMATR":
            read = containers.banded(_Matrix(arrays[0], self._shape), max_bytes // 4)
            made["max_bytes"] = max_bytes // 2
            yield from layouts.dense_blocks(self.name, read, self._shape, width=self._width, **made)
            return
        reads = [containers.sequential(array) for array in arrays]
        made |= {"shape": self._shape, "n_entries": self._n_entries}
        if self._kind == "CSR":
            yield from layouts.csr_blocks(self.name, *reads, width=self._width, **made)
            return
        make = layouts.csc_triples if self._kind == "CSC" else layouts.coo_triples
        if self._kind == "COOC":
            reads[:2] = reads[1], reads[0]
        for part in make(self.name, *reads, **made):
            yield Triples(part.rows, part.features, part.values, part.position * self._found.itemsize)

    def _array(self, box: Container, name: str) -> Stored:
        stored: Stored = box.array(f"{self._group}/{name}" if self._group else name)
        if name == "values":
            stored = _Values(stored, self._n_entries, self._found)
        return stored

    def _read_descriptor(self, box: Container) -> None:
        what = f"{box.name}: {self._group or '/'}"
        found = box.attribute(self._group, "binsparse")
        if found is None:
            raise SourceError(f"{what}: has no attribute 'binsparse': expected a matrix in the binsparse format")
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{what}: binsparse: is no JSON: {shown(str(error))}") from None
        found = found.get("binsparse", found) if isinstance(found, dict) else None
        types = found.get("data_types") if isinstance(found, dict) else None
        if not isinstance(found, dict) or not isinstance(types, dict):
            raise SourceError(f"{what}: binsparse: expected an object with version, format, shape and data_types")
        if not re.fullmatch(r"0\.[0-9]+", str(found.get("version"))):
            raise SourceError(f"{what}: binsparse: version {shown(str(found.get('version')))}, expected 0.1")
        given = str(found.get("format"))
        self._kind = _ALIASES.get(given.upper(), given.upper())
        if self._kind not in _ARRAYS or "custom" in found:
            known = ", ".join([*_ARRAYS, *_ALIASES])
            raise SourceError(f"{what}: binsparse: format {shown(given)} is not read, expected one of {known}")
        if found.get("structure") not in (None, "general"):
            raise SourceError(
                f"{what}: binsparse: structure {shown(str(found['structure']))} is not read: write both triangles"
            )
        self._shape = containers.shape_of(f"{what}: binsparse", found.get("shape"))
        n = found.get("number_of_stored_values")
        if type(n) is not int or n < 0:
            raise SourceError(f"{what}: binsparse: number_of_stored_values is {shown(str(n))}, expected a whole number")
        self._n_entries = n
        for name in _ARRAYS[self._kind]:
            self._check_array(box, what, name, str(types.get(name)))
        if self._kind == "DMATR" and n != self._shape[0] * self._shape[1]:
            raise SourceError(f"{what}: binsparse: {n} values for a dense matrix of {self._shape}")
        options.check_rows(what, self._shape[0], n)
        if found.get("fill"):
            fill = box.array(f"{self._group}/fill_value" if self._group else "fill_value")
            values = containers.numbers(containers.vector(fill, 1)).rows(0, 1)
            if values[0] != 0:
                raise SourceError(f"{fill.name}: is {values[0]}, expected 0: entries that are not stored are zeros")

    def _check_array(self, box: Container, what: str, name: str, given: str) -> None:
        """An array must have the type and the length that the descriptor says."""
        match = _TYPE.fullmatch(given)
        iso = match is not None and match[1] is not None
        if match is None or iso != (match[3] is not None) or (iso and name != "values"):
            raise SourceError(f"{what}: binsparse: type {shown(given)} of {name} can not be stored")
        dtype = np.dtype("uint8" if match[2] == "bint8" else match[2])
        n = 1 if iso else self._n_entries
        if name == "pointers_to_1":
            n = self._shape[self._kind == "CSC"] + 1
        stored = containers.vector(box.array(f"{self._group}/{name}" if self._group else name), n)
        if stored.dtype.newbyteorder("=") not in (dtype, np.dtype(bool) if match[2] == "bint8" else dtype):
            raise SourceError(f"{stored.name}: is of dtype {stored.dtype}, expected {given} as the descriptor says")
        if name == "values":
            self._found = np.dtype(bool) if match[2] == "bint8" else stored.dtype.newbyteorder("=")
        else:
            containers.integers(stored)


class _Values:
    """Values of a matrix; one that is stored once may stand for all."""

    chunk = 1

    def __init__(self, stored: Stored, n: int, dtype: np.dtype[Any]) -> None:
        self.name, self.dtype = stored.name, dtype
        self.shape: tuple[int, ...] = (n,)
        self._stored = stored

    def rows(self, start: int, stop: int) -> Array:
        if self._stored.shape != self.shape:
            return np.repeat(self._stored.rows(0, 1), stop - start).astype(self.dtype)
        return self._stored.rows(start, stop).astype(self.dtype, copy=False)


class _Matrix:
    """The rows of a matrix that is stored as a vector, one after the other."""

    chunk = 1

    def __init__(self, stored: Stored, shape: tuple[int, int]) -> None:
        self.name, self.dtype = stored.name, stored.dtype
        self.shape: tuple[int, ...] = shape
        self._stored = stored

    def rows(self, start: int, stop: int) -> Array:
        width = self.shape[1]
        return self._stored.rows(start * width, stop * width).reshape(stop - start, width)
