"""scipy's ``.npz`` of a sparse matrix (`scipy.sparse.save_npz`), streamed: `scipy.sparse.load_npz` reads it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.csr import index_dtype
from sparsestore.exports.base import Table

__all__ = ["NpzExport"]


class NpzExport:
    """A CSR array. Rows are read twice, as one member of an archive ends before the next begins.

    Offsets and numbers of features are int32 where both fit, else int64, as scipy has them. float16, which scipy.sparse
    lacks, becomes float32.

    Parameters
    ----------
    compressed : bool
        Deflate the arrays, as `save_npz` does by default: some 30 MB/s.
    """

    def __init__(self, table: Table, suffix: str, *, compressed: bool = False) -> None:  # noqa: ARG002
        self._table = table
        self._method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        self.left_out = table.left_out()
        self._dtype = table.dtype
        if self._dtype == np.float16:
            self._dtype = np.dtype(np.float32)
            self.left_out.append("the dtype float16 (written as float32)")

    def write(self, path: Path) -> list[str]:
        """Write the file."""
        table = self._table
        nnz = table.count_entries()
        index = index_dtype(max(nnz + 1, table.n_features))
        with zipfile.ZipFile(path, "w", self._method) as archive:
            with self._member(archive, "indices", index, (nnz,)) as indices:
                lengths = list[NDArray[Any]]()
                for block in table.blocks(table.max_bytes // 2):
                    indices.write(block.x.indices.astype(index, copy=False).data)
                    lengths.append(np.diff(block.x.indptr).astype(np.min_scalar_type(table.n_features)))
                    table.report(block.position, table.n_rows, "rows")
            with self._member(archive, "indptr", index, (table.n_rows + 1,)) as indptr:
                indptr.write(np.zeros(1, index).data)
                start = 0
                for part in lengths:
                    ends = np.cumsum(part, dtype=np.int64) + start
                    start = int(ends[-1]) if len(ends) else start
                    indptr.write(ends.astype(index).data)
            for name, value in (
                ("format", np.array(b"csr")),
                ("shape", np.array([table.n_rows, table.n_features], np.int64)),
                ("_is_array", np.array(True)),
            ):
                with self._member(archive, name, value.dtype, value.shape) as member:
                    member.write(value.tobytes())
            with self._member(archive, "data", self._dtype, (nnz,)) as data:
                for block in table.blocks(table.max_bytes // 2):
                    data.write(block.x.data.astype(self._dtype, copy=False).data)
                    table.report(block.position, table.n_rows, "rows")
        return []

    @contextmanager
    def _member(
        self, archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> Iterator[IO[bytes]]:
        """An array of the archive: its header is written, its elements are to follow."""
        info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
        info.compress_type = self._method
        with archive.open(info, "w", force_zip64=True) as member:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            yield member
