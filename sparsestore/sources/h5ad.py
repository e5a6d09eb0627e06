"""AnnData: cells x genes with annotations of both, in HDF5 (.h5ad) or zarr, as all its releases since 0.5 wrote it.

Format: https://anndata.readthedocs.io/en/stable/fileformat-prose.html; that of 0.5 and 0.6 was written down nowhere:
annotations are datasets of records, their categories lie in ``uns``, a sparse matrix says ``h5sparse_format``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import number_dtype
from sparsestore.errors import SourceError
from sparsestore.features import as_names
from sparsestore.sources import containers, layouts, options
from sparsestore.sources.base import Block, Triples
from sparsestore.sources.containers import Compressed, Container, Stored
from sparsestore.sources.file import FileState, check_file, shown

__all__ = ["H5adSource"]

Array = NDArray[Any]

OBS_NAMES = "obs_names"
_MOST_CATEGORIES = 1 << 20
_STRING_BYTES = 120  # of a string, about


@dataclass(frozen=True, slots=True)
class _Field:
    """A column of obs or var."""

    stored: Stored
    record: str | None = None
    """Where `stored` has records: which of their fields."""
    categories: Array | None = None
    """What the values, then codes, stand for."""
    mask: Stored | None = None
    """Where values are missing."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is read: that of numbers, or object for text."""
        found = self.stored.dtype if self.record is None else self.stored.dtype[self.record]
        if self.categories is not None:
            found = self.categories.dtype
        return np.dtype(object) if found.kind in "SUO" else options.numeric(self.stored.name, found)

    def codes(self, start: int, stop: int) -> Array:
        """Values as they are stored."""
        part = self.stored.rows(start, stop)
        return part if self.record is None else part[self.record]

    def read(self, start: int, stop: int) -> Array:
        """Values of some rows: missing text is "", missing numbers of categories are nan, others are masked."""
        if self.categories is not None:
            return self._of_categories(self.categories, start, stop)
        if self.dtype.kind != "O":
            values = self.codes(start, stop).astype(self.dtype, copy=False)
            return values if self.mask is None else np.ma.array(values, mask=self.mask.rows(start, stop))
        values = containers.text(self.stored, start, stop, self.record)
        if self.mask is not None:
            values[self.mask.rows(start, stop).astype(bool)] = ""
        return values

    def _of_categories(self, categories: Array, start: int, stop: int) -> Array:
        codes = self.codes(start, stop).astype(np.int64)
        self.check_codes(codes, start)
        missing = codes < 0
        if not missing.any():
            return categories[codes]
        if self.dtype.kind in "biu":
            raise SourceError(
                f"{self.stored.name}: row {start + int(np.argmax(missing))}: has no category, which {self.dtype} can "
                f"not say: keep it as a column of floats"
            )
        values = np.full(len(codes), "" if self.dtype.kind == "O" else np.nan, self.dtype)
        values[~missing] = categories[codes[~missing]]
        return values

    def check_codes(self, codes: Array, start: int) -> None:
        """Raise SourceError where there is no such category."""
        n = 0 if self.categories is None else len(self.categories)
        if len(codes) and not -1 <= int(codes.min()) <= int(codes.max()) < n:
            raise SourceError(
                f"{self.stored.name}: rows {start} to {start + len(codes)}: codes {int(codes.min())} to "
                f"{int(codes.max())}, expected -1 to {n - 1}, of {n} categories"
            )


