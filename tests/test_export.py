"""Exports: what other libraries read from them, that they convert back to the same store, and that nothing is lost."""

from __future__ import annotations

import bz2
import gzip
import importlib
import json
import lzma
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from peak import peak_of
from scipy import io, sparse

import sparsestore as ss
from sparsestore import export as module
from sparsestore.export import export
from sparsestore.exports.registry import FORMATS

N, WIDTH = 300, 20
NAMES = [f'a "{i}", b' if i % 3 else f"f{i}" for i in range(WIDTH)]


def matrix(dtype: str = "float32") -> sparse.csr_array:
    cells = sparse.random_array((N, WIDTH), density=0.2, rng=np.random.default_rng(0), dtype=np.float64).toarray()
    cells[-1, -1] = 1 / 3
    x = sparse.csr_array(cells)
    x.data[:5] = [1e-7, 123456.789, 1e22, 3, -0.5]
    if np.dtype(dtype).kind != "f":
        x.data = np.round(x.data % 1 * 100)
    return sparse.csr_array(x.astype(dtype))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plain store p.zarr, which has labels alone, and a full one, s.zarr."""
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, N)
    ss.convert(matrix(), folder / "p.zarr", columns={"y": y}, progress=False)
    columns = {
        "y": y,
        "qid": np.arange(N) // 10,
        "name": np.array([f"réw {i}" for i in range(N)], object),
        "two": rng.random((N, 2)),
        "many": (rng.random((N, 3)) < 0.5).astype(np.uint8),
        "age": np.ma.MaskedArray(rng.integers(0, 99, N), rng.random(N) < 0.3),
        "score": np.ma.MaskedArray(rng.random(N), rng.random(N) < 0.3),
        "seen": np.ma.MaskedArray(rng.random(N) < 0.5, rng.random(N) < 0.3),
        "city": np.ma.MaskedArray(np.array(["x"] * N, object), rng.random(N) < 0.3),
        "ok": rng.random(N) < 0.5,
    }
    ss.convert(matrix(), folder / "s.zarr", columns=columns, feature_names=NAMES, progress=False)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> ss.Store:
    return ss.open(folder / "p.zarr")


@pytest.fixture(scope="module")
def full(folder: Path) -> ss.Store:
    return ss.open(folder / "s.zarr")


def quiet(store: Any, dst: Path, **options: Any) -> module.Exported:
    """Export without a word about what is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(store, dst, progress=False, **options)


def equal(found: Any, expected: Any) -> None:
    found, expected = sparse.csr_array(found), sparse.csr_array(expected)
    expected.sort_indices()
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)


# ------------------------------------------------------------------------------------------------ as others read them


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
def test_scikit_learn_reads_svmlight(full: ss.Store, tmp_path: Path, suffix: str) -> None:
    from sklearn.datasets import load_svmlight_file

    quiet(full, tmp_path / f"x.svm{suffix}")
    x, y, qid = load_svmlight_file(str(tmp_path / f"x.svm{suffix}"), n_features=WIDTH, dtype=np.float32, query_id=True)
    equal(x, matrix())
    np.testing.assert_array_equal(y, full.column("y")[:])
    np.testing.assert_array_equal(qid, full.column("qid")[:])


