"""10x Genomics: HDF5 and folders of the same experiment are equal matrices of cells x genes."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import DATA, assert_same, check_source, read
from scipy import io, sparse

import sparsestore as ss
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

h5py = pytest.importorskip("h5py")

TENX = DATA / "tenx"
V3, V1 = TENX / "filtered_feature_bc_matrix.h5", TENX / "v1.2.0_filtered_gene_bc_matrices_h5.h5"


def lines(name: str) -> list[list[str]]:
    return [line.split("\t") for line in gzip.decompress((TENX / name).read_bytes()).decode().splitlines()]


def opened(path: Path, **options: Any) -> Any:
    return open_source(path, format="tenx", **options)


def expected() -> tuple[Any, dict[str, Any]]:
    """Cells x genes, read by scipy and as text."""
    barcodes = np.array([line[0] for line in lines("barcodes.tsv.gz")], object)
    return sparse.csr_array(io.mmread(TENX / "matrix.mtx.gz").T), {"barcode": barcodes}


def test_a_file_equals_the_folder_of_the_same_experiment() -> None:
    matrix, columns = expected()
    source = opened(V3)
    assert source.sorted_rows
    check_source(source, matrix, columns)
    assert source.dtype == np.int32
    assert source.feature_names.tolist() == [line[0] for line in lines("features.tsv.gz")]
    folder = opened(TENX)
    check_source(folder, matrix, columns)
    assert folder.feature_names.tolist() == source.feature_names.tolist()


def test_both_become_the_same_store(tmp_path: Path) -> None:
    file = ss.convert(V3, tmp_path / "file.zarr", format="tenx")
    folder = ss.convert(TENX, tmp_path / "folder.zarr", format="tenx", max_bytes="24MiB")
    assert_same(file[:], folder[:])
    assert file.column("barcode")[:].tolist() == folder.column("barcode")[:].tolist()
    assert file.feature_names.tolist() == folder.feature_names.tolist()


def test_a_file_of_cell_ranger_2() -> None:
    with h5py.File(V1) as file:
        group = file["hg19_chr21"]
        arrays = (group["data"][:], group["indices"][:], group["indptr"][:])
        matrix = sparse.csc_array(arrays, shape=group["shape"][:].tolist()).T
        barcodes, genes = group["barcodes"][:].astype(str), group["genes"][:].astype(str)
    for options in ({}, {"genome": "hg19_chr21"}):
        source = opened(V1, **options)
        check_source(source, matrix, {"barcode": barcodes.astype(object)})
        assert source.feature_names.tolist() == genes.tolist()


def test_a_folder_of_cell_ranger_2_is_not_compressed(tmp_path: Path) -> None:
    for name, new in (
        ("matrix.mtx.gz", "matrix.mtx"),
        ("barcodes.tsv.gz", "barcodes.tsv"),
        ("features.tsv.gz", "genes.tsv"),
    ):
        (tmp_path / new).write_bytes(gzip.decompress((TENX / name).read_bytes()))
    check_source(opened(tmp_path), *expected())


def test_features_may_be_called_by_their_names_where_these_differ(tmp_path: Path) -> None:
    names = [line[1] for line in lines("features.tsv.gz")]
    assert len(set(names)) == len(names)
    for path in (V3, TENX):
        assert opened(path, names="names").feature_names.tolist() == names
    with h5py.File(shutil.copy(V3, tmp_path / "x.h5"), "r+") as file:
        file["matrix/features/name"][7] = file["matrix/features/name"][3]
    with pytest.raises(SourceError, match=r"features/name: feature 7 has the name .*, as feature 3 has: .*--names ids"):
        opened(tmp_path / "x.h5", names="names")
    assert len(opened(tmp_path / "x.h5").feature_names) == 507


def test_one_of_several_genomes_must_be_named(tmp_path: Path) -> None:
    with h5py.File(shutil.copy(V1, tmp_path / "x.h5"), "r+") as file:
        file.copy("hg19_chr21", "mm10")
    with pytest.raises(ValueError, match=r"x\.h5: has several genomes: give genome= .*'hg19_chr21', 'mm10'"):
        opened(tmp_path / "x.h5")
    with pytest.raises(ValueError, match=r"genome='mm9' is not there: give genome="):
        opened(tmp_path / "x.h5", genome="mm9")
    assert opened(tmp_path / "x.h5", genome="mm10").n_rows == 12
    with pytest.raises(ValueError, match="this file has one matrix, of all genomes: leave it out"):
        opened(V3, genome="mm10")
    with pytest.raises(ValueError, match="genome='mm10' is for HDF5 files"):
        opened(TENX, genome="mm10")
    with pytest.raises(ValueError, match="names='symbols', expected one of ids, names"):
        opened(V3, names="symbols")
    with pytest.raises(ValueError, match=r"dtype is 'foo': .*; expected a name such as 'float32'"):
        opened(V3, dtype="foo")


def put(where: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        values = change(file[where][:])
        del file[where]
        file[where] = values

    return edit


BAD: dict[str, tuple[Callable[[Any], None], str]] = {
    "barcodes": (put("matrix/barcodes", lambda v: v[:-1]), "matrix/barcodes: has shape (1106,), expected (1107,)"),
    "ids": (put("matrix/features/id", lambda v: v[:-1]), "matrix/features/id: has shape (506,), expected (507,)"),
    "shape": (put("matrix/shape", lambda v: v[::-1]), "matrix/indptr: has shape (1108,), expected (508,)"),
    "negative": (put("matrix/shape", lambda v: -v), "matrix: has shape '[-507, -1107]', expected two whole numbers"),
    "no_shape": (lambda file: file.__delitem__("matrix/shape"), "has no dataset 'matrix/shape'"),
    "indices": (put("matrix/indices", lambda v: v + 10), "matrix: in rows 0 to 1107: row "),
    "no_group": (
        lambda file: file.__delitem__("matrix"),
        "has no group with barcodes: is it a matrix of 10x Genomics?",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(tmp_path: Path, case: str) -> None:
    edit, message = BAD[case]
    path = tmp_path / "x.h5"
    path.write_bytes(V3.read_bytes())
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(SourceError) as caught:
        read(opened(path))
    assert str(caught.value).startswith(f"{path}: {message}")


BAD_FOLDER: dict[str, tuple[str, Callable[[bytes], bytes | None], str]] = {
    "no_matrix": ("matrix.mtx.gz", lambda _: None, ": has none of them, expected one of matrix.mtx, matrix.mtx.gz"),
    "few_barcodes": (
        "barcodes.tsv.gz",
        lambda text: text[: text.rindex(b"\n", 0, -1) + 1],
        "/barcodes.tsv.gz: has 1106 lines",
    ),
    "many_features": (
        "features.tsv.gz",
        lambda text: text + b"x\ty\tz\n",
        "/features.tsv.gz: has 508 lines, expected 507",
    ),
    "no_field": ("barcodes.tsv.gz", lambda text: b"\n" + text, "/barcodes.tsv.gz:1: has no field 1, found ''"),
    "no_text": ("barcodes.tsv.gz", lambda text: b"\xff\n" + text, "/barcodes.tsv.gz:1: is no UTF-8 text"),
}


@pytest.mark.parametrize("case", BAD_FOLDER)
def test_a_bad_folder_is_refused(tmp_path: Path, case: str) -> None:
    name, change, message = BAD_FOLDER[case]
    for each in ("matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"):
        (tmp_path / each).write_bytes((TENX / each).read_bytes())
    text = change(gzip.decompress((tmp_path / name).read_bytes()))
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_bytes(gzip.compress(text))
    with pytest.raises(SourceError) as caught:
        read(opened(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}{message}")


def test_a_folder_with_a_file_twice_is_refused(tmp_path: Path) -> None:
    for name in ("matrix.mtx", "matrix.mtx.gz"):
        (tmp_path / name).touch()
    with pytest.raises(SourceError, match=r"has matrix\.mtx and matrix\.mtx\.gz, expected one of"):
        opened(tmp_path)
