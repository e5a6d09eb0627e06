"""Dense HDF5: equal to what h5py reads, in any storage, and files of other formats told by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import DATA, check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsestore as ss
from sparsestore.convert import append_source
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

h5py = pytest.importorskip("h5py")

STORED: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (7, 3)},
    "gzip": {"chunks": (7, 3), "compression": "gzip"},
    "gzip_shuffle_fletcher32": {"chunks": (7, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "one_chunk": {"chunks": (50, 11), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (7, 3), "compression": "lzf"},
    "tall_chunks": {"chunks": (50, 1), "compression": "gzip"},
}


def matrix(dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    return (rng.integers(0, 4, (50, 11)) * (rng.random((50, 11)) < 0.3)).astype(dtype)


def saved(folder: Path, name: str = "x", values: Any = None, **how: Any) -> Path:
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=matrix() if values is None else values, **how)
    return path


@pytest.mark.parametrize("how", STORED)
def test_equals_h5py_in_any_storage(tmp_path: Path, how: str) -> None:
    check_source(open_source(saved(tmp_path, **STORED[how])), matrix())


@pytest.mark.parametrize("dtype", ["bool", "int8", ">i2", "uint64", "float16", ">f8"])
def test_every_dtype_of_numbers(tmp_path: Path, dtype: str) -> None:
    for how in ({}, {"compression": "gzip", "shuffle": True}):
        source = open_source(saved(tmp_path, values=matrix(dtype), **how))
        assert source.dtype == np.dtype(dtype).newbyteorder("=")
        check_source(source, matrix(dtype).astype(np.float32 if dtype == "float16" else source.dtype))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 20), st.integers(1, 20)),
    chunks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    compression=st.sampled_from([None, "gzip"]),
)
def test_any_shape_and_chunks(
    tmp_path_factory: pytest.TempPathFactory, shape: Any, chunks: Any, compression: str | None
) -> None:
    values = np.arange(shape[0] * shape[1]).reshape(shape) % 3
    path = tmp_path_factory.getbasetemp() / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=chunks, maxshape=(None, None), compression=compression)
    found, _ = read(open_source(path), 2000)
    np.testing.assert_array_equal(found.toarray(), values)


def test_labels_and_weights_lie_in_other_datasets(tmp_path: Path) -> None:
    path = saved(tmp_path, "train/x")
    with h5py.File(path, "r+") as file:
        file["train/y"] = np.arange(50) % 3
        file["train/w"] = np.linspace(0, 1, 50, dtype=">f4")
        file["alias"] = h5py.SoftLink("/train/x")
        file["test/x"] = np.zeros((2, 2))
    with pytest.raises(
        SourceError, match=r"x\.h5: has 3 datasets of 2 dimensions, expected one: give dataset= .*'alias"
    ):
        open_source(path)
    for name in ("train/x", "alias"):
        source = open_source(path, dataset=name, label="train/y", weight="train/w")
        check_source(source, matrix(), {"y": np.arange(50) % 3, "sample_weight": np.linspace(0, 1, 50, dtype="f4")})
    store = ss.convert(path, tmp_path / "s.zarr", dataset="train/x", label="train/y", n_features=20)
    assert store.shape == (50, 20)
    assert store.column("y")[:].tolist() == (np.arange(50) % 3).tolist()


@pytest.mark.parametrize(
    ("path", "what"),
    [
        (
            DATA / "tenx/filtered_feature_bc_matrix.h5",
            r"a matrix of 10x Genomics: give format='tenx' \(--format tenx\)",
        ),
        (DATA / "tenx/v1.2.0_filtered_gene_bc_matrices_h5.h5", "a matrix of 10x Genomics: give format='tenx'"),
        (DATA / "anndata/v0.7.8_adata.h5ad", "AnnData: give format='h5ad'"),
    ],
)
def test_a_file_that_looks_like_another_format_is_told_so(path: Path, what: str) -> None:
    with pytest.raises(SourceError, match=f"looks like {what}"):
        open_source(path, format="hdf5")


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "none": (None, {}, "has 0 datasets of 2 dimensions, expected one: give dataset= (--dataset), it has none"),
    "missing": (None, {"dataset": "z"}, "has no dataset 'z'"),
    "group": (None, {"dataset": "g"}, "has a group, expected a dataset 'g'"),
    "one_dimension": (None, {"dataset": "y"}, "y: has shape (50,), expected 2 dimensions"),
    "text": (np.full((2, 2), b"x"), {}, "x: is of dtype |S1, expected numbers"),
    "complex": (np.zeros((2, 2), complex), {}, "x: is of dtype 'complex128', expected numbers or text"),
    "label_length": (matrix()[:9], {"label": "y"}, "y: has shape (50,), expected (9,)"),
    "label_nan": (matrix(), {"label": "nan"}, "nan: row 0: nan, expected a finite number"),
    "narrow": (matrix(), {"n_features": 3}, "x: has 11 features, expected at most n_features=3"),
    "rows": (np.zeros((20_000_000, 0)), {}, "x: declares 20000000 rows for 0 entries, expected at most 16777216"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(tmp_path: Path, case: str) -> None:
    values, options, message = BAD[case]
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_group("g")
        file["y"], file["nan"] = np.zeros(50), np.full(50, np.nan)
        if values is not None:
            file["x"] = values
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(open_source(path, **options))
    assert str(caught.value).startswith(f"{path}: {message}")


def test_what_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.hdf5").write_bytes(b"1 2 3\n")
    with pytest.raises(SourceError, match=r"x\.hdf5: is no HDF5 file, or was cut short"):
        open_source(tmp_path / "x.hdf5")


def test_a_chunk_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    values = np.zeros((300_000, 8), np.float32)
    path = saved(tmp_path, values=values, chunks=values.shape, compression="gzip")
    assert path.stat().st_size < 100_000
    with pytest.raises(
        SourceError, match=r"has chunks of 9600000 bytes, which are read whole, expected at most 1048576"
    ):
        read(open_source(path), 1 << 20)


def test_hdf5_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r'pip install "sparsestore\[hdf5\]"'):
        open_source(path)


@pytest.mark.parametrize(
    "how", ["gzip", *(pytest.param(how, marks=pytest.mark.slow) for how in ("contiguous", "tall"))]
)
def test_memory_is_bounded(tmp_path: Path, how: str) -> None:
    chunks: dict[str, Any] = {"contiguous": {}, "gzip": {"chunks": (500, 64)}, "tall": {"chunks": (20_000, 4)}}
    if how != "contiguous":
        chunks[how]["compression"] = "gzip"
    rng = np.random.default_rng(0)
    for name, n in (("large", 40_000), ("warm", 10)):
        values = (rng.random((n, 256)) < 0.1).astype(np.float32)
        (tmp_path / name).mkdir()
        saved(tmp_path / name, values=values, **({} if n == 10 else chunks[how]))
    code = """
    import sys
    from sparsestore.sources.registry import open_source
    max_bytes = 8 << 20
    source, warm = open_source(sys.argv[1]), open_source(sys.argv[2])
    """
    assert peak_of_reading(code, tmp_path / "large/x.h5", tmp_path / "warm/x.h5") <= (8 << 20) + (4 << 20)


def test_other_names_of_the_numbers_of_an_enumeration_are_not_appended(tmp_path: Path) -> None:
    def made(name: str, **names: int) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            dtype = h5py.enum_dtype(names, basetype="i1")
            file.create_dataset("x", data=np.array([[0, 1], [1, 0]], "i1"), dtype=dtype)
            file.create_dataset("labels", data=np.array([0, 1], "i1"), dtype=dtype)
            file.create_dataset("plain", data=np.array([[0, 1], [1, 0]], "i1"))
        return tmp_path / name

    first, other, more = made("a.h5", RED=0, BLUE=1), made("b.h5", BLUE=0, RED=1), made("c.h5", RED=0, BLUE=1, PINK=2)
    for options, what in (({"dataset": "x"}, "feature 'x'"), ({"dataset": "plain", "label": "labels"}, "column 'y'")):
        path = tmp_path / f"{options['dataset']}.zarr"
        ss.convert(first, path, **options)
        with pytest.raises(ValueError, match=f"number 0 of {what} stands for .*0 'BLUE'.*, in .* for .*0 'RED'"):
            append_source(other, path, **options)
        append_source(more, path, **options)
        assert len(ss.open(path)) == 4
