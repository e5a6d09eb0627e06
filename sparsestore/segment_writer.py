"""One new segment: all its arrays open at once, rows in, objects with their checksums out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.arrays import ArrayWriter
from sparsestore.checksum import crc32c
from sparsestore.csr import Rows
from sparsestore.documents import dump
from sparsestore.format import ROW_ID, ColumnSchema, ObjectEntry, SegmentDocument, SegmentLine
from sparsestore.layout import (
    COLUMN_CHUNK,
    PACKED_CHUNK,
    ValueRange,
    chunk_and_shard,
    codec_for,
    indices_dtype,
    rows_of_chunk,
)
from sparsestore.statistics import LabelAccumulator, RowCounts
from sparsestore.storage import LocalStorage
from sparsestore.zarr_format import ArraySpec, Codec, group_document

__all__ = ["SegmentWriter"]

Array = NDArray[Any]
Columns = dict[str, Array]


class SegmentWriter:
    """The arrays of one segment, all open at once.

    Attributes
    ----------
    id : str
    rows, nnz : int
    nbytes : int
        About what was written, before compression.
    """

    def __init__(
        self,
        storage: LocalStorage,
        profile: str,
        indices: str,
        data: str,
        constant: float | int | None,
        schema: dict[str, ColumnSchema],
        *,
        id: str,
        shuffled: bool,
    ) -> None:
        self.id = id
        self._storage = storage
        self._profile = profile
        self._prefix = f"segments/{self.id}"
        self._data_dtype = data
        self._constant = constant
        self._schema = schema
        self._shuffled = shuffled
        self._writers: list[ArrayWriter] = []
        shorter: dict[str, Any] = {} if profile == "raw" else {"chunk": PACKED_CHUNK}
        self._indptr = self._array("X/indptr", "int64", codec=codec_for("indptr", profile))
        self._indices = self._array("X/indices", indices, codec=codec_for("indices", profile), **shorter)
        self._data: ArrayWriter | None = None
        if constant is None:
            self._data = self._array("X/data", data, codec=codec_for("data", profile), **shorter)
        self._columns: dict[str, ArrayWriter] = {}
        self._labels = {
            name: LabelAccumulator(column.dtype, column.shape)
            for name, column in schema.items()
            if name != "sample_weight"
        }
        self._counts = RowCounts()
        self._indptr.append(np.zeros(1, np.int64))
        self._objects: list[ObjectEntry] = []
        self.rows = 0
        self.nnz = 0
        self.nbytes = 0

    def _array(self, name: str, dtype: str, tail: tuple[int, ...] = (), **options: Any) -> ArrayWriter:
        """A new array of the segment; `discard` lets go of its file."""
        writer = ArrayWriter(self._storage, f"{self._prefix}/{name}", dtype, tail, **options)
        self._writers.append(writer)
        return writer

    @property
    def has_row_ids(self) -> bool:
        """Whether the rows bring their own numbers."""
        return ROW_ID in self._columns

    def fits(self, block: ValueRange, width: int) -> bool:
        """Whether a block can be stored exactly in the dtypes of this segment."""
        if np.dtype(self._indices_dtype).itemsize < np.dtype(indices_dtype(width)).itemsize:
            return False
        return block.fits(self._data_dtype, self._constant)

    @property
    def _indices_dtype(self) -> str:
        return self._indices._spec.dtype

    def write(self, rows: Rows, columns: Columns) -> None:
        """Append rows and their columns to the arrays."""
        for name in columns:
            if name not in self._columns:
                self._columns[name] = self._column(name)
                if name.endswith(".mask") and self.rows:
                    self._columns[name].append(np.zeros(self.rows, bool))
        self._indptr.append(rows.indptr[1:] + self.nnz)
        self._indices.append(rows.indices)
        if self._data is not None:
            self._data.append(rows.data)
        for name, writer in self._columns.items():
            values = columns.get(name)
            writer.append(np.zeros(len(rows), bool) if values is None else values)
        for name, accumulator in self._labels.items():
            accumulator.update(columns[name])
        self._counts.update(np.diff(rows.indptr))
        self.rows += len(rows)
        self.nnz += rows.nnz
        width = np.dtype(self._indices_dtype).itemsize + (np.dtype(self._data_dtype).itemsize if self._data else 0)
        self.nbytes += rows.nnz * width + len(rows) + sum(values.nbytes for values in columns.values())

    def _column(self, name: str) -> ArrayWriter:
        if name == ROW_ID:
            schema = ColumnSchema("int64")
        elif name.endswith(".mask"):
            schema = ColumnSchema("bool")
        else:
            schema = self._schema[name]
        role = "string" if schema.dtype == "string" else "column"
        fill: Any = "" if schema.dtype == "string" else (False if schema.dtype == "bool" else 0)
        codec = codec_for(role, self._profile)
        row_bytes = 0 if schema.dtype == "string" else np.dtype(schema.dtype).itemsize * math.prod(schema.shape)
        chunk = rows_of_chunk(COLUMN_CHUNK, row_bytes)
        return self._array(f"columns/{name}", schema.dtype, schema.shape, codec=codec, chunk=chunk, fill_value=fill)

    def _put(self, key: str, payload: bytes) -> None:
        written = self._storage.put(f"{self._prefix}/{key}", payload)
        self._objects.append(ObjectEntry(key, written.length, written.crc32c))

    def _finish(self, writer: ArrayWriter, attributes: dict[str, Any] | None = None) -> None:
        """Close an array and keep the checksums of its pieces beside it, unless whole objects do."""
        writer.finish(attributes)
        name = writer.prefix[len(self._prefix) + 1 :]
        if not name.startswith(("stats/", "checksums/")):
            checks = self._array(f"checksums/{name}", "uint32")
            checks.append(writer.checks)
            checks.finish()
            self._collect(checks)
        self._collect(writer)

    def _collect(self, writer: ArrayWriter) -> None:
        skip = len(self._prefix) + 1
        self._objects += [ObjectEntry(entry.key[skip:], entry.length, entry.crc32c) for entry in writer.objects]

    def finish(self, n_features: int, row_id_start: int) -> SegmentLine:
        """Close all arrays, write what stands beside them, and segment.json last."""
        self._finish(self._indptr)
        self._finish(self._indices)
        if self._data is not None:
            self._finish(self._data)
        else:
            chunk, shard = chunk_and_shard(self.nnz)
            spec = ArraySpec((self.nnz,), self._data_dtype, chunk, shard, Codec(), self._constant)
            self._put("X/data/zarr.json", dump(spec.to_document()))
        for writer in self._columns.values():
            self._finish(writer)
        self._statistics("nnz", self._counts.finish(), {"block_rows": 256})
        for name, accumulator in self._labels.items():
            statistics = accumulator.finish()
            if statistics is not None:
                self._statistics(f"labels/{name}", *statistics.to_arrays())
        matrix = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [self.rows, n_features]}
        self._put("X/zarr.json", dump(group_document(matrix)))
        groups = ["", "columns/", "stats/", "stats/labels/", "checksums/", "checksums/X/"] + [
            "checksums/columns/"
        ] * bool(self._columns)
        for group in groups:
            self._put(f"{group}zarr.json", dump(group_document()))
        document = SegmentDocument(
            rows=self.rows,
            nnz=self.nnz,
            n_features=n_features,
            indices_dtype=self._indices_dtype,
            data_dtype=self._data_dtype,
            constant=self._constant is not None,
            longest_row=self._counts.longest,
            profile=self._profile,
            objects=tuple(sorted(self._objects, key=lambda entry: entry.key)),
        )
        payload = dump(document.to_document())
        self._storage.put(f"{self._prefix}/segment.json", payload)
        return SegmentLine(self.id, self.rows, self.nnz, crc32c(payload), self._shuffled, row_id_start)

    def _statistics(self, name: str, values: Array, attributes: dict[str, Any]) -> None:
        codec = codec_for("column", "raw")
        writer = self._array(f"stats/{name}", values.dtype.name, values.shape[1:], codec=codec)
        writer.append(values)
        self._finish(writer, attributes)

    def discard(self) -> None:
        """Let go of open files."""
        for writer in self._writers:
            writer.discard()
