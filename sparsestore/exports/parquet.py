"""Parquet: a table of triples, or a row a row with lists of features and values beside its columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.csr import index_dtype
from sparsestore.exports.base import Table, imported
from sparsestore.sources.base import Block

__all__ = ["ParquetExport"]

_LAYOUTS = ("triples", "lists")
_FIELDS = {"triples": ("row", "feature", "value"), "lists": ("indices", "values")}


class ParquetExport:
    """Features and rows are counted from 0; the shape stands in the file's metadata, as JSON under "sparsestore".

    That is where `sources.table.said_shape` finds it. Names have no place there: a warning says how many have no entry.

    Needs ``pip install "sparsestore[arrow]"``. A row group has the entries of a block. float16 becomes float32.

    Parameters
    ----------
    layout : {"triples", "lists"}
        Columns row, feature and value; or indices and values, lists, and all columns of the store with them: text as
        strings, k values a row as lists of fixed length, missing values as nulls.
    feature_names : bool
        In triples: names of the features in place of their numbers.
    """

    def __init__(
        self,
        table: Table,
        suffix: str,  # noqa: ARG002
        *,
        layout: str = "triples",
        feature_names: bool = False,
    ) -> None:
        self._arrow = imported("pyarrow", "arrow")
        self._parquet = imported("pyarrow.parquet", "arrow")
        if layout not in _LAYOUTS:
            raise ValueError(f"layout is {layout!r}, expected one of {', '.join(_LAYOUTS)}")
        if feature_names and layout == "lists":
            raise ValueError("feature_names=True is for layout='triples': lists have numbers of features")
        if feature_names and table.feature_names is None:
            raise ValueError("feature_names=True: the features have no names")
        taken = [name for name in table.columns if name in _FIELDS[layout]] if layout == "lists" else []
        if taken:
            raise ValueError(f"column {taken[0]!r} has the name of a field of the file: rename it, or export triples")
        self._table, self._layout, self._names = table, layout, feature_names
        self.left_out = table.left_out(table.columns if layout == "lists" else (), names=feature_names)
        self._seen = np.zeros(table.n_features if feature_names else 0, bool)  # names that are in the file
        self._dtype = table.dtype
        if self._dtype == np.float16:
            self._dtype = np.dtype(np.float32)
            self.left_out.append("the dtype float16 (written as float32)")

    def write(self, path: Path) -> list[str]:
        """Write the file."""
        table = self._table
        make = self._triples if self._layout == "triples" else self._lists
        with self._parquet.ParquetWriter(str(path), self._schema(), compression="zstd") as file:
            for block in table.blocks(table.max_bytes // 12):
                if len(block.x) and (block.x.nnz or self._layout == "lists"):
                    file.write_table(self._arrow.table(make(block), schema=file.schema))
                table.report(block.position, table.n_rows, "rows")
        unseen = int(np.count_nonzero(~self._seen))
        if unseen:
            return [
                f"{unseen} of {table.n_features} features have no entry: whoever reads the file must be told of them"
            ]
        return []

    def _schema(self) -> Any:
        arrow, table = self._arrow, self._table
        index = arrow.from_numpy_dtype(index_dtype(table.n_features))
        value = arrow.from_numpy_dtype(self._dtype)
        if self._layout == "triples":
            feature = arrow.dictionary(arrow.int32(), arrow.string()) if self._names else index
            fields = {"row": arrow.int64(), "feature": feature, "value": value}
        else:
            fields = {"indices": arrow.list_(index), "values": arrow.list_(value)}
            fields |= {name: self._type(*schema) for name, schema in table.columns.items()}
        facts = {"shape": [table.n_rows, table.n_features], "layout": self._layout}
        return arrow.schema(fields, metadata={"sparsestore": json.dumps(facts)})

    def _type(self, dtype: str, shape: tuple[int, ...]) -> Any:
        arrow = self._arrow
        plain = arrow.string() if dtype == "string" else arrow.from_numpy_dtype(np.dtype(dtype))
        return arrow.list_(plain, shape[0]) if shape else plain

    def _triples(self, block: Block) -> dict[str, Any]:
        x, first = block.x, block.position - len(block.x)
        rows = np.repeat(np.arange(first, block.position), np.diff(x.indptr))
        features: Any = x.indices
        if self._names:
            distinct, codes = np.unique(x.indices, return_inverse=True)
            self._seen[distinct] = True
            names: Any = self._table.feature_names
            features = self._arrow.DictionaryArray.from_arrays(codes.astype(np.int32), names[distinct])
        return {"row": rows, "feature": features, "value": x.data.astype(self._dtype, copy=False)}

    def _lists(self, block: Block) -> dict[str, Any]:
        x, arrow = block.x, self._arrow
        ends = arrow.array(x.indptr.astype(np.int32))
        data = x.data.astype(self._dtype, copy=False)
        lists = {
            "indices": arrow.ListArray.from_arrays(ends, arrow.array(x.indices)),
            "values": arrow.ListArray.from_arrays(ends, arrow.array(data)),
        }
        return lists | {
            name: self._column(values, *self._table.columns[name]) for name, values in block.columns.items()
        }

    def _column(self, values: NDArray[Any], dtype: str, shape: tuple[int, ...]) -> Any:
        arrow = self._arrow
        if shape:
            flat = arrow.array(np.asarray(values).reshape(-1), arrow.string() if dtype == "string" else None)
            return arrow.FixedSizeListArray.from_arrays(flat, shape[0])
        mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
        return arrow.array(np.ma.getdata(values), self._type(dtype, ()), mask=mask)