class _Frame:
    """obs or var: columns of equal length, one of which is the index."""

    def __init__(self, box: Container, path: str) -> None:
        self.box = box
        self.path = path
        self.records = box.kind(path) == "array"
        if self.records:
            self._table = containers.vector(box.array(path))
            names = list(self._table.dtype.names or ())
            self.index_name = "index" if "index" in names or not names else names[0]
            self.n = self._table.shape[0]
            self.names = names
        else:
            self.index_name = str(box.attribute(path, "_index") or "_index")
            self.names = [name for name in box.children(path) if name != "__categories"]
            self.n = containers.vector(box.array(f"{path}/{self.index_name}")).shape[0]

    def field(self, name: str, option: str) -> _Field:
        """A column, checked to have a value for each row."""
        if name == OBS_NAMES and OBS_NAMES not in self.names:
            name = self.index_name
        if name not in self.names:
            known = ", ".join(shown(each) for each in self.names[:8]) + (", ..." if len(self.names) > 8 else "")
            raise ValueError(f"{self.box.name}: {option}={name!r}: {self.path} has no such column, only {known}")
        if self.records:
            return self._of_records(name)
        path = f"{self.path}/{name}"
        if self.box.kind(path) == "group":
            return self._of_group(path)
        stored = containers.vector(self.box.array(path), self.n)
        if self.box.kind(f"{self.path}/__categories/{name}") == "array":  # until 0.7
            return _Field(containers.integers(stored), categories=self._categories(f"{self.path}/__categories/{name}"))
        return _Field(stored)

    def _of_records(self, name: str) -> _Field:
        categories = f"uns/{name}_categories"
        if self._table.dtype[name].kind in "iu" and self.box.kind(categories) == "array":
            return _Field(self._table, name, self._categories(categories))
        if self._table.dtype[name].subdtype:
            raise SourceError(f"{self._table.name}: {name} has several values a row, expected one")
        return _Field(self._table, name)

    def _of_group(self, path: str) -> _Field:
        kind = self.box.attribute(path, "encoding-type")
        if kind == "categorical":
            codes = containers.integers(containers.vector(self.box.array(f"{path}/codes"), self.n))
            return _Field(codes, categories=self._categories(f"{path}/categories"))
        if kind in ("nullable-integer", "nullable-boolean", "nullable-string-array"):
            values = containers.vector(self.box.array(f"{path}/values"), self.n)
            return _Field(values, mask=containers.vector(self.box.array(f"{path}/mask"), self.n))
        raise SourceError(f"{self.box.name}: {path}: is a column of kind {shown(str(kind))}, which can not be stored")

    def _categories(self, path: str) -> Array:
        stored = containers.vector(self.box.array(path))
        n = stored.shape[0]
        if n > _MOST_CATEGORIES:
            raise SourceError(f"{stored.name}: has {n} categories, expected at most {_MOST_CATEGORIES}")
        if stored.dtype.kind in "SUO":
            return containers.text(stored, 0, n)
        return containers.numbers(stored).rows(0, n)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the store."""

    field: _Field
    dtype: str
    coded: bool = False
    """Whether the codes of its categories are meant."""
    finite: bool = False
    """Whether each row must have a value: a label, a weight."""

    def read(self, start: int, stop: int) -> Array:
        if self.coded:
            values = self.field.codes(start, stop)
            self.field.check_codes(values, start)
        else:
            values = self.field.read(start, stop)
        if self.dtype == "string":
            return values
        if self.finite:
            bad = values < 0 if self.coded else ~np.isfinite(np.ma.getdata(values)) | np.ma.getmaskarray(values)
            if bad.any():
                raise SourceError(
                    f"{self.field.stored.name}: row {start + int(np.argmax(bad))}: is missing or not finite, but a "
                    "label or a weight"
                )
            values = np.ma.getdata(values)
        name = f"{self.field.stored.name}: in rows {start} to {stop}"
        cast = layouts.converted(name, np.ma.getdata(values), np.dtype(self.dtype))
        return np.ma.array(cast, mask=np.ma.getmaskarray(values)) if isinstance(values, np.ma.MaskedArray) else cast


class H5adSource:
    """Cells of an AnnData file or folder, as written by AnnData 0.5 to 0.12. CSR and dense matrices give rows.

    A CSC one gives triples, column after column, which whoever sorts them finds in order. `blocks` holds at most
    `max_bytes`, or one row, which may take four times as much; and, where the arrays are compressed, five chunks of at
    most `max_bytes` (or 1 MiB) each, a file with larger ones being refused. Zeros of a dense matrix are no entries.
    Gene names become names of features. Of what is not asked for nothing is read.

    Parameters
    ----------
    path : Path
        A .h5ad file, a folder, or a .zip file with a zarr hierarchy in it.
    layer : str, optional
        "raw" for ``raw/X``, with the genes of ``raw/var``; or the name of a layer. By default X.
    label, weight : str, optional
        Columns of obs that become "y" and "sample_weight". Each row needs one. A label of categories becomes their
        numbers (int64), which the store's provenance tells the meaning of.
    keep : sequence of str, or str, optional
        Columns of obs that become columns of their own names, in their own dtype or the one behind a colon:
        ``"cell_type,n_counts:float32"``. Text categories become text (where missing, ""), with a dtype of integers
        their numbers (where missing, -1). "obs_names" is the index, whatever it is called.
    names : str, optional
        Column of var that has the names of the features; by default its index. "" leaves names out.
    dtype : optional
        Another dtype of the values.
    """

    format = "h5ad"

    def __init__(
        self,
        path: Path,
        *,
        layer: str | None = None,
        label: str | None = None,
        weight: str | None = None,
        keep: Sequence[str] | str | None = None,
        names: str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        if not path.is_dir():
            check_file(path)
        self.name = str(path)
        self._path = path
        self._state = FileState.of(path)
        self._layer, self._label, self._weight = layer, label, weight
        self._keep = [part.strip() for part in keep.split(",")] if isinstance(keep, str) else list(keep or ())
        with containers.opened(path, containers.HEADER_BYTES) as box:
            self._read_matrix(box)
            self._dtype = options.value_dtype(self.name, self._found, dtype)
            columns = self._fields(box)
            self.columns = {name: (column.dtype, ()) for name, column in columns.items()}
            self._categories = {
                name: options.told(column.field.categories.tolist())
                for name, column in columns.items()
                if column.coded and column.field.categories is not None
            }
            self.feature_names = self._read_names(box, names)
        self._options = {
            "layer": layer,
            "label": label,
            "weight": weight,
            "keep": self._keep or None,
            "names": names,
            "dtype": None if dtype is None else str(self._dtype),
        }
        self.sorted_rows = self._kind != "csc"
        self.unit = "rows" if self.sorted_rows else "bytes"
        self.n_rows: int | None = self._shape[0]
        self.n_features: int | None = self._shape[1]
        self.dtype: np.dtype[Any] | None = self._dtype
        self.size: int | None = self._shape[0]
        if self._sparse is not None and not self.sorted_rows:
            self.size = self._sparse.n_entries * self._found.itemsize
        # a row of each column, text as it is in memory, for a while twice
        self._beside_bytes = sum(
            2 * (_STRING_BYTES if kind == "string" else np.dtype(kind).itemsize) for kind, _ in self.columns.values()
        )

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, layout, what the numbers of labels stand for, and the options."""
        facts = {**options.provenance(self._path, self.format, self._options), "layout": self._kind}
        return {**facts, "categories": self._categories} if self._categories else facts

    def blocks(self, max_bytes: int) -> Iterator[Block | Triples]:
        """Yield rows in order, or triples."""
        self._state.check(self._path)
        with containers.opened(self._path, max_bytes) as box:
            if self._sparse is not None and not self.sorted_rows:
                yield from self._sparse.triples(box, dtype=self._dtype, max_bytes=max_bytes)
            else:
                columns = self._fields(box)
                for block in self._rows(box, max_bytes):
                    start = block.position - len(block.x)
                    beside = {name: column.read(start, block.position) for name, column in columns.items()}
                    yield replace(block, columns=beside)
        self._state.check(self._path)

    @contextmanager
    def following(self) -> Iterator[Callable[[int], dict[str, Array]]]:
        """Give a function for the columns of the next n rows, whose entries came as triples."""
        with containers.opened(self._path, containers.HEADER_BYTES) as box:
            columns, at = self._fields(box), 0

            def read(n: int) -> dict[str, Array]:
                nonlocal at
                at += n
                return {name: column.read(at - n, at) for name, column in columns.items()}

            yield read

    def _rows(self, box: Container, max_bytes: int) -> Iterator[Block]:
        made: dict[str, Any] = {"width": self._shape[1], "dtype": self._dtype, "beside_bytes": self._beside_bytes}
        if self._sparse is not None:
            return self._sparse.blocks(box, max_bytes=max_bytes, **made)
        read = containers.banded(box.array(self._matrix), max_bytes // 4)
        return layouts.dense_blocks(f"{self.name}: {self._matrix}", read, self._shape, max_bytes=max_bytes // 2, **made)

    def _read_matrix(self, box: Container) -> None:
        """Which matrix it is, its layout and shape, compared with the lengths of its arrays and annotations."""
        self._sparse: Compressed | None = None
        self._obs = _Frame(box, "obs").n if box.kind("obs") else None
        old = self._layer == "raw" and not box.kind("raw/X") and bool(box.kind("raw.X"))
        self._matrix = {None: "X", "raw": "raw.X" if old else "raw/X"}.get(self._layer, f"layers/{self._layer}")
        self._var = {"raw/X": "raw/var", "raw.X": "raw.var"}.get(self._matrix, "var")
        kind = box.kind(self._matrix)
        if not kind or box.attribute(self._matrix, "encoding-type") == "null":
            raise SourceError(self._nothing(box))
        if kind == "array":
            stored = containers.numbers(box.array(self._matrix))
            if len(stored.shape) != 2:
                raise SourceError(f"{stored.name}: has shape {stored.shape}, expected 2 dimensions")
            self._kind, self._found = "dense", stored.dtype
            self._shape = stored.shape[0], stored.shape[1]
            options.check_rows(stored.name, stored.shape[0], prod(stored.shape))
        else:
            self._read_sparse(box)
        n_var = _Frame(box, self._var).n if box.kind(self._var) else None
        for n, found, frame in ((self._obs, self._shape[0], "obs"), (n_var, self._shape[1], self._var)):
            if n is not None and n != found:
                raise SourceError(
                    f"{self.name}: {self._matrix} has shape {self._shape}, but {frame} has {n} rows, expected {found}"
                )

    def _read_sparse(self, box: Container) -> None:
        where, name = self._matrix, f"{self.name}: {self._matrix}"
        found = box.attribute(where, "encoding-type") or box.attribute(where, "h5sparse_format")
        kind = str(found).removesuffix("_matrix")
        if kind not in ("csr", "csc"):
            raise SourceError(f"{name}: is of kind {shown(str(found))}, expected an array, csr_matrix or csc_matrix")
        shape = box.attribute(where, "shape") or box.attribute(where, "h5sparse_shape")
        arrays = f"{where}/indptr", f"{where}/indices", f"{where}/data"
        self._sparse = Compressed.found(box, name, kind, containers.shape_of(name, shape), arrays)
        self._kind, self._found, self._shape = kind, self._sparse.dtype, self._sparse.shape

    def _nothing(self, box: Container) -> str:
        """What there is where the matrix isn't."""
        there = ["raw"] if box.kind("raw/X") or box.kind("raw.X") else []
        there += box.children("layers")[:8]
        if self._layer is None and not box.kind("obs") and not box.kind("var"):
            return f"{self.name}: has no X, obs or var: is it AnnData?"
        what = "X" if self._layer is None else f"layer {self._layer!r}"
        listed = f"give layer=, one of {', '.join(map(shown, there))}" if there else "nor any layer: nothing to convert"
        return f"{self.name}: has no {what}, {listed}" if not there else f"{self.name}: has no {what}: {listed}"

    def _read_names(self, box: Container, names: str | None) -> Array | None:
        if names == "" or not box.kind(self._var):
            return None
        frame = _Frame(box, self._var)
        field = frame.field(names or frame.index_name, "names")
        if field.dtype.kind != "O":
            raise SourceError(f"{field.stored.name}: has numbers, expected the names of features: give another names=")
        try:
            return as_names(field.read(0, frame.n))
        except ValueError as error:
            raise SourceError(
                f"{field.stored.name}: {error}, or give names= another column of {self._var}, or names='' for none"
            ) from None

    def _fields(self, box: Container) -> dict[str, _Column]:
        """The columns asked for."""
        if not (self._label or self._weight or self._keep):
            return {}
        if self._obs is None:
            raise ValueError(f"{self.name}: has no obs, which label, weight and keep are columns of")
        frame, found = _Frame(box, "obs"), list[tuple[str, _Column]]()
        for name, option, into in ((self._label, "label", "y"), (self._weight, "weight", "sample_weight")):
            if name:
                found.append((into, _target(frame.field(name, option), option)))
        for each in self._keep:
            name, _, dtype = each.rpartition(":") if ":" in each and each not in frame.names else (each, "", "")
            into = OBS_NAMES if name == OBS_NAMES else name
            found.append((into, _kept(frame.field(name, "keep"), dtype, each)))
        columns = dict(found)
        if len(columns) < len(found):
            raise ValueError(f"{self.name}: two columns of obs become one: {', '.join(name for name, _ in found)}")
        return columns


def _target(field: _Field, option: str) -> _Column:
    """A label or a weight."""
    if field.categories is not None and option == "label":
        return _Column(field, "int64", coded=True, finite=True)
    if field.dtype.kind == "O":
        way = "make it categorical, or keep=" if option == "label" else "give a column of numbers"
        raise ValueError(f"{field.stored.name}: {option} is text, expected numbers: {way}")
    return _Column(field, field.dtype.name, finite=True)


def _kept(field: _Field, dtype: str, given: str) -> _Column:
    if not dtype or dtype == "string":
        if dtype and field.dtype.kind != "O":
            raise ValueError(f"keep={given!r}: {field.stored.name} has numbers of {field.dtype}, expected no 'string'")
        return _Column(field, "string" if field.dtype.kind == "O" else field.dtype.name)
    wanted = number_dtype(dtype, f"keep={given!r}: the dtype")
    if field.dtype.kind != "O":
        return _Column(field, wanted.name)
    if field.categories is None or wanted.kind not in "iu":
        raise ValueError(f"keep={given!r}: {field.stored.name} is text, expected no dtype, or 'string'")
    return _Column(field, wanted.name, coded=True)
