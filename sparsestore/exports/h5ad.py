"""AnnData's ``.h5ad``, streamed with h5py: `anndata.read_h5ad` reads it.

Format: https://anndata.readthedocs.io/en/stable/fileformat-prose.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.csr import index_dtype
from sparsestore.exports.base import Table, imported

__all__ = ["H5adExport"]

_INDEX = "_index"
_CHUNK = 1 << 16


class H5adExport:
    """``X`` as CSR, columns in ``obs``, those with k values a row in ``obsm``, names of features in ``var``.

    Needs ``pip install "sparsestore[hdf5]"``. Missing values become nullable arrays, which AnnData has of whole
    numbers, truth values and (from 0.11) text; floats that are missing become NaN, with a warning. float16, which
    scipy.sparse lacks, becomes float32 in ``X``.

    Parameters
    ----------
    index : str, optional
        Column of text with the names of the rows; by default these are their numbers.
    """

    def __init__(self, table: Table, suffix: str, *, index: str | None = None) -> None:  # noqa: ARG002
        self._h5py = imported("h5py", "hdf5")
        columns = table.columns
        if index is not None and columns.get(index) != ("string", ()):
            raise ValueError(f"index={index!r}: there is no such column of text")
        if _INDEX in columns:
            raise ValueError(f"column {_INDEX!r} has a name that AnnData keeps for itself: rename it")
        self._table, self._index = table, index
        self.left_out = list[str]()
        self._dtype = table.dtype
        if self._dtype == np.float16:
            self._dtype = np.dtype(np.float32)
            self.left_out.append("the dtype float16 (written as float32)")
        self._nan: set[str] = set()

    def write(self, path: Path) -> list[str]:
        """Write the file."""
        with self._h5py.File(path, "w") as file:
            _encoded(file, "anndata", "0.1.0")
            for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
                _encoded(file.create_group(name), "dict", "0.1.0")
            self._features(file)
            self._rows(file)
        return [f"missing values of {name!r} became NaN" for name in sorted(self._nan)]

    def _features(self, file: Any) -> None:
        names = self._table.feature_names
        frame = self._frame(file, "var", [])
        index = self._array(frame, _INDEX, "string", (self._table.n_features,))
        for start in range(0, self._table.n_features, _CHUNK):
            stop = min(start + _CHUNK, self._table.n_features)
            index[start:stop] = _numbers(start, stop) if names is None else names[start:stop]

    def _rows(self, file: Any) -> None:
        table, n = self._table, self._table.n_rows
        columns = {name: schema for name, schema in table.columns.items() if name != self._index}
        frame = self._frame(file, "obs", [name for name, (_, shape) in columns.items() if not shape])
        index = self._array(frame, _INDEX, "string", (n,))
        nnz = table.count_entries()
        x = file.create_group("X")
        _encoded(x, "csr_matrix", "0.1.0")
        x.attrs["shape"] = np.array([n, table.n_features], np.int64)
        number = index_dtype(max(nnz + 1, table.n_features))
        indptr = self._dataset(x, "indptr", number, (n + 1,))
        indices = self._dataset(x, "indices", number, (nnz,))
        data = self._dataset(x, "data", self._dtype, (nnz,))
        beside = {
            name: self._array(file["obsm"] if shape else frame, name, dtype, (n, *shape))
            for name, (dtype, shape) in columns.items()
        }
        masks: dict[str, Any] = {}
        row = entry = 0
        for block in table.blocks(table.max_bytes // 2):
            rows, entries = slice(row, row + len(block.x)), slice(entry, entry + block.x.nnz)
            index[rows] = _numbers(row, rows.stop) if self._index is None else self._named(block.columns[self._index])
            indptr[rows] = block.x.indptr[:-1] + entry
            indices[entries], data[entries] = block.x.indices, block.x.data
            for name in columns:
                values = block.columns[name]
                if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
                    values = self._masked(frame, beside, masks, name, values, rows)
                beside[name][rows] = np.ma.getdata(values)
            row, entry = rows.stop, entries.stop
            table.report(row, n, "rows")
        indptr[n] = entry

    def _named(self, values: NDArray[Any]) -> NDArray[Any]:
        if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
            raise ValueError(f"column {self._index!r} has missing values, and each row needs a name")
        return np.ma.getdata(values)

    def _masked(
        self, frame: Any, beside: dict[str, Any], masks: dict[str, Any], name: str, values: Any, rows: slice
    ) -> Any:
        """Values some of which are missing: the first time, what was an array becomes a nullable one."""
        dtype, _ = self._table.columns[name]
        mask = np.ma.getmaskarray(values)
        if dtype != "string" and np.dtype(dtype).kind == "f":
            self._nan.add(name)
            return values.filled(np.nan)
        if name not in masks:
            kind = "string-array" if dtype == "string" else "boolean" if dtype == "bool" else "integer"
            frame.move(name, f"{_INDEX} {name}")
            group = frame.create_group(name)
            _encoded(group, f"nullable-{kind}", "0.1.0")
            frame.move(f"{_INDEX} {name}", f"{name}/values")
            beside[name] = group["values"]
            masks[name] = self._array(group, "mask", "bool", (self._table.n_rows,))
        masks[name][rows] = mask
        return values

    def _frame(self, file: Any, name: str, columns: list[str]) -> Any:
        group = file.create_group(name)
        _encoded(group, "dataframe", "0.2.0")
        group.attrs["_index"] = _INDEX
        group.attrs.create("column-order", np.array(columns, object), dtype=self._h5py.string_dtype())
        return group

    def _array(self, group: Any, name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        text = dtype == "string"
        array = self._dataset(group, name, self._h5py.string_dtype() if text else np.dtype(dtype), shape)
        _encoded(array, "string-array" if text else "array", "0.2.0")
        return array

    def _dataset(self, group: Any, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        chunks = (min(_CHUNK, shape[0]), *shape[1:]) if shape[0] else None
        return group.create_dataset(name, shape, dtype, chunks=chunks)


def _encoded(item: Any, kind: str, version: str) -> None:
    item.attrs["encoding-type"] = kind
    item.attrs["encoding-version"] = version


def _numbers(start: int, stop: int) -> NDArray[np.object_]:
    return np.array([str(number) for number in range(start, stop)], object)
