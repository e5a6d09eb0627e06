"""Matrices of 10x Genomics as cells x genes: HDF5 of Cell Ranger 2 and 3, and folders of Matrix Market.

Formats: https://www.10xgenomics.com/support/software/cell-ranger/latest/analysis/outputs/cr-outputs-h5-matrices and
cr-outputs-mex-matrices. Both hold genes x cells; a CSC matrix of these is a CSR matrix of cells x genes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import number_dtype
from sparsestore.errors import SourceError
from sparsestore.features import as_names
from sparsestore.sources import containers, options
from sparsestore.sources.base import Block, Triples
from sparsestore.sources.containers import Compressed, Container
from sparsestore.sources.file import FileState, check_file, shown
from sparsestore.sources.matrix_market import MatrixMarketSource
from sparsestore.sources.text import TextFile

__all__ = ["TenxSource"]

Array = NDArray[Any]

_NAMES = ("ids", "names")
_STRING_BYTES = 160  # of a barcode as text, about, for a while twice
_LINE = 1 << 16
_PIECE = 1 << 20


class TenxSource:
    """Cells of a 10x HDF5 file, or of a folder with matrix.mtx, barcodes.tsv and features.tsv (or genes.tsv).

    A file gives rows, a folder triples. `blocks` holds at most `max_bytes`, or one row, which may take four times as
    much; and five chunks of at most `max_bytes` (or 1 MiB) each, a file with larger ones being refused. Of a folder
    what `MatrixMarketSource` does. Barcodes become the column "barcode"; all kinds of features are kept.

    Parameters
    ----------
    path : Path
        Files of a folder may end in ``.gz``.
    genome : str, optional
        Which matrix is meant, where a file of Cell Ranger 2 has several.
    names : {"ids", "names"}
        What features are called: by their ids, no two of which are alike, or by their names, where that is so of them.
    dtype : optional
        Another dtype of the values; float32 in a folder.
    """

    def __init__(
        self, path: Path, *, genome: str | None = None, names: str = "ids", dtype: DTypeLike | None = None
    ) -> None:
        if names not in _NAMES:
            raise ValueError(f"names={names!r}, expected one of {', '.join(_NAMES)}")
        self.name = str(path)
        self._path = path
        self._options = {"genome": genome, "names": names, "dtype": None if dtype is None else str(number_dtype(dtype))}
        self._parts: _File | _Folder
        if path.is_dir():
            if genome is not None:
                raise ValueError(f"{path}: genome={genome!r} is for HDF5 files: give the folder of that genome")
            self._parts = _Folder(path, names, dtype)
        else:
            check_file(path)
            self._parts = _File(path, genome, names, dtype)
        self.sorted_rows = self._parts.sorted_rows
        self.unit = "rows" if self.sorted_rows else "bytes"
        self.n_rows: int | None = self._parts.n_rows
        self.n_features: int | None = len(self._parts.feature_names)
        self.feature_names = self._parts.feature_names
        self.dtype: np.dtype[Any] | None = self._parts.dtype
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {"barcode": ("string", ())}
        self.size: int | None = self._parts.size
        self.blocks = self._parts.blocks
        self.following = self._parts.following
        self.whole = self._parts.whole

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, and the options."""
        return options.provenance(self._path, "tenx", self._options)


class _File:
    """HDF5."""

    sorted_rows = True
    whole = False

    def __init__(self, path: Path, genome: str | None, names: str, dtype: DTypeLike | None) -> None:
        self.name = str(path)
        self._path = path
        self._state = FileState.of(path)
        with containers.opened(path, containers.HEADER_BYTES) as box:
            self._group = _group(box, genome)
            name = f"{box.name}: {self._group}"
            shape = box.array(f"{self._group}/shape")
            containers.integers(containers.vector(shape, 2))
            genes, cells = containers.shape_of(name, shape.rows(0, 2).tolist())
            arrays = f"{self._group}/indptr", f"{self._group}/indices", f"{self._group}/data"
            self._matrix = Compressed.found(box, name, "csr", (cells, genes), arrays)
            containers.vector(box.array(f"{self._group}/barcodes"), cells)
            old = {"ids": "genes", "names": "gene_names"}
            new = {"ids": "features/id", "names": "features/name"}
            stored = box.array(f"{self._group}/{(old if self._group != 'matrix' else new)[names]}")
            containers.vector(stored, genes)
            self.feature_names = _unique(stored.name, containers.text(stored, 0, genes))
        self.n_rows, self.size = cells, cells
        self.dtype = options.value_dtype(name, self._matrix.dtype, dtype)

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        self._state.check(self._path)
        with containers.opened(self._path, max_bytes) as box:
            barcodes = box.array(f"{self._group}/barcodes")
            blocks = self._matrix.blocks(
                box,
                width=self._matrix.shape[1],
                dtype=self.dtype,
                max_bytes=max_bytes,
                beside_bytes=_STRING_BYTES,
            )
            for block in blocks:
                start = block.position - len(block.x)
                yield replace(block, columns={"barcode": containers.text(barcodes, start, block.position)})
        self._state.check(self._path)

    def following(self) -> Any:
        """Not for sources of rows."""
        raise TypeError(f"{self.name} gives its columns with its rows")


