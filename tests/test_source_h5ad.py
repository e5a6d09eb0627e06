"""AnnData: equal to AnnData's own reading, in every layout, and nothing believed that a file only declares."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import DATA, assert_same, check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from peak import peak_of
from scipy import sparse

import sparsestore as ss
from sparsestore.convert import append_source
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

h5py = pytest.importorskip("h5py")
anndata = pytest.importorskip("anndata")
pd = pytest.importorskip("pandas")

OLD = DATA / "anndata" / "v0.7.8_adata.h5ad"
FILES = [DATA / "anndata" / name for name in ("v0.7.0_adata.h5ad", "v0.7.8_adata.h5ad", "v0.7.8_adata.zarr.zip")]
FORMS = ("h5ad", "gzip.h5ad", "lzf.h5ad", "2.zarr", "3.zarr")


def read_anndata(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files as old as these
        if path.suffix != ".zip":
            return anndata.read_h5ad(path)
        with pytest.importorskip("zarr").storage.ZipStore(path, mode="r") as store:
            return anndata.read_zarr(store)


def cells(layout: str = "csr", n: int = 60) -> Any:
    """An AnnData object with columns of every kind."""
    rng = np.random.default_rng(0)
    x = sparse.random_array((n, 9), density=0.3, rng=rng, format="csr", dtype=np.float32)
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(rng.choice(["B", "T", "β"], n)),
            "hole": pd.Categorical(["x" if i % 3 else None for i in range(n)]),
            "size": pd.Categorical(rng.choice([1.5, 2.5], n)),
            "count": rng.integers(0, 9, n),
            "share": rng.random(n),
            "good": rng.random(n) > 0.5,
            "maybe": pd.array([i if i % 4 else None for i in range(n)], dtype="Int64"),
            "note": [f"note {i}" for i in range(n)],
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame({"symbol": [f"S{i % 8}" for i in range(9)], "gene": [f"G{i}" for i in range(9)]})
    var.index = pd.Index([f"g{i}" for i in range(9)], name="gene_ids")
    matrix = x.toarray() if layout == "dense" else x.asformat(layout)
    made = anndata.AnnData(matrix, obs=obs, var=var, layers={"twice": (2 * x).tocsr()})
    made.raw = anndata.AnnData(
        sparse.csr_array(np.eye(n, 4)), obs=obs, var=pd.DataFrame(index=["r0", "r1", "r2", "r3"])
    )
    return made


def written(made: Any, folder: Path, form: str = "h5ad") -> Path:
    path = folder / f"x{'' if form.startswith('.') else '.'}{form}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form.endswith("h5ad"):
            made.write_h5ad(path, compression=form.partition(".")[0] if "." in form else None)
        else:
            pytest.importorskip("zarr")
            with anndata.settings.override(zarr_write_format=int(form[0])):
                made.write_zarr(path)
    return path


def open_cells(path: Path, **options: Any) -> Any:
    return open_source(path, format="h5ad", **options)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_equals_anndata_on_real_files(path: Path) -> None:
    expected = read_anndata(path)
    source = open_cells(path, keep=["obs_cat", "int64", "float64", "uint8", "obs_names"], label="cat_ordered")
    obs = expected.obs
    columns = {name: obs[name].to_numpy() for name in ("int64", "float64", "uint8")}
    columns |= {"obs_cat": obs["obs_cat"].astype(object).to_numpy(), "obs_names": obs.index.to_numpy(object)}
    check_source(source, expected.X, {**columns, "y": obs["cat_ordered"].cat.codes})
    assert source.feature_names.tolist() == expected.var_names.tolist()
    assert source.provenance()["categories"]["y"] == obs["cat_ordered"].cat.categories.tolist()
    raw = open_cells(path, layer="raw")
    check_source(raw, expected.raw.X)
    assert raw.feature_names.tolist() == expected.raw.var_names.tolist()
    for name, layer in expected.layers.items():
        check_source(open_cells(path, layer=name), layer)


def test_equals_anndata_on_a_real_file_of_records() -> None:
    path = DATA / "anndata" / "v0.5.0_adata.h5ad"
    expected = read_anndata(path)
    source = open_source(path, label="bulk_labels", weight="n_counts", keep="louvain,n_genes,phase:int8,obs_names")
    obs = expected.obs
    columns = {"y": obs["bulk_labels"].cat.codes, "sample_weight": obs["n_counts"], "n_genes": obs["n_genes"]}
    columns |= {"louvain": obs["louvain"].astype(object), "phase": obs["phase"].cat.codes, "obs_names": obs.index}
    check_source(source, expected.X, {name: np.asarray(values) for name, values in columns.items()})
    assert source.feature_names.tolist() == expected.var_names.tolist()
    check_source(open_source(path, layer="raw"), expected.raw.X)


@pytest.mark.parametrize("name", ["v0.11.4_adata.h5ad", "v0.11.4_adata.zarr.zip"])
def test_a_file_without_a_matrix_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match=r"v0\.11\.4_adata\..*: has no X, nor any layer: nothing to convert"):
        open_cells(DATA / "anndata" / name)


def test_only_the_layers_of_a_file_without_x_are_named(tmp_path: Path) -> None:
    made = cells()
    made.X = None
    path = written(made, tmp_path)
    with pytest.raises(SourceError, match=r"has no X: give layer=, one of 'raw', 'twice'"):
        open_source(path)
    assert_same(read(open_source(path, layer="twice"))[0], made.layers["twice"])
    with pytest.raises(SourceError, match=r"has no layer 'thrice': give layer=, one of 'raw', 'twice'"):
        open_source(path, layer="thrice")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["csr", "csc", pytest.param("dense", marks=pytest.mark.slow)])
def test_every_layout_and_kind_of_column(tmp_path: Path, layout: str, form: str) -> None:
    made = cells(layout)
    source = open_cells(
        written(made, tmp_path, form),
        label="type",
        weight="share",
        keep="hole,size,count:float32,good,maybe,note,type:int8,obs_names",
    )
    obs = made.obs
    columns = {
        "y": obs["type"].cat.codes,
        "sample_weight": obs["share"],
        "hole": ["x" if i % 3 else "" for i in range(len(obs))],
        "size": obs["size"].astype(float),
        "count": obs["count"],
        "good": obs["good"],
        "note": obs["note"],
        "type": obs["type"].cat.codes,
        "obs_names": obs.index,
    }
    check_source(source, made.X, {name: np.asarray(values) for name, values in columns.items()})
    assert source.sorted_rows == (layout != "csc")
    assert source.columns["count"] == ("float32", ())
    assert source.columns["type"] == ("int8", ())
    assert source.feature_names.tolist() == made.var_names.tolist()
    maybe = read(source, 20_000)[1]["maybe"]
    store = ss.convert(source, tmp_path / "s.zarr", shuffle=True, seed=0)
    assert_same(store[:], sparse.csr_array(made.X)[store.column("row_id")[:]])
    assert store.column("obs_names")[:].tolist() == obs.index[store.column("row_id")[:]].tolist()
    assert len(maybe) == len(obs)


def test_other_categories_of_a_label_than_those_of_the_store_are_not_appended(tmp_path: Path) -> None:
    paths = []
    for number, types in enumerate((["T", "B"], ["B", "NK"], ["T", "B", "X"])):
        obs = pd.DataFrame({"type": pd.Categorical(types)}, index=[f"cell{i}" for i in range(len(types))])
        made = anndata.AnnData(np.eye(len(types), 2), obs=obs)
        (tmp_path / str(number)).mkdir()
        paths.append(written(made, tmp_path / str(number)))
    first, other, more = paths
    for options, column in (({"label": "type"}, "y"), ({"keep": "type:int8"}, "type")):
        ss.convert(first, tmp_path / "a.zarr", overwrite=True, **options)
        message = f"x\\.h5ad: number 1 of column '{column}' stands for 'NK', in .*a\\.zarr for 'T': give both the same"
        with pytest.raises(ValueError, match=message):
            append_source(other, tmp_path / "a.zarr", **options)
        append_source(more, tmp_path / "a.zarr", **options)
        with ss.open(tmp_path / "a.zarr") as store:
            assert store.column(column)[:].tolist() == [1, 0, 1, 0, 2]
    ss.convert(first, tmp_path / "a.zarr", overwrite=True, keep="type")
    append_source(other, tmp_path / "a.zarr", keep="type")  # text needs no numbers


def test_missing_numbers_are_masked_and_no_labels(tmp_path: Path) -> None:
    path = written(cells(), tmp_path)
    block = next(open_source(path, keep="maybe").blocks(1 << 20))
    assert np.ma.getmaskarray(block.columns["maybe"]).tolist() == [i % 4 == 0 for i in range(60)]
    for label in ("maybe", "hole"):
        with pytest.raises(SourceError, match=r"x\.h5ad: obs/.*: row 0: is missing or not finite, but a label"):
            read(open_source(path, label=label))


@settings(max_examples=20, deadline=None)
@given(data=st.data(), layout=st.sampled_from(["csr", "csc"]), gzip=st.booleans())
def test_any_matrix_travels(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, layout: str, gzip: bool
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    dense = np.array(data.draw(st.lists(st.integers(0, 2), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])))
    x = sparse.csr_array(dense.reshape(shape).astype(np.float32)).asformat(layout)
    path = tmp_path_factory.getbasetemp() / f"{layout}.h5ad"
    anndata.AnnData(x).write_h5ad(path, compression="gzip" if gzip else None)
    assert_same(read(open_source(path), 500)[0], x)


def test_categories_of_records_as_old_files_have_them(tmp_path: Path) -> None:
    """As AnnData 0.5 and 0.6 wrote them: annotations in one dataset, categories in uns, raw.X at the top."""
    path = tmp_path / "old.h5ad"
    x = sparse.csr_array(np.arange(12.0, dtype=np.float32).reshape(4, 3))
    with h5py.File(path, "w") as file:
        file["X"] = x.toarray()
        obs = np.array(
            [(b"a", 1, 0.5), (b"b", 0, 1.5), (b"c", 1, 2.5), (b"d", 0, 3.5)],
            [("index", "S1"), ("kind", "i1"), ("size", "<f4")],
        )
        file.create_dataset("obs", data=obs, compression="gzip")
        file["var"] = np.array([(b"g0",), (b"g1",), (b"g2",)], [("index", "S2")])
        file["raw.var"] = np.array([(b"r0",), (b"r1",), (b"r2",)], [("index", "S2")])
        file["uns/kind_categories"] = np.array([b"x", b"y"])
        raw = file.create_group("raw.X")
        raw.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": (4, 3)})
        for name in ("data", "indices", "indptr"):
            raw[name] = getattr(x, name)
    source = open_source(path, label="kind", keep="size,obs_names,kind")
    columns = {"y": [1, 0, 1, 0], "size": [0.5, 1.5, 2.5, 3.5], "obs_names": list("abcd"), "kind": list("yxyx")}
    check_source(source, x, {name: np.array(values, object) for name, values in columns.items()})
    assert source.feature_names.tolist() == ["g0", "g1", "g2"]
    assert open_source(path, layer="raw").feature_names.tolist() == ["r0", "r1", "r2"]
    check_source(open_source(path, layer="raw"), x)


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "column": ({"label": "color"}, "label='color': obs has no such column, only "),
    "text_label": ({"label": "note"}, "obs/note: label is text, expected numbers: make it categorical, or keep="),
    "text_weight": ({"weight": "type"}, "obs/type/codes: weight is text, expected numbers: give a column of numbers"),
    "text_dtype": ({"keep": "note:int8"}, "obs/note is text, expected no dtype, or 'string'"),
    "number_text": ({"keep": "count:string"}, "obs/count has numbers of int64, expected no 'string'"),
    "dtype": ({"keep": "count:complex64"}, "keep='count:complex64': the dtype is complex64, expected bool, integers"),
    "twice": ({"keep": "count,count"}, "two columns of obs become one: count, count"),
    "names": ({"names": "nothing"}, "names='nothing': var has no such column, only 'gene'"),
    "values": ({"dtype": "int32"}, "values of dtype float32 can not become int32"),
    "loss": ({"keep": "share:int8"}, "does not fit int8: give a wider dtype="),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_can_not_be_met(tmp_path: Path, case: str) -> None:
    options, message = OPTIONS[case]
    path = written(cells(), tmp_path)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(open_source(path, **options))
    assert message in str(caught.value)


def test_names_that_are_not_all_different_need_a_choice(tmp_path: Path) -> None:
    path = written(cells(), tmp_path)
    with pytest.raises(
        SourceError, match=r"var/symbol/codes: feature 8 has the name 'S0', as feature 0 has: rename one, or"
    ):
        open_source(path, names="symbol")
    assert open_source(path, names="gene").feature_names.tolist() == [f"G{i}" for i in range(9)]
    assert open_source(path, names="").feature_names is None


# ---- bad files

Edit = Callable[[Any], None]


def replaced(where: str, values: Any, **how: Any) -> Edit:
    """An edit that puts another array in place of one."""

    def edit(file: Any) -> None:
        del file[where]
        file.create_dataset(where, data=values, **how)

    return edit


def external(file: Any) -> None:
    del file["X"]
    file["X"] = h5py.ExternalLink("other.h5ad", "/X")


def through_external(file: Any) -> None:
    file["away"] = h5py.ExternalLink("other.h5ad", "/")
    del file["X"]
    file["X"] = h5py.SoftLink("/away/X")


def circle(file: Any) -> None:
    del file["X"]
    file["X"] = h5py.SoftLink("/Y")
    file["Y"] = h5py.SoftLink("/X")


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=file["X/data"].shape, dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5ad", "X/data", shape=file["X/data"].shape)
    del file["X/data"]
    file.create_virtual_dataset("X/data", layout)


def elsewhere(file: Any) -> None:
    n = len(file["X/data"])
    del file["X/data"]
    file.create_dataset("X/data", (n,), "f4", external=[("/etc/passwd", 0, 4 * n)])


def unwritten(file: Any) -> None:
    for name in ("data", "indices"):
        del file[f"X/{name}"]
        file.create_dataset(f"X/{name}", (10**14,), "f4" if name == "data" else "i4", chunks=(10**6,))


def never_filled(file: Any) -> None:
    del file["X/data"]
    file.create_dataset("X/data", (10**14,), "f4")


def unknown_filter(file: Any) -> None:
    n = len(file["X/data"])
    del file["X/data"]
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((n,))
    created.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, (1,))
    h5py.h5d.create(file["X"].id, b"data", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((n,)), created)
    file["X/data"].id.write_direct_chunk((0,), np.zeros(n, np.float32).tobytes())


def bomb(file: Any) -> None:
    """A chunk that inflates to much more than the dataset declares."""
    import zlib

    n = len(file["X/data"])
    del file["X/data"]
    file.create_dataset("X/data", (n,), "f4", chunks=(n,), compression="gzip")
    file["X/data"].id.write_direct_chunk((0,), zlib.compress(bytes(1 << 22)))


def padded(file: Any) -> None:
    """A chunk that is stored as much more than it holds."""
    n = len(file["X/data"])
    del file["X/data"]
    file.create_dataset("X/data", (n,), "f4", chunks=(n,), compression="gzip")
    file["X/data"].id.write_direct_chunk((0,), bytes(1 << 20))


def long_text(file: Any) -> None:
    del file["obs/_index"]
    file["obs/_index"] = ["x" * 100_000] + ["y"] * 59


BAD: dict[str, tuple[Edit, str]] = {
    "indptr_falls": (
        replaced("X/indptr", np.array([0, 5, 3] + [7] * 58)),
        "X: indptr falls at row 1: 5 to 3",
    ),
    "indptr_start": (replaced("X/indptr", np.arange(1, 62)), "X: indptr starts at 1, expected 0"),
    "indptr_high": (replaced("X/indptr", np.array([0] + [10**15] * 60)), "X: indptr goes up to 1000000000000000, but"),
    "indptr_length": (replaced("X/indptr", np.zeros(5, int)), "X/indptr: has shape (5,), expected (61,)"),
    "indptr_floats": (replaced("X/indptr", np.zeros(61)), "X/indptr: is of dtype float64, expected integers"),
    "indices_high": (
        replaced("X/indices", np.full(162, 9, np.int32)),
        "X: in rows 0 to 60: row 1 has feature number 9, expected 0 to 8",
    ),
    "indices_negative": (
        replaced("X/indices", np.full(162, -1, np.int32)),
        "X: in rows 0 to 60: row 1 has feature number -1",
    ),
    "indices_length": (replaced("X/indices", np.zeros(5, np.int32)), "X/indices: has shape (5,), expected (162,)"),
    "data_complex": (replaced("X/data", np.zeros(162, complex)), "X/data: is of dtype 'complex128', expected numbers"),
    "data_text": (replaced("X/data", np.full(162, b"x")), "X/data: is of dtype |S1, expected numbers"),
    "data_2d": (replaced("X/data", np.zeros((81, 2), np.float32)), "X/data: has shape (81, 2), expected (n,)"),
    "shape": (lambda file: file["X"].attrs.update({"shape": [-1, 9]}), "X: has shape '[-1, 9]', expected two whole"),
    "shape_huge": (
        lambda file: file["X"].attrs.update({"shape": [10**12, 9]}),
        "X/indptr: has shape (61,), expected (1000000000001,)",
    ),
    "no_shape": (lambda file: file["X"].attrs.__delitem__("shape"), "X: has shape 'None', expected two whole numbers"),
    "kind": (
        lambda file: file["X"].attrs.update({"encoding-type": "coo_matrix"}),
        "X: is of kind 'coo_matrix', expected an array, csr_matrix or csc_matrix",
    ),
    "no_data": (lambda file: file["X"].__delitem__("data"), "has no dataset 'X/data'"),
    "obs_length": (
        replaced("obs/_index", [f"c{i}" for i in range(50)]),
        "X has shape (60, 9), but obs has 50 rows, expected 60",
    ),
    "var_length": (replaced("var/gene_ids", ["g"] * 8), "X has shape (60, 9), but var has 8 rows, expected 9"),
    "column_length": (replaced("obs/count", np.zeros(59, int)), "obs/count: has shape (59,), expected (60,)"),
    "codes": (
        replaced("obs/type/codes", np.full(60, 7, np.int8)),
        "obs/type/codes: rows 0 to 60: codes 7 to 7, expected -1 to 2, of 3 categories",
    ),
    "external": (external, "X: is a link to '/X' of the file 'other.h5ad': other files are not read, convert that one"),
    "through_external": (through_external, "X: is a link to '/' of the file 'other.h5ad'"),
    "circle": (circle, "X: more than 32 links one after the other"),
    "virtual": (virtual, "X/data: is a virtual dataset, whose data are in other files: they are not read"),
    "elsewhere": (elsewhere, "X/data: has its data in another file, '/etc/passwd', which is not read"),
    "unwritten": (unwritten, "X/indices: has shape (100000000000000,), but 0 of its 100000000 chunks were written"),
    "never_filled": (never_filled, "X/data: has shape (100000000000000,), but 0 of its 400000000000000 bytes of data"),
    "large_chunks": (
        replaced("X/data", np.zeros(1 << 26, np.int8), chunks=(1 << 26,), compression="lzf"),
        "X/data: has shape (67108864,)",
    ),
    "filter": (unknown_filter, "X/data: is compressed with filter 32099 (unknown), which this HDF5 lacks: pip install"),
    "bomb": (bomb, "X/data: the chunk at (0,) has more bytes, expected 648"),
    "padded": (padded, "X/data: the chunk at (0,) is stored as 1048576 bytes, expected about 648"),
    "long_text": (long_text, "obs/_index: has text of 100000 bytes, expected at most 65536"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    edit, message = BAD[case]
    path = written(cells(), tmp_path)
    shutil.copy(path, tmp_path / "other.h5ad")
    with h5py.File(path, "r+") as file:
        assert len(file["X/data"]) == 162
        edit(file)
    if case == "large_chunks":
        message = "X/indices: has shape (162,), expected (67108864,)"
    with pytest.raises(SourceError) as caught:
        read(open_source(path, label="type", keep="count,obs_names"))
    assert str(caught.value).startswith(f"{path}: {message}")


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path: Path) -> None:
    path = written(cells("csc"), tmp_path)
    with h5py.File(path, "r+") as file:
        file["X/indices"][-1] = 60
    with pytest.raises(SourceError, match=r"x\.h5ad: X: row numbers from 1 to 60, expected 0 to 59"):
        ss.convert(path, tmp_path / "s.zarr")
    assert [each.name for each in tmp_path.iterdir()] == ["x.h5ad"]


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = written(cells(n=2000), tmp_path, "gzip.h5ad")
    payload = path.read_bytes()
    for part in (0, 10, len(payload) // 2, len(payload) - 1):
        path.write_bytes(payload[:part])
        with pytest.raises(SourceError, match=r"x\.gzip\.h5ad: is no HDF5 file, or was cut short"):
            open_source(path)


def test_a_flipped_bit_of_a_gzip_chunk_is_found(tmp_path: Path) -> None:
    path = written(cells(n=2000), tmp_path, "gzip.h5ad")
    with h5py.File(path) as file:
        at = file["X/data"].id.get_chunk_info(0).byte_offset
    payload = bytearray(path.read_bytes())
    payload[at + 100] ^= 1
    path.write_bytes(payload)
    with pytest.raises(SourceError, match=r"x\.gzip\.h5ad: X/data: rows 0 to \d+: damaged"):
        read(open_source(path))


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = written(cells(), tmp_path)
    source = open_source(path)
    with h5py.File(path, "r+") as file:
        file["more"] = np.zeros(100)
    with pytest.raises(SourceError, match="changed while it was read"):
        read(source)


# ---- zarr


def test_zarr_needs_no_consolidated_metadata(tmp_path: Path) -> None:
    path = written(cells(), tmp_path, "2.zarr")
    (path / ".zmetadata").unlink()
    check_source(open_cells(path, label="type"), cells().X, {"y": cells().obs["type"].cat.codes})


@pytest.mark.parametrize(
    "codec", [{"id": "pickle"}, {"id": "quantize", "digits": 3, "dtype": "f4"}], ids=lambda c: c["id"]
)
def test_a_codec_that_does_more_than_decode_is_refused(tmp_path: Path, codec: dict[str, Any]) -> None:
    path = written(cells(), tmp_path, "2.zarr")
    (path / ".zmetadata").unlink()
    meta = json.loads((path / "X/data/.zarray").read_text())
    (path / "X/data/.zarray").write_text(json.dumps({**meta, "filters": [codec]}))
    with pytest.raises(SourceError, match=rf"X/data: .*{codec['id']}"):
        open_cells(path)


def test_a_zarr_folder_that_only_declares_is_refused(tmp_path: Path) -> None:
    path = written(cells(), tmp_path, "2.zarr")
    (path / ".zmetadata").unlink()
    for name in ("data", "indices"):
        meta = json.loads((path / f"X/{name}/.zarray").read_text())
        (path / f"X/{name}/.zarray").write_text(json.dumps({**meta, "shape": [10**12]}))
    with pytest.raises(
        SourceError, match=r"X/indices: has shape \(1000000000000,\), but its \d+ chunks take \d+ bytes"
    ):
        open_cells(path)
    with pytest.raises(SourceError, match="has no zarr group"):
        open_cells(tmp_path)


def test_a_zip_whose_members_expand_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    path = tmp_path / "x.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(".zgroup", bytes(1 << 28))
    with pytest.raises(SourceError, match=r"x\.zarr\.zip: '\.zgroup': expands to 268435456 bytes"):
        open_cells(path)


# ---- memory

MEMORY = """
import sys
from sparsestore.sources.registry import open_source
options = {"keep": "obs_names", "label": "y", "format": "h5ad"}
source, warm = open_source(sys.argv[1], **options), open_source(sys.argv[2], **options)
max_bytes = 8 << 20
"""


def write_large(folder: Path, layout: str, n: int, per_row: int = 20, form: str = "h5ad") -> Path:
    """A matrix of n rows with so many entries each, and names and labels of them."""
    rng = np.random.default_rng(0)
    width = 200
    values, features = rng.random(per_row * n, np.float32), rng.integers(0, width, per_row * n, np.int32)
    x: Any = sparse.csr_array((values, features, np.arange(n + 1) * per_row), shape=(n, width))
    x.sum_duplicates()
    x = x.toarray() if layout == "dense" else x.asformat(layout)
    obs = pd.DataFrame({"y": rng.integers(0, 3, n)}, index=[f"cell{i}" for i in range(n)])
    folder.mkdir()
    return written(anndata.AnnData(x, obs=obs), folder, form)


@pytest.mark.parametrize(
    ("layout", "form"),
    [
        ("csr", "gzip.h5ad"),
        *(
            pytest.param(layout, form, marks=pytest.mark.slow)
            for layout, form in (
                ("csr", "h5ad"),
                ("csr", "3.zarr"),
                ("csc", "h5ad"),
                ("dense", "h5ad"),
                ("dense", "gzip.h5ad"),
            )
        ),
    ],
)
def test_memory_is_bounded(tmp_path: Path, layout: str, form: str) -> None:
    paths = [write_large(tmp_path / str(n), layout, n, form=form) for n in (100_000, 20)]
    assert peak_of_reading(MEMORY, *paths) <= (8 << 20) + (8 << 20)


@pytest.mark.slow
def test_memory_of_a_transposition_does_not_grow_with_the_file(tmp_path: Path) -> None:
    code = """
    import sys
    import sparsestore as ss
    def convert(path, to):
        ss.convert(path, to, label="y", max_bytes="24MiB", progress=False)
    convert(sys.argv[2], sys.argv[3])
    def work():
        convert(sys.argv[1], sys.argv[4])
    """
    warm = write_large(tmp_path / "warm", "csc", 100_000, 5)
    peaks = []
    for name, n in (("small", 300_000), ("large", 3_000_000)):
        made = [tmp_path / f"{name}.{each}" for each in ("warm", "made")]
        peaks.append(peak_of(code, write_large(tmp_path / name, "csc", n, 5), warm, *made))
    small, large = peaks
    assert large <= (24 << 20) + (2 << 20)
    assert large <= small + (12 << 20)  # the small one does not need all that it may take