def test_scikit_learn_reads_several_labels(full: ss.Store, tmp_path: Path) -> None:
    from sklearn.datasets import load_svmlight_file

    quiet(full, tmp_path / "x.svm", label="many", qid=False, zero_based=True)
    x, y = load_svmlight_file(
        str(tmp_path / "x.svm"), n_features=WIDTH, dtype=np.float32, multilabel=True, zero_based=True
    )
    equal(x, matrix())
    assert y == [tuple(np.flatnonzero(row)) for row in full.column("many")[:]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint64", "bool", "float16"])
def test_scipy_reads_matrix_market_and_npz(tmp_path: Path, dtype: str) -> None:
    x = matrix("float32" if dtype == "float16" else dtype)
    if dtype == "float16":
        x.data = np.minimum(x.data, 1000).astype(np.float16).astype(np.float32)
        with ss.create(tmp_path / "s.zarr", dtype="float16", columns={}) as writer:
            writer.append(x)
        store = ss.open(tmp_path / "s.zarr")
    else:
        store = ss.convert(x, tmp_path / "s.zarr", progress=False)
    export(store, tmp_path / "x.mtx.gz", progress=False)
    head = (tmp_path / "x.mtx.gz").read_bytes()
    assert head[:2] == b"\x1f\x8b"
    equal(io.mmread(tmp_path / "x.mtx.gz").tocsr().astype(x.dtype), x)
    for compressed in (False, True):
        quiet(store, tmp_path / "x.npz", compressed=compressed, overwrite=True)
        found = sparse.load_npz(tmp_path / "x.npz")
        assert (found.dtype, found.indices.dtype, isinstance(found, sparse.csr_array)) == (x.dtype, np.int32, True)
        equal(found, x)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.csv.gz", "x.tsv.xz", "x.csv.zst"])
def test_pandas_reads_triples(full: ss.Store, tmp_path: Path, name: str) -> None:
    import pandas as pd

    quiet(full, tmp_path / name)
    found = pd.read_csv(tmp_path / name, sep="\t" if "tsv" in name else ",", float_precision="round_trip")
    assert list(found) == ["row", "feature", "value"]
    values = found["value"].to_numpy(np.float32), (found["row"], found["feature"])
    equal(sparse.csr_array(values, (N, WIDTH)), matrix())
    quiet(full, tmp_path / name, feature_names=True, overwrite=True)
    named = pd.read_csv(tmp_path / name, sep="\t" if "tsv" in name else ",")
    assert named["feature"].tolist() == [NAMES[i] for i in found["feature"]]


@pytest.mark.parametrize("layout", ["triples", "lists"])
def test_arrow_reads_parquet(full: ss.Store, tmp_path: Path, layout: str) -> None:
    import pyarrow.parquet as pq

    quiet(full, tmp_path / "x.parquet", layout=layout)
    found = pq.read_table(tmp_path / "x.parquet")
    assert json.loads(found.schema.metadata[b"sparsestore"]) == {"shape": [N, WIDTH], "layout": layout}
    if layout == "triples":
        values = found["value"].to_numpy(), (found["row"].to_numpy(), found["feature"].to_numpy())
        equal(sparse.csr_array(values, (N, WIDTH)), matrix())
        quiet(full, tmp_path / "x.parquet", feature_names=True, overwrite=True)
        named = pq.read_table(tmp_path / "x.parquet")["feature"].to_pylist()
        assert named == [NAMES[i] for i in found["feature"].to_pylist()]
        return
    for row, (indices, values) in enumerate(
        zip(found["indices"].to_pylist(), found["values"].to_pylist(), strict=True)
    ):
        assert indices == full[row].indices.tolist()
        assert values == full[row].data.tolist()
    for name in full.columns:
        assert found[name].to_pylist() == full.column(name)[:].tolist(), name


def test_anndata_reads_h5ad(full: ss.Store, tmp_path: Path) -> None:
    import anndata
    import pandas as pd

    with pytest.warns(UserWarning, match="missing values of 'score' became NaN"):
        export(full, tmp_path / "x.h5ad", progress=False)
    found = anndata.read_h5ad(tmp_path / "x.h5ad")
    equal(found.X, matrix())
    assert found.X.dtype == np.float32
    assert found.var_names.tolist() == NAMES
    assert found.obs_names.tolist() == [str(i) for i in range(N)]
    np.testing.assert_array_equal(found.obsm["two"], full.column("two")[:])
    for name in ("y", "qid", "name", "ok"):
        assert found.obs[name].tolist() == full.column(name)[:].tolist()
    for name in ("age", "seen", "city", "score"):
        values = [None if pd.isna(value) else value for value in found.obs[name]]
        assert values == full.column(name)[:].tolist(), name
    quiet(full, tmp_path / "x.h5ad", index="name", overwrite=True)
    found = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert found.obs_names.tolist() == full.column("name")[:].tolist()
    assert "name" not in found.obs


@pytest.mark.parametrize("n", [0, 3])
def test_a_store_without_entries_is_a_file_too(tmp_path: Path, n: int) -> None:
    import anndata

    store = ss.convert(np.zeros((n, 4)), tmp_path / "s.zarr", progress=False)
    for name in ("x.svm", "x.mtx", "x.csv", "x.npz", "x.parquet", "x.h5ad"):
        assert quiet(store, tmp_path / name).rows == n
    assert sparse.load_npz(tmp_path / "x.npz").shape == (n, 4)
    assert io.mmread(tmp_path / "x.mtx").shape == (n, 4)
    assert anndata.read_h5ad(tmp_path / "x.h5ad").shape == (n, 4)
    assert (tmp_path / "x.csv").read_text() == "row,feature,value\n"


# ------------------------------------------------------------------------------------------------------- and back again


@st.composite
def rows(draw: st.DrawFn) -> tuple[sparse.csr_array, dict[str, Any]]:
    """A matrix of any dtype that text is read in, and labels."""
    dtype = draw(st.sampled_from(["float32", "float64", "int16"]))
    n, width = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    cells = st.tuples(st.integers(0, n - 1), st.integers(0, width - 1))
    places = sorted(draw(st.sets(cells, min_size=1, max_size=12)))
    number: Any = st.integers(-(2**15), 2**15 - 1) if dtype == "int16" else st.floats(width=int(dtype[-2:]))
    values = np.array([draw(number) for _ in places], dtype)
    at = np.array([row for row, _ in places]), np.array([feature for _, feature in places])
    x = sparse.csr_array((values, at), shape=(n, width))
    y = draw(
        st.lists(
            st.integers(-3, 3) | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=n, max_size=n
        )
    )
    return x, {"y": np.array(y, np.float32)}


SOURCES = {"svmlight": "x.svm", "matrix_market": "x.mtx", "npz": "x.npz", "csv": "x.csv", "parquet": "x.parquet"}
SOURCES |= {"h5ad": "x.h5ad"}
TRIPLES = {"row": "row", "feature": "feature", "value": "value"}


@pytest.mark.parametrize("format", SOURCES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_what_is_exported_converts_back(
    format: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("back")
    x, columns = data.draw(rows())
    store = ss.convert(x, folder / "a.zarr", columns=columns, progress=False)
    suffix = data.draw(st.sampled_from(["", ".gz", ".zst", ".xz", ".bz2"])) if FORMATS[format].text else ""
    path = folder / f"{SOURCES[format]}{suffix}"
    quiet(store, path)
    options: dict[str, Any] = {}
    if format in ("svmlight", "matrix_market", "csv"):
        options["dtype"] = "float64" if x.dtype == np.float64 else "float32"
    if format in ("svmlight", "csv"):
        options["n_features"] = x.shape[1]
    if format in ("csv", "parquet"):
        options |= TRIPLES
    if format == "csv":
        options["n_rows"] = x.shape[0]
    back = ss.convert(path, folder / "b.zarr", format=format, progress=False, **options)
    equal(back[:], store[:])
    if format == "svmlight":
        # read as float64, where the values are, 0.1 of a float32 label is 0.1
        np.testing.assert_array_equal(back.column("y")[:].astype(np.float32), columns["y"])


KEPT = ("qid", "name", "age", "score", "seen", "city", "ok")


@pytest.mark.parametrize("format", ["parquet", "h5ad"])
def test_columns_and_names_convert_back(format: str, full: ss.Store, tmp_path: Path) -> None:
    path = tmp_path / f"x.{format}"
    quiet(full, path, **({"layout": "lists"} if format == "parquet" else {}))
    options: dict[str, Any] = {"label": "y", "keep": list(KEPT)}
    if format == "parquet":
        options |= {"indices": "indices", "values": "values"}
    back = ss.convert(path, tmp_path / "b.zarr", progress=False, **options)
    equal(back[:], full[:])
    for name in ("y", *KEPT):
        found, wanted = back.column(name)[:], full.column(name)[:]
        if format == "h5ad" and name == "city":  # AnnData has no missing text
            wanted = np.ma.filled(wanted, "")
        masks = np.ma.getmaskarray(found), np.ma.getmaskarray(wanted)
        if found.dtype.kind == "f":  # nan is how floats are missing
            found, wanted = np.ma.filled(found, np.nan), np.ma.filled(wanted, np.nan)
            masks = np.isnan(found), np.isnan(wanted)
        np.testing.assert_array_equal(*masks)
        np.testing.assert_array_equal(found[~masks[0]], wanted[~masks[1]])
    if format == "h5ad":
        assert back.feature_names is not None
        assert back.feature_names.tolist() == NAMES


@pytest.mark.parametrize(
    ("layout", "fields"), [("triples", TRIPLES), ("lists", {"indices": "indices", "values": "values"})]
)
def test_parquet_keeps_the_shape_where_the_last_row_and_feature_have_no_entry(
    tmp_path: Path, layout: str, fields: dict[str, str]
) -> None:
    x = sparse.csr_array(([1.0, 2.0], ([0, 2], [1, 3])), shape=(5, 6))
    for name, part in (("some", x), ("none", x[3:])):
        store = ss.convert(part, tmp_path / f"{name}.zarr", progress=False)
        path = tmp_path / f"{name}.parquet"
        assert not export(store, path, layout=layout, progress=False).warnings
        equal(ss.convert(path, tmp_path / f"{name}-back.zarr", progress=False, **fields)[:], part)
    wide = ss.convert(tmp_path / "some.parquet", tmp_path / "wide.zarr", n_features=9, progress=False, **fields)
    assert wide.shape == (5, 9)


def test_names_that_no_entry_has_are_counted_in_a_warning(tmp_path: Path) -> None:
    x = sparse.csr_array(([1.0, 2.0], ([0, 2], [1, 3])), shape=(5, 6))
    store = ss.convert(x, tmp_path / "a.zarr", feature_names=list("abcdef"), progress=False)
    with pytest.warns(UserWarning, match="4 of 6 features have no entry: whoever reads the file must be told of them"):
        export(store, tmp_path / "a.parquet", feature_names=True, progress=False)
    back = ss.convert(tmp_path / "a.parquet", tmp_path / "b.zarr", progress=False, **TRIPLES)
    assert back.shape == (5, 2)


def test_names_of_features_convert_back_from_triples(full: ss.Store, tmp_path: Path) -> None:
    for name in ("x.csv", "x.parquet"):
        quiet(full, tmp_path / name, feature_names=True)
        fields = {**TRIPLES, "feature": "feature:string"} if name == "x.csv" else TRIPLES
        back = ss.convert(
            tmp_path / name, tmp_path / f"{name}.zarr", feature_names=NAMES, progress=False, n_rows=N, **fields
        )
        equal(back[:], full[:])
        assert back.feature_names is not None
        assert back.feature_names.tolist() == NAMES


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_a_text_of_no_rows_is_one_that_its_compression_reads(tmp_path: Path, suffix: str) -> None:
    store = ss.convert(sparse.csr_array((0, 4)), tmp_path / "a.zarr", columns={"y": np.zeros(0)}, progress=False)
    unpacked: dict[str, Any] = {"": bytes, ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
    unpacked[".zst"] = lambda packed: zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    triples = {**TRIPLES, "n_features": 4}
    for name, text, options in (
        ("x.svm", b"", {"n_features": 4}),
        ("x.csv", b"row,feature,value\n", triples),
        ("x.tsv", b"row\tfeature\tvalue\n", triples),
        ("x.mtx", b"%%MatrixMarket matrix coordinate real general\n0 4 0\n", {}),
    ):
        path = tmp_path / f"{name}{suffix}"
        quiet(store, path)
        assert unpacked[suffix](path.read_bytes()) == text
        back = ss.convert(path, tmp_path / f"{name}.zarr", progress=False, **options)
        assert back.shape == (0, 4)


def test_the_highest_query_number_converts_back(tmp_path: Path) -> None:
    qids = np.array([0, 10**18 - 1], np.uint64)
    store = ss.convert(sparse.csr_array(np.eye(2)), tmp_path / "a.zarr", columns={"qid": qids}, progress=False)
    quiet(store, tmp_path / "x.svm")
    assert (
        ss.convert(tmp_path / "x.svm", tmp_path / "b.zarr", progress=False).column("qid")[:].tolist() == qids.tolist()
    )


def test_several_labels_and_query_numbers_convert_back(full: ss.Store, tmp_path: Path) -> None:
    quiet(full, tmp_path / "x.svm.zst", label="many")
    back = ss.convert(tmp_path / "x.svm.zst", tmp_path / "b.zarr", multilabel=3, progress=False)
    np.testing.assert_array_equal(back.column("y")[:], full.column("many")[:])
    np.testing.assert_array_equal(back.column("qid")[:], full.column("qid")[:])
    equal(back[:], full[:])


def test_rows_features_and_versions_are_chosen(plain: ss.Store, folder: Path, tmp_path: Path) -> None:
    store = ss.convert(plain, tmp_path / "s.zarr", progress=False)
    store.append(matrix()[:5], y=np.zeros(5, int))
    for chosen, expected in (
        ({"rows": "10:20"}, matrix()[10:20]),
        ({"select": "3,7-9", "version": 1}, matrix()[:, [3, 7, 8, 9]]),
        ({"rows": slice(None, None, 7), "select": [5, 2], "version": 1}, matrix()[::7][:, [5, 2]]),
        ({}, sparse.vstack([matrix(), matrix()[:5]])),
    ):
        for name in ("x.npz", "x.mtx"):
            quiet(tmp_path / "s.zarr", tmp_path / name, overwrite=True, **chosen)
        equal(sparse.load_npz(tmp_path / "x.npz"), expected)
        equal(io.mmread(tmp_path / "x.mtx").tocsr().astype(np.float32), expected)
    quiet(plain.select(rows=[5, 3, 3]), tmp_path / "view.npz")
    equal(sparse.load_npz(tmp_path / "view.npz"), matrix()[[5, 3, 3]])


# ---------------------------------------------------------------------------------------------- what can not be written


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "x.svm",
            {},
            "'name', 'two', 'many', 'age', 'score', 'seen', 'city', 'ok', the names of the features: left out",
        ),
        ("x.mtx", {}, "matrix_market can not hold the columns 'y', 'qid', 'name', 'two', 'many', 'age'"),
        ("x.csv", {"feature_names": True}, "can not hold the columns 'y', .* 'ok': left out"),
        ("x.parquet", {"layout": "lists"}, "parquet can not hold the names of the features: left out"),
    ],
)
def test_what_is_left_out_is_told(
    full: ss.Store, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.warns(UserWarning, match=message) as told:
        found = export(full, tmp_path / name, progress=False, **options)
    assert [str(each.message) for each in told] == found.warnings


def test_a_shape_that_is_not_in_the_file_is_told(tmp_path: Path) -> None:
    store = ss.convert(np.eye(3, 5)[[0, 1, 2, 0, 1]] * [1, 1, 1, 1, 0], tmp_path / "s.zarr", progress=False)
    with pytest.warns(
        UserWarning, match="no column 'y': all labels are 0|from number 3 on have no entry: .*n_features=5"
    ):
        assert len(export(store, tmp_path / "x.svm", progress=False).warnings) == 2
    assert (tmp_path / "x.svm").read_text().startswith("0 1:1\n0 2:1\n")
    with pytest.warns(UserWarning, match="must be told of 5 rows and 5 features"):
        export(store, tmp_path / "x.csv", progress=False)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("x.xyz", {}, "the suffix '.xyz' tells no format: give format=, one of svmlight"),
    ("x.npz.gz", {}, "a npz file is not compressed as a whole: leave out .gz"),
    ("x.svm", {"format": "arff"}, "format='arff' is not known, expected one of svmlight"),
    ("x.mtx", {"label": "y"}, "label: no option of format matrix_market, expected only none"),
    ("x.svm", {"label": "z"}, "label='z': there is no such column"),
    ("x.svm", {"label": "name"}, "column 'name' is text, and labels of svmlight are numbers"),
    ("x.svm", {"label": "age"}, r"row \d+: column 'age' has no value, and svmlight needs a finite number"),
    ("x.svm", {"label": "two"}, r"row 0: column 'two' has \[0\.\d+, 0\.\d+\], expected zeros and ones"),
    ("x.csv", {"delimiter": ".."}, "delimiter='..', expected one character"),
    ("x.csv", {"delimiter": "-"}, "delimiter='-', expected one character"),
    ("x.parquet", {"layout": "wide"}, "layout is 'wide', expected one of triples, lists"),
    ("x.parquet", {"layout": "lists", "feature_names": True}, "feature_names=True is for layout='triples'"),
    ("x.h5ad", {"index": "y"}, "index='y': there is no such column of text"),
    ("x.h5ad", {"index": "city"}, "column 'city' has missing values, and each row needs a name"),
    ("x.npz", {"rows": "10"}, "rows='10', expected start:stop"),
    ("x.npz", {"max_bytes": 1000}, "max_bytes is 1000, expected at least"),
    ("x.npz", {"version": 9}, "there is no version 9|version=9|store_version=9"),
    ("none/x.npz", {}, "no such folder"),
]


@pytest.mark.filterwarnings("ignore:.*can not hold")
@pytest.mark.parametrize(("name", "options", "message"), REFUSED, ids=[f"{n} {o}" for n, o, _ in REFUSED])
def test_what_can_not_be_is_refused_and_nothing_is_left(
    folder: Path, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, OSError, ss.errors.ResourceError), match=message):
        export(folder / "s.zarr", tmp_path / name, progress=False, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"y": [1.0, np.nan]}, {}, "row 1: column 'y' has nan, and svmlight needs a finite number"),
        ({"y": [np.inf, 1.0]}, {}, "row 0: column 'y' has inf"),
        ({"y": np.array([[1, 0], [0, 0]])}, {}, "row 1 has no label and no entry"),
        (
            {"qid": np.array([1, 2**63 + 5], np.uint64)},
            {},
            f"row 1: column 'qid' has {2**63 + 5}, expected 0 to 9{{18}}",
        ),
        (
            {"qid": np.array([-7, 1], np.int16)},
            {},
            "row 0: column 'qid' has -7, expected .*: leave it out with qid=False",
        ),
        ({"qid": [10**18 - 1, 10**18]}, {}, "row 1: column 'qid' has 1000000000000000000, expected"),
        ({"y": [0, 1], "qid": [0.5, 1.0]}, {"qid": True}, "there is no column 'qid' of whole numbers"),
        ({"y": [0, 1]}, {"qid": True}, "there is no column 'qid' of whole numbers"),
    ],
)
def test_labels_that_svmlight_lacks_are_refused(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    ss.convert(np.array([[1.0], [0.0]]), tmp_path / "s.zarr", columns=columns, progress=False)
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "s.zarr", tmp_path / "x.svm", progress=False, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["s.zarr"]


def test_a_file_that_is_there_stays_unless_it_is_to_be_replaced(plain: ss.Store, tmp_path: Path) -> None:
    path = tmp_path / "x.svm"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is there already: choose another name, or pass overwrite=True"):
        export(plain, path)
    (tmp_path / "folder.svm").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        export(plain, tmp_path / "folder.svm", overwrite=True)
    link = tmp_path / "link.svm"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="is a link to what is not there: choose another name, or"):
        export(plain, link, progress=False)
    export(plain, link, overwrite=True, progress=False)
    assert not link.is_symlink()
    assert path.read_text() == "mine"
    export(plain, path, overwrite=True, progress=False)
    assert path.read_text() != "mine"