class _Folder:
    """Matrix Market and tables."""

    sorted_rows = False

    def __init__(self, path: Path, names: str, dtype: DTypeLike | None) -> None:
        self.name = str(path)
        self._matrix = MatrixMarketSource(_member(path, "matrix.mtx"), dtype="float32" if dtype is None else dtype)
        genes, cells = self._matrix.n_rows or 0, self._matrix.n_features or 0
        options.check_rows(self._matrix.name, cells, genes and self._matrix.n_entries)
        self.n_rows, self.dtype, self.size = cells, self._matrix.dtype, self._matrix.size
        self.whole = self._matrix.whole
        self._barcodes = TextFile(_member(path, "barcodes.tsv"))
        found = sum(len(lines) for lines in _fields(self._barcodes, 0))
        if found != cells:
            raise SourceError(f"{self._barcodes.path}: has {found} lines, expected {cells}, one for each cell")
        features = TextFile(_member(path, "features.tsv", "genes.tsv"))
        texts = [text for lines in _fields(features, _NAMES.index(names)) for text in lines]
        if len(texts) != genes:
            raise SourceError(f"{features.path}: has {len(texts)} lines, expected {genes}, one for each feature")
        self.feature_names = _unique(str(features.path), texts)

    def blocks(self, max_bytes: int) -> Iterator[Triples]:
        """Yield the entries in the order of the file, transposed."""
        for part in self._matrix.blocks(max_bytes):
            yield Triples(part.features, part.rows, part.values, part.position)

    @contextmanager
    def following(self) -> Iterator[Callable[[int], dict[str, Array]]]:
        """Give a function for the barcodes of the next n cells."""
        with closing(_fields(self._barcodes, 0)) as pieces:
            left: list[str] = []

            def read(n: int) -> dict[str, Array]:
                nonlocal left
                while len(left) < n:
                    left += next(pieces)
                out = np.empty(n, object)
                out[:], left = left[:n], left[n:]
                return {"barcode": out}

            yield read


def _member(folder: Path, *names: str) -> Path:
    """File of a folder, compressed or not."""
    found = [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    there = [path for path in found if path.exists()]
    if len(there) != 1:
        what = f"has {' and '.join(path.name for path in there)}" if there else "has none of them"
        raise SourceError(f"{folder}: {what}, expected one of {', '.join(path.name for path in found)}")
    check_file(there[0])
    return there[0]


def _fields(file: TextFile, number: int) -> Generator[list[str], None, None]:
    """One field, behind tabs, of every line, some lines at a time."""
    for piece in file.pieces(_PIECE, _LINE):
        texts = []
        for line, payload in enumerate(piece.text.tobytes().split(b"\n")[:-1], piece.line):
            parts = payload.removesuffix(b"\r").split(b"\t")
            if number >= len(parts) or not parts[number]:
                raise SourceError(f"{file.path}:{line}: has no field {number + 1}, found {shown(payload)}")
            try:
                texts.append(parts[number].decode())
            except UnicodeDecodeError as error:
                raise SourceError(f"{file.path}:{line}: is no UTF-8 text: {error.reason}") from None
        yield texts


def _unique(name: str, texts: Any) -> NDArray[np.object_]:
    try:
        return as_names(texts)
    except ValueError as error:
        raise SourceError(f"{name}: {error}, or give names='ids' (--names ids)") from None


def _group(box: Container, genome: str | None) -> str:
    """The group of the matrix: "matrix", or a genome of those there are."""
    if box.kind("matrix/barcodes"):
        if genome is not None:
            raise ValueError(f"{box.name}: genome={genome!r}: this file has one matrix, of all genomes: leave it out")
        return "matrix"
    genomes = [name for name in box.children("") if box.kind(f"{name}/barcodes")]
    if not genomes:
        raise SourceError(f"{box.name}: has no group with barcodes: is it a matrix of 10x Genomics?")
    if len(genomes) > 1 if genome is None else genome not in genomes:
        found = "has several genomes" if genome is None else f"genome={genome!r} is not there"
        raise ValueError(f"{box.name}: {found}: give genome= (--genome), one of {', '.join(map(shown, genomes[:16]))}")
    return genome or genomes[0]
