"""What every input format must do: the shared check, and a few tools for the tests of single formats."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from peak import peak_of
from scipy import sparse

from sparsestore import csr
from sparsestore.sources.base import Block, Source, Triples

DATA = Path(__file__).parent / "data"
MAX_BYTES = (20_000, 1 << 28)


def read(source: Source, max_bytes: int = 1 << 28) -> tuple[sparse.csr_array, dict[str, NDArray[Any]]]:
    """The whole source: matrix and columns."""
    parts = list(source.blocks(max_bytes))
    if not source.sorted_rows:
        rows, features, values = (
            np.concatenate([getattr(part, name) for part in parts] or [np.empty(0, np.int64)])
            for name in ("rows", "features", "values")
        )
        columns = {}
        if source.columns and hasattr(source, "beside"):
            columns = source.beside(np.arange(source.n_rows or 0))
        elif source.columns:
            with source.following() as following:  # type: ignore[attr-defined]
                n = source.n_rows or 0
                halves = [following(n // 2), following(n - n // 2)]
            columns = {name: np.concatenate([half[name] for half in halves]) for name in source.columns}
        return sparse.csr_array((values, (rows, features)), shape=(source.n_rows, source.n_features)), columns
    width = source.n_features or max(part.x.n_features for part in parts)
    dtype = np.float32 if source.dtype == np.float16 else source.dtype  # scipy knows no float16
    matrices = [
        sparse.csr_array((part.x.data.astype(dtype), part.x.indices, part.x.indptr), shape=(len(part.x), width))
        for part in parts
    ]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in source.columns if parts}
    return sparse.vstack(matrices, "csr") if matrices else sparse.csr_array((0, width)), columns


def assert_same(found: sparse.csr_array, expected: Any) -> None:
    """Equal in shape and values, NaN equal to NaN; explicit zeros count as none."""
    wanted = sparse.csr_array(expected)
    wanted.sum_duplicates()
    found, wanted = found.copy(), wanted.copy()
    found.eliminate_zeros()
    wanted.eliminate_zeros()
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found.indptr, wanted.indptr)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_array_equal(found.data, wanted.data)


def check_source(source: Source, expected: Any, columns: Mapping[str, NDArray[Any]] | None = None) -> None:
    """Check the contract of `sparsestore.sources.base.Source` on a source whose content is known."""
    assert isinstance(source, Source)
    assert source.unit in ("bytes", "rows")
    assert json.loads(json.dumps(source.provenance()))["source"] == source.name
    for max_bytes in MAX_BYTES:
        for _ in range(2):  # blocks starts again
            matrix, found = read(source, max_bytes)
            assert_same(matrix, expected)
            for name, column in (columns or {}).items():
                np.testing.assert_array_equal(found[name], column)
        position = 0
        for part in source.blocks(max_bytes):
            _check_part(source, part, max_bytes)
            assert position <= part.position <= (part.position if source.size is None else source.size)
            position = part.position
    if source.sorted_rows and source.n_rows is not None:
        assert matrix.shape[0] == source.n_rows
    if hasattr(source, "in_order"):
        check_in_order(source, expected)
    blocks = source.blocks(MAX_BYTES[0])
    next(blocks, None)
    del blocks  # threads and files are let go: the fixtures see it


def check_in_order(source: Any, expected: Any) -> None:
    """Check what a source of which the rows can be taken in any order gives, where it does."""
    order = np.random.default_rng(0).permutation(source.n_rows)
    for max_bytes in MAX_BYTES:
        blocks = source.in_order(order, max_bytes)
        if blocks is None:
            return
        parts = list(blocks)
        for part in parts:
            _check_part(source, part, max_bytes)
        assert [part.position for part in parts] == np.cumsum([len(part.x) for part in parts]).tolist()
        matrix, _ = read(cast("Source", Given(source, parts)))
        assert_same(matrix, sparse.csr_array(expected)[order])


class Given:
    """A source with those blocks."""

    def __init__(self, source: Source, parts: list[Any]) -> None:
        self.n_features, self.dtype, self.columns, self.sorted_rows = source.n_features, source.dtype, {}, True
        self.parts = parts

    def blocks(self, max_bytes: int) -> list[Any]:  # noqa: ARG002
        return self.parts


def _check_part(source: Source, part: Any, max_bytes: int) -> None:
    if not source.sorted_rows:
        assert isinstance(part, Triples)
        assert part.rows.dtype == part.features.dtype == np.int64
        assert part.values.dtype == source.dtype
        assert len(part.rows) == len(part.features) == len(part.values)
        if len(part.rows):
            assert 0 <= part.rows.min() <= part.rows.max() < (source.n_rows or 0)
            assert 0 <= part.features.min() <= part.features.max() < (source.n_features or 0)
        assert part.rows.nbytes + part.features.nbytes + part.values.nbytes <= max(max_bytes, 200_000)
        return
    assert isinstance(part, Block)
    csr.check(part.x, canonical=True)
    assert part.x.indptr.dtype == np.int64
    assert part.x.indices.dtype == csr.index_dtype(part.x.n_features)
    assert source.dtype is None or part.x.data.dtype == source.dtype
    assert source.n_features is None or part.x.n_features == source.n_features
    assert list(part.columns) == list(source.columns)
    for name, (dtype, shape) in source.columns.items():
        assert part.columns[name].dtype == (object if dtype == "string" else dtype)
        assert part.columns[name].shape == (len(part.x), *shape)
    size = part.x.nbytes + sum(column.nbytes for column in part.columns.values())
    longest = int(np.diff(part.x.indptr).max()) * (part.x.indices.itemsize + part.x.data.itemsize)
    assert size <= max(max_bytes, 200_000) + longest


def peak_of_reading(code: str, *arguments: object) -> int:
    """Peak anonymous memory of reading a source in a process of its own: see `peak.peak_of`.

    `code` sets `source`, a small one of the same kind, `warm`, and `max_bytes`.
    """
    return peak_of(textwrap.dedent(code) + READ, *arguments)


READ = """
def work(source=None):
    for part in (source or globals()["source"]).blocks(max_bytes):
        pass

work(warm)
"""