def test_a_file_that_comes_meanwhile_stays(plain: ss.Store, tmp_path: Path) -> None:
    path = tmp_path / "x.svm"
    with pytest.raises(FileExistsError, match="was made by another process meanwhile"):
        export(plain, path, progress=lambda *_: path.write_text("theirs") and None)
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:.*can not hold")
@pytest.mark.parametrize("name", ["x.svm", "x.svm.zst", "x.mtx.gz", "x.csv", "x.npz", "x.parquet", "x.h5ad"])
def test_an_interrupted_one_leaves_nothing(plain: ss.Store, tmp_path: Path, name: str) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / name).write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        export(plain, tmp_path / name, overwrite=True, progress=stop)
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(("name", "library", "extra"), [("x.parquet", "pyarrow", "arrow"), ("x.h5ad", "h5py", "hdf5")])
def test_a_missing_library_is_named(
    plain: ss.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str, extra: str
) -> None:
    real = importlib.import_module

    def import_module(name: str, *given: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ImportError
        return real(name, *given)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ImportError, match=rf'needs {library}: pip install "sparsestore\[{extra}\]"'):
        export(plain, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stores of 300, 100,000 and 1,000,000 rows."""
    folder = tmp_path_factory.mktemp("memory")
    rng = np.random.default_rng(0)
    x = sparse.random_array((100_000, 1000), density=0.02, rng=rng, format="csr", dtype=np.float32)
    ss.convert(x[:300], folder / "warm", columns={"y": np.arange(300)}, progress=False)
    ss.convert(x, folder / "1", columns={"y": np.arange(100_000)}, progress=False)
    with ss.create(folder / "10", columns={"y": "int64"}) as writer:
        for _ in range(10):
            writer.append(x, y=np.arange(100_000))
    return folder


@pytest.mark.parametrize(
    "name",
    ["x.svm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("x.mtx", "x.npz", "x.parquet", "x.h5ad"))],
)
def test_memory_is_bounded(stores: Path, tmp_path: Path, name: str) -> None:
    code = """
    import sys, warnings
    from pathlib import Path
    from sparsestore.export import export
    warnings.simplefilter("ignore")
    def work(store=None):
        export(store or sys.argv[1], sys.argv[3], max_bytes="32MiB", progress=False, overwrite=True)
    work(sys.argv[2])
    """
    for size in ("1", "10"):
        assert peak_of(code, stores / size, stores / "warm", tmp_path / name) <= 32 << 20, size
    (tmp_path / name).unlink()


# -------------------------------------------------------------------------------------------------------- command line


def run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparsestore", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done


def test_the_command_exports_and_warns(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.svm"
    found = run("export", folder / "s.zarr", path, "--json", "--rows", "5:15", "--zero-based", "--no-qid")
    facts = json.loads(found.stdout)
    assert (facts["rows"], facts["features"], facts["format"], len(facts["warnings"])) == (10, WIDTH, "svmlight", 1)
    assert found.stderr.startswith("warning: ")
    assert len(path.read_text().splitlines()) == 10
    assert "is there already" in run("export", folder / "s.zarr", path, status=1).stderr
    assert "10 rows x 20 features" in run("export", folder / "p.zarr", path, "--rows", ":10", "--overwrite").stdout


def test_the_help_has_every_format_and_option() -> None:
    text = run("export", "--help").stdout
    for name, known in FORMATS.items():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert all(suffix in line for suffix in known.suffixes)
        assert ("(+)" in line) == known.text
