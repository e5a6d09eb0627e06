"""Typed tables (Parquet, Arrow, frames, DuckDB, SQLite): equal to pandas and scipy in each of their shapes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from check_source import DATA, check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from typer.testing import CliRunner

import sparsestore as ss
from sparsestore.cli import app
from sparsestore.convert import append_source
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def parquet(folder: Path, table: Any, **options: Any) -> Any:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), folder / "x.parquet", row_group_size=97)
    return open_source(folder / "x.parquet", **options)


def wide_frame(n: int = 400) -> pandas.DataFrame:
    rng = np.random.default_rng(5)
    frame = pandas.DataFrame({f"f{k}": np.where(rng.random(n) < 0.8, 0, rng.integers(1, 9, n)) for k in range(6)})
    frame["f3"] = frame["f3"].astype("int8")
    frame["f4"] = frame["f4"] > 0
    frame["y"] = rng.integers(0, 2, n)
    frame["user"] = [f"ü{k}" for k in rng.integers(0, 20, n).tolist()]
    frame["city"] = pandas.Categorical.from_codes(rng.integers(0, 3, n), ["Bonn", "Köln", "Ulm"])
    frame["price"] = np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n))
    return frame


FEATURES = ["f0", "f1", "f2", "f3", "f4", "f5"]


def written(frame: pandas.DataFrame, folder: Path, form: str) -> Any:
    """The frame in a form that the package reads."""
    if form == "pandas":
        return frame
    if form == "polars":
        return pytest.importorskip("polars").from_pandas(frame)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if form == "table":
        return table
    if form == "duckdb":
        duckdb = pytest.importorskip("duckdb")
        with duckdb.connect(folder / "x.duckdb") as connection:
            connection.execute("create table t as select * from 'x'".replace("'x'", "frame"))
        return folder / "x.duckdb"
    if form == "sqlite":
        with sqlite3.connect(folder / "x.sqlite") as connection:
            texts = frame.select_dtypes(["category"]).astype(str)
            frame.assign(**texts).to_sql("t", connection, index=False)
        connection.close()
        return folder / "x.sqlite"
    path = folder / f"x.{form}"
    if form == "parquet":
        pq.write_table(table, path, row_group_size=97)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=97)
    return path


def test_rows_of_which_few_have_no_value_in_a_column_are_shuffled(tmp_path: Path) -> None:
    n = 66_000  # more than a batch
    kept = pa.array([None if i == 65_990 else i for i in range(n)], pa.int64())
    pq.write_table(pa.table({"a": np.arange(n) % 7, "kept": kept}), tmp_path / "x.parquet")
    store = ss.convert(tmp_path / "x.parquet", tmp_path / "x.zarr", keep="kept:int64", shuffle=True, seed=0)
    order, found = store.column("row_id")[:], store.column("kept")[:]
    assert order[np.ma.getmaskarray(found)].tolist() == [65_990]
    np.testing.assert_array_equal(found.filled(65_990), order)


FORMS = ["parquet", "arrow", "pandas", "polars", "table", "duckdb", "sqlite"]


@pytest.mark.parametrize("form", FORMS)
def test_a_wide_table_is_that_of_pandas(tmp_path: Path, form: str) -> None:
    frame = wide_frame()
    options: dict[str, Any] = {"label": "y", "keep": "user,price:float32", "drop": ["city"]}
    if form in ("duckdb", "sqlite"):
        options["sql"] = "select * from t"
    source = open_source(written(frame, tmp_path, form), **options)
    columns = {"y": frame.y, "user": frame.user, "price": frame.price.astype(np.float32)}
    check_source(source, frame[FEATURES].to_numpy(np.int64), {name: c.to_numpy() for name, c in columns.items()})
    assert source.feature_names == FEATURES
    assert source.dtype == np.int64
    store = ss.convert(source, tmp_path / "a.zarr", shuffle=True, seed=0)
    order = store.column("row_id")[:]
    np.testing.assert_array_equal(store[:].toarray(), frame[FEATURES].to_numpy(int)[order])
    assert store.column("user")[:].tolist() == frame.user.to_numpy()[order].tolist()


@pytest.mark.parametrize("form", FORMS)
def test_categories_and_ranges_are_those_of_the_same_table_in_csv(tmp_path: Path, form: str) -> None:
    frame = wide_frame().drop(columns=["price", "f4"])
    frame.to_csv(tmp_path / "x.csv", index=False)
    options: dict[str, Any] = {"label": "y", "categorical": "user,c*", "bucket": {"f0": [1, 5]}, "dtype": "float64"}
    wanted, _ = read(open_source(tmp_path / "x.csv", **options))
    sql = {"sql": "select * from t"} if form in ("duckdb", "sqlite") else {}
    source = open_source(written(frame, tmp_path, form), **options, **sql)
    found, columns = read(source, 1 << 14)
    np.testing.assert_array_equal(found.toarray(), wanted.toarray())
    np.testing.assert_array_equal(columns["y"], frame.y)
    wanted_names = open_source(tmp_path / "x.csv", **options)
    read(wanted_names)
    assert source.feature_names == wanted_names.feature_names


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("texts", [False, True], ids=["numbers", "texts"])
def test_triples_are_the_matrix_of_scipy(tmp_path: Path, form: str, texts: bool) -> None:
    rng = np.random.default_rng(1)
    frame = pandas.DataFrame({"u": rng.integers(0, 50, 700), "i": rng.integers(0, 30, 700), "x": rng.normal(size=700)})
    frame = frame.drop_duplicates(["u", "i"])
    frame["y"] = frame.u % 3
    wanted = sparse.coo_array((frame.x, (frame.u, frame.i))).toarray()
    if texts:
        (users, user_names), (items, item_names) = pandas.factorize(frame.u), pandas.factorize(frame.i)
        wanted = sparse.coo_array((frame.x, (users, items))).toarray()
        frame["u"], frame["i"] = frame.u.astype(str) + " ü", "item " + frame.i.astype(str)
    sql = {"sql": "select * from t"} if form in ("duckdb", "sqlite") else {}
    source = open_source(written(frame, tmp_path, form), row="u", feature="i", value="x", label="y", **sql)
    store = ss.convert(source, tmp_path / "a.zarr")
    np.testing.assert_array_equal(store[:].toarray(), wanted)
    if texts:
        assert store.column("u")[:].tolist() == [f"{name} ü" for name in user_names]
        assert store.feature_names is not None
        assert store.feature_names.tolist() == [f"item {name}" for name in item_names]
        np.testing.assert_array_equal(store.column("y")[:], np.asarray(user_names) % 3)
    else:
        np.testing.assert_array_equal(store.column("y")[:], np.arange(50) % 3)
        if form == "parquet":
            assert (source.n_rows, source.n_features) == (50, 30)  # the file says it


WORDS = ["a", "b", "zz", "y", "word", "ü"]
HASHED: dict[str, Any] = {
    "uint8": (pa.uint8(), [255, 0, 3, 5, 200, 1], "int16"),
    "uint16": (pa.uint16(), [65535, 0, 3, 5, 200, 1], "int32"),
    "uint32": (pa.uint32(), [2**32 - 1, 0, 3, 5, 200, 1], "int64"),
    "uint64": (pa.uint64(), [2**53, 0, 3, 5, 200, 1], "float64"),
    "bool": (pa.bool_(), [True, False, True, True, True, True], "int8"),
    "int8": (pa.int8(), [127, 0, -127, -5, 3, 1], "int8"),
    "float": (pa.float32(), [0.5, 0, -127, -5, 3, 1], "float32"),
}


@pytest.mark.parametrize("name", HASHED)
def test_hashed_features_have_the_signs_of_scikit_learn_in_any_dtype(tmp_path: Path, name: str) -> None:
    extraction = pytest.importorskip("sklearn.feature_extraction")
    type_, values, dtype = HASHED[name]
    table = pa.table({"n": pa.array(values, type_), "c": WORDS, "u": range(6)})
    options: dict[str, Any] = {"encode": "hash", "n_features": 64}
    triples = ss.convert(table, tmp_path / "triples", row="u", feature="c", value="n", **options)
    wanted = extraction.FeatureHasher(64, input_type="pair", dtype=np.float64).transform(
        [(word, float(value))] for word, value in zip(WORDS, values, strict=True)
    )
    assert triples.dtype == dtype
    np.testing.assert_array_equal(triples[:].toarray(), wanted.toarray())
    wide = ss.convert(table, tmp_path / "wide", categorical="c", drop="u", **options)
    wanted = extraction.FeatureHasher(63, input_type="string").transform([f"c={word}"] for word in WORDS)
    assert (wanted.toarray() < 0).any()
    assert wide.dtype == ("float32" if name == "bool" else dtype)
    np.testing.assert_array_equal(wide[:].toarray(), np.column_stack([values, wanted.toarray()]))


def test_values_without_room_for_the_signs_of_a_hash_are_refused(tmp_path: Path) -> None:
    table = pa.table({"n": pa.array([1, -128], pa.int8()), "c": ["a", "b"], "u": [0, 1]})
    options: dict[str, Any] = {"encode": "hash", "n_features": 16}
    shapes: list[dict[str, Any]] = [
        {"categorical": "c", "drop": "u,n"},
        {"row": "u", "feature": "c"},
    ]
    for shape in shapes:
        for dtype in ("uint8", "bool"):
            with pytest.raises(ValueError, match=rf"dtype={dtype} has no room for the signs that encode='hash' gives"):
                ss.convert(table, tmp_path / "a.zarr", dtype=dtype, **shape, **options)
    signs = ss.convert(table, tmp_path / "a.zarr", **shapes[1], **options)[:].data.tolist()
    negative = pa.table({"n": pa.array([-128], pa.int8()), "c": [["a", "b"][signs.index(-1)]], "u": [0]})
    triples: dict[str, Any] = {"row": "u", "feature": "c", "value": "n", **options}
    with pytest.raises(SourceError, match="row 0, column 'n': -128 gets the sign - with its feature, which does not"):
        ss.convert(negative, tmp_path / "b.zarr", **triples)
    wider = ss.convert(negative, tmp_path / "b.zarr", **triples, dtype="int16")
    assert wider[:].data.tolist() == [128]


LARGE: dict[str, Any] = {
    "first_that_is_lost": (pa.int64(), 2**53 + 1),
    "below_zero": (pa.int64(), -(2**53) - 1),
    "highest": (pa.int64(), 2**63 - 1),
    "unsigned": (pa.uint64(), 2**64 - 1),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("option", ["label", "weight"])
def test_a_label_that_would_become_another_is_refused(tmp_path: Path, name: str, option: str) -> None:
    type_, label = LARGE[name]
    table = pa.table({"u": [0, 1], "i": [0, 1], "l": pa.array([5, label], type_)})
    options: dict[str, Any] = {"row": "u", "feature": "i", option: "l"}
    message = f"row 1, column 'l': {label} is a whole number that float64 lacks: give the values of the rows by themsel"
    with pytest.raises(SourceError, match=message):
        ss.convert(table, tmp_path / "a.zarr", **options)


def test_large_labels_that_float64_has_are_kept(tmp_path: Path) -> None:
    for type_, labels in (
        (pa.int64(), [2**53, 2**53 + 2, -(2**63), 2**63 - 1024]),
        (pa.uint64(), [2**53, 2**53 + 2, 2**63, 2**64 - 2048]),
        (pa.int32(), [-(2**31), 2**31 - 1, 0, 1]),
        (pa.bool_(), [True, False, True, True]),
        (pa.float64(), [1e300, 0.1, -1e19, 2.0**70]),
    ):
        table = pa.table({"u": range(4), "i": range(4), "l": pa.array(labels, type_)})
        store = ss.convert(table, tmp_path / "a.zarr", row="u", feature="i", label="l", overwrite=True)
        assert store.column("y")[:].tolist() == labels


@pytest.mark.parametrize("form", ["parquet", "table"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize(("option", "layout"), [("label", {}), ("weight", {}), ("label", {"indices": "i"})])
def test_a_label_or_weight_that_is_not_finite_is_refused(
    tmp_path: Path, form: str, value: float, option: str, layout: dict[str, str]
) -> None:
    table = pa.table({"a": [1.0, 2.0, 3.0], "z": pa.array([1.0, value, 2.0]), "i": [[1], [2], [3]]})
    if not layout:
        table = table.drop_columns(["i"])
    source: Any = table
    if form == "parquet":
        source = tmp_path / "x.parquet"
        pq.write_table(table, source)
    with pytest.raises(SourceError, match=f"row 1, column 'z': {value}, expected a finite number"):
        ss.convert(source, tmp_path / "s.zarr", **{option: "z"}, **layout)
    assert not (tmp_path / "s.zarr").exists()
    kept = ss.convert(source, tmp_path / "s.zarr", keep="z", **layout).column("z")[:]
    np.testing.assert_array_equal(kept, [1.0, value, 2.0])


def test_a_feature_that_the_common_dtype_would_make_another_is_refused(tmp_path: Path) -> None:
    lost = 2**53 + 1
    unsigned = pa.array([0, lost], pa.uint64())
    tables = [pa.table({"a": [0, lost], "b": [0.5, 1.0]}), pa.table({"a": unsigned, "b": [1, -1]})]
    for number, table in enumerate(tables):
        with pytest.raises(SourceError, match=f"row 1, column 'a': {lost} is a whole number that float64, the common"):
            ss.convert(table, tmp_path / f"{number}.zarr")
        asked = ss.convert(table, tmp_path / f"{number}.zarr", dtype="float64")
        assert asked[:].toarray()[1, 0] == 2.0**53
    with pytest.raises(SourceError, match=f"row 0, column 'a': {lost} is a whole number"):
        ss.convert(pa.table({"a": [lost, None]}), tmp_path / "nan.zarr", missing="nan")
    few = ss.convert(pa.table({"a": [lost - 1, 1], "b": [0.5, 1.0]}), tmp_path / "few.zarr")
    assert few[:].toarray().tolist() == [[lost - 1, 0.5], [1, 1]]


def test_whole_numbers_may_be_texts(tmp_path: Path) -> None:
    source = parquet(tmp_path, {"u": [900, 7, 900], "i": [5, 5, 6]}, row="u:string", feature="i:string")
    store = ss.convert(source, tmp_path / "a.zarr")
    assert store.column("u")[:].tolist() == ["900", "7"]
    assert store[:].toarray().tolist() == [[1, 1], [1, 0]]


@settings(max_examples=30, deadline=None)
@given(data=st.data(), large=st.booleans(), max_bytes=st.sampled_from([2000, 1 << 22]))
def test_lists_of_features_and_values_become_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, large: bool, max_bytes: int
) -> None:
    rows = data.draw(st.lists(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=8), max_size=40))
    kind = pa.large_list if large else pa.list_
    table = pa.table(
        {
            "i": pa.array([[i for i, _ in row] for row in rows], kind(pa.int32())),
            "x": pa.array([[float(x) for _, x in row] for row in rows], kind(pa.float32())),
            "y": pa.array(range(len(rows)), pa.int64()),
        }
    )
    wanted = np.zeros((len(rows), 21), np.float32)
    for at, row in enumerate(rows):
        for feature, value in row:
            wanted[at, feature] += value
    source = parquet(tmp_path_factory.mktemp("lists"), table, indices="i", values="x", label="y", n_features=21)
    found, columns = read(source, max_bytes)
    np.testing.assert_array_equal(found.toarray(), wanted)
    if rows:
        assert columns["y"].tolist() == list(range(len(rows)))


def test_lists_without_values_count_and_no_list_is_empty(tmp_path: Path) -> None:
    table = {"i": pa.array([[3, 1, 3], None, []], pa.list_(pa.uint16()))}
    source = parquet(tmp_path, table, indices="i", zero_based=False)
    check_source(source, np.array([[1, 0, 2], [0, 0, 0], [0, 0, 0]], np.float32))


def test_sums_of_whole_numbers_in_one_row_are_exact_or_refused(tmp_path: Path) -> None:
    def lists(values: Any, type_: Any) -> Any:
        return parquet(tmp_path, {"i": [[0, 0], [1]], "x": pa.array(values, pa.list_(type_))}, indices="i", values="x")

    large = 2**53 + 1
    found, _ = read(lists([[large, 1], [large]], pa.int64()))
    assert found.toarray().tolist() == [[large + 1, 0], [0, large]]
    message = "row 0, column 'i': feature 0: the sum of its duplicates does not fit"
    for values, type_ in (([[100, 100], [3]], pa.int8()), ([[2**63 - 1, 1], [3]], pa.int64())):
        with pytest.raises(SourceError, match=message):
            read(lists(values, type_))
    with pytest.raises(SourceError, match=f"{message} float32: give a wider dtype="):
        read(lists([[3e38, 3e38], [3]], pa.float32()))
    texts = {f"c{k}": ["x"] for k in range(3)}
    wide = ss.convert(
        pa.table({"n": [large], **texts}), tmp_path / "a.zarr", categorical="c*", encode="hash", n_features=2
    )
    assert abs(int(wide[:].toarray()[0, 1])) in (1, 3)  # three hashed to one place, beside a number that float64 lacks
    assert wide[:].toarray()[0, 0] == large


def test_vectors_of_spark_are_rows(tmp_path: Path) -> None:
    type_ = pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    vectors = [
        {"type": 0, "size": 4, "indices": [1, 3], "values": [0.5, 2.0]},
        {"type": 1, "size": None, "indices": None, "values": [1.0, 0.0, 0.0, 4.0]},
        {"type": 0, "size": 4, "indices": [], "values": []},
    ]
    table = pa.table({"features": pa.array(vectors, type_), "label": [1.0, 0.0, 1.0]})
    source = parquet(tmp_path, table, vector="features", label="label")
    check_source(source, np.array([[0, 0.5, 0, 2], [1, 0, 0, 4], [0, 0, 0, 0]]), {"y": np.array([1.0, 0.0, 1.0])})
    vectors[2]["size"] = 5
    bad = parquet(tmp_path, {"features": pa.array(vectors, type_)}, vector="features")
    with pytest.raises(SourceError, match="row 2, column 'features': a vector of 5, expected 4 as in the first row"):
        read(bad)
    for size in (0, 1, 3):  # however many features there are to be
        vector = {"type": 0, "size": size, "indices": [3], "values": [0.5]}
        bad = parquet(tmp_path, {"features": pa.array([vector], type_)}, vector="features", n_features=9)
        with pytest.raises(SourceError, match=f"row 0, column 'features': feature 3, expected 0 to {size - 1}"):
            read(bad)


def test_dense_lists_of_a_real_file_are_rows() -> None:
    path = DATA / "fuxictr/train.parquet"
    frame = pq.read_table(path).to_pandas()
    source = open_source(path, vector="feat3", label="label", keep="feat1")
    check_source(source, np.stack(frame.feat3), {"y": frame.label.to_numpy(), "feat1": frame.feat1.to_numpy()})


def test_no_value_is_what_is_said(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": pa.array([1, None, 3], pa.int32()),
            "c": pa.array(["x", None, "x"]),
            "when": pa.array([10, None, 2**60], pa.int64()),
            "who": pa.array(["u", None, "v"]),
        }
    )
    options: dict[str, Any] = {"categorical": "c", "keep": "when,who"}
    with pytest.raises(SourceError, match="row 1, column 'a': has no value: give missing='zero'"):
        read(parquet(tmp_path, table, **options))
    store = ss.convert(parquet(tmp_path, table, missing="zero", **options), tmp_path / "zero.zarr")
    assert store[:].toarray().tolist() == [[1, 1], [0, 0], [3, 1]]
    assert np.ma.getmaskarray(store.column("when")[:]).tolist() == [False, True, False]
    assert store.column("when")[:].compressed().tolist() == [10, 2**60]
    assert store.column("who")[:].compressed().tolist() == ["u", "v"]
    nan = ss.convert(parquet(tmp_path, table, missing="nan", **options), tmp_path / "nan.zarr")
    np.testing.assert_array_equal(nan[:].toarray(), [[1, 1, 0], [np.nan, 0, 1], [3, 1, 0]])
    assert nan.feature_names is not None
    assert nan.feature_names.tolist() == ["a", "c=x", "c="]


@pytest.mark.parametrize("form", FORMS)
def test_an_appended_table_keeps_the_category_of_no_value(tmp_path: Path, form: str) -> None:
    frame = pandas.DataFrame({"a": [1, 2, 3], "c": ["x", None, "y"]})
    options: dict[str, Any] = {"categorical": "c", "missing": "nan"}
    if form in ("duckdb", "sqlite"):
        options["sql"] = "select * from t"
    source = written(frame, tmp_path, form)
    store = ss.convert(source, tmp_path / "a.zarr", **options)
    assert store.feature_names is not None
    assert store.feature_names.tolist() == ["a", "c=x", "c=", "c=y"]
    append_source(source, tmp_path / "a.zarr", **options)
    with ss.open(tmp_path / "a.zarr") as twice:
        np.testing.assert_array_equal(twice[:].toarray(), np.tile(store[:].toarray(), (2, 1)))
    other = ss.convert(source, tmp_path / "b.zarr", **options, unknown="ignore", feature_names=["a", "c=", "c=y"])
    assert other[:].toarray().tolist() == [[1, 0, 0], [2, 1, 0], [3, 0, 1]]


def test_dates_are_kept_as_what_is_said(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2], "when": pa.array([5, 6], pa.timestamp("us"))})
    _, columns = read(parquet(tmp_path, table, keep="when:int64"))
    assert columns["when"].tolist() == [5, 6]


def test_a_frame_that_arrow_can_not_read_is_refused_by_name(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"a": [1, 2], "s": pandas.Series(["x", 3], dtype=object)})
    with pytest.raises(SourceError, match=r"pandas DataFrame in memory: .*Conversion failed for column s"):
        ss.convert(frame, tmp_path / "a.zarr", keep="s")


def test_batches_of_arrow_are_read_once_and_in_order(tmp_path: Path) -> None:
    batches = [pa.record_batch({"a": [k, 0], "y": [k, k]}) for k in range(5)]
    reader = pa.RecordBatchReader.from_batches(batches[0].schema, batches)
    store = ss.convert(reader, tmp_path / "a.zarr", label="y")
    assert store.column("y")[:].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_queries_of_files_need_no_database(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    for k in range(3):
        pq.write_table(pa.table({"u": [k, k + 1], "i": [0, 1], "x": [1.0, 2.0]}), tmp_path / f"{k}.parquet")
    query = f"select u, i, sum(x) as x from '{tmp_path}/*.parquet' group by u, i order by u desc"
    command = ["convert", "duckdb:", str(tmp_path / "a.zarr"), "--sql", query, "--row", "u", "--feature", "i"]
    done = CliRunner().invoke(app, [*command, "--value", "x"])
    assert done.exit_code == 0, done.output
    with ss.open(tmp_path / "a.zarr") as store:
        assert store[:].toarray().tolist() == [[1, 0], [1, 2], [1, 2], [0, 2]]
        facts = store._reader.manifest.attrs["source"]  # type: ignore[attr-defined]
    assert facts["sql"] == query
    assert facts["source"] == "duckdb"


@pytest.mark.parametrize("end", [" -- note", " -- note\n", ";", " /* note */"])
@pytest.mark.parametrize("form", ["duckdb", "sqlite"])
def test_a_query_may_end_in_a_comment(tmp_path: Path, form: str, end: str) -> None:
    path = written(pandas.DataFrame({"a": [3, 1]}), tmp_path, form)
    assert read(open_source(path, sql=f"select a from t order by a{end}"))[0].toarray().tolist() == [[1], [3]]


def test_an_order_that_is_asked_for_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    query = "select (hash(i) % 1000000)::int as a from range(300000) r(i) order by a"
    found, _ = read(open_source("duckdb:", sql=query), 1 << 20)
    assert (np.diff(found.toarray()[:, 0]) >= 0).all()


BAD: dict[str, Any] = {
    "text": ({"a": ["x"]}, {}, "column 'a' is of type string, which is no number: give it in categorical=, keep= or"),
    "date": ({"a": pa.array([1], pa.date32())}, {}, "is of type date32[day], which is no number: give it in keep="),
    "lists": ({"a": [[1]]}, {}, "which is no number: give it in drop=, indices= or vector="),
    "nowhere": ({"a": [1]}, {"label": "b"}, "label='b': there is no such column, expected one of 'a'"),
    "twice": ({"a": [1], "b": [1]}, {"label": "b", "drop": "b"}, "drop='b': the column is taken already, by label"),
    "text_label": ({"a": [1], "b": ["x"]}, {"label": "b"}, "label='b' is of type string, expected numbers"),
    "nothing": ({"a": [1]}, {"drop": "a"}, "no column is left for a feature"),
    "half": ({"a": [1], "b": [1]}, {"row": "a"}, "format parquet needs feature beside row"),
    "both": ({"a": [1], "b": [[1]]}, {"row": "a", "feature": "a", "vector": "b"}, "vector: no option of format"),
    "float_row": ({"a": [1.5], "b": [1]}, {"row": "a", "feature": "b"}, "row='a' is of type double, expected whole"),
    "no_lists": ({"a": [1]}, {"indices": "a"}, "indices='a' is of type int64, expected lists"),
    "float_lists": ({"a": [[1.5]]}, {"indices": "a"}, "indices='a' is of type list<element: double>, expected whole"),
    "only_values": ({"a": [[1]]}, {"vector": "a", "values": "a"}, "needs indices=, and values= with it, or vector="),
    "encode": ({"a": [1]}, {"encode": "hash", "n_features": 9}, "are for categories: give categorical= too"),
    "dtype": ({"a": [1.5]}, {"dtype": "int32"}, "values of dtype float64 can not become int32"),
    "keep": ({"a": [1], "b": [[1]]}, {"keep": "b"}, "keep='b' is of type list"),
    "long_name": ({"a" * 1001: [1]}, {}, f"x.parquet: the name '{'a' * 40}'... of a feature has 1001 bytes"),
    "no_name": ({"a": [1], "": [1]}, {}, "x.parquet: the name '' of a feature has 0 bytes, expected 1 to 1000"),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_and_options_that_make_no_sense_are_refused(tmp_path: Path, name: str) -> None:
    columns, options, message = BAD[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parquet(tmp_path, columns, **options)
    assert message in str(caught.value).replace("<item:", "<element:")


WRONG: dict[str, Any] = {
    "lengths": (
        {"i": [[1], [1, 2]], "x": [[1.0], [1.0]]},
        {"indices": "i", "values": "x"},
        "row 1, column 'i': has 2 f",
    ),
    "below": ({"i": [[0], [-1]]}, {"indices": "i"}, "row 1, column 'i': feature -1, expected 0 or more"),
    "base": ({"i": [[1], [0]]}, {"indices": "i", "zero_based": False}, "row 1, column 'i': feature 0, expected 1 or"),
    "wide": ({"i": [[1], [7]]}, {"indices": "i", "n_features": 7}, "row 1, column 'i': feature 7, expected 0 to 6"),
    "none_inside": ({"i": [[1], [None, 2]]}, {"indices": "i"}, "a list has an element without a value"),
    "row": ({"u": [0, -1], "i": [0, 0]}, {"row": "u", "feature": "i"}, "row 1, column 'u': -1 is no number of a row"),
    "none": ({"u": [0, None], "i": [0, 0]}, {"row": "u", "feature": "i"}, "row 1, column 'u': has no value"),
    "label": (
        {"u": [0, 0], "i": [0, 1], "y": [1, 2]},
        {"row": "u", "feature": "i", "label": "y"},
        "row 1, column 'y': 2 is another than in a triple before",
    ),
    "rows": ({"u": [99_999_999_999], "i": [0]}, {"row": "u", "feature": "i"}, "declares 100000000000 rows for 1 entr"),
    "empty_text": (
        {"u": ["a", ""], "i": [0, 0]},
        {"row": "u", "feature": "i"},
        "row 1, column 'u': is empty, found ''",
    ),
    "label_none": ({"a": [1, 2], "y": [1, None]}, {"label": "y"}, "row 1, column 'y': has no value, expected one in"),
    "sum": (
        {"i": [[1], [2, 2]], "x": [[1.0], [1e308, 1e308]]},
        {"indices": "i", "values": "x"},
        "row 1, column 'i': feature 2: the sum of its duplicates does not fit float64: give a wider dtype=",
    ),
    "wider": ({"i": pa.array([[2**63]], pa.list_(pa.uint64()))}, {"indices": "i"}, "row 0, column 'i': feature -9223"),
    "widest": (
        {"i": pa.array([[2**63]], pa.list_(pa.uint64()))},
        {"indices": "i", "zero_based": False},
        f"has {2**63} features, expected at most {2**63 - 2}",
    ),
    "no_nan": (
        {"a": [1, 2, None]},
        {"missing": "nan", "dtype": "int8"},
        "row 2, column 'a': has no value, and dtype=int8 no nan: give a dtype of floats, or missing='zero'",
    ),
    "no_nan_of_truths": (
        {"a": [True, None]},
        {"missing": "nan", "dtype": "bool"},
        "row 1, column 'a': has no value, and dtype=bool no nan",
    ),
    "overflow": ({"a": [1e300], "b": [0.0]}, {"dtype": "float32"}, "column 'a': value 1e+300 does not fit float32"),
}


def test_hashed_texts_beside_numbers_without_signs_keep_theirs(tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(50)]
    options = {"categorical": "c", "encode": "hash", "n_features": 30}
    plain, _ = read(parquet(tmp_path, {"a": pa.array(range(50), pa.float32()), "c": texts}, **options))
    source = parquet(tmp_path, {"a": pa.array(range(50), pa.uint8()), "c": texts}, **options)
    assert source.dtype == np.int16
    found, _ = read(source)
    np.testing.assert_array_equal(found.toarray(), plain.toarray())
    assert found.min() == -1
    with pytest.raises(ValueError, match="dtype=uint8 has no room for the signs"):
        parquet(tmp_path, {"a": pa.array(range(50), pa.uint8()), "c": texts}, dtype="uint8", **options)


@pytest.mark.parametrize("name", WRONG)
def test_values_that_are_wrong_are_refused_with_their_row(tmp_path: Path, name: str) -> None:
    columns, options, message = WRONG[name]
    with pytest.raises(SourceError) as caught:
        list(parquet(tmp_path, columns, **options).blocks(1 << 20))
    assert message in str(caught.value)


def test_a_text_that_is_no_known_feature_is_told_with_its_row(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2], "c": ["x", "new"]})
    with pytest.raises(SourceError, match="row 1, column 'c': is none of the features that are given, found 'new'"):
        ss.convert(table, tmp_path / "a.zarr", categorical="c", unknown="error", feature_names=["a", "c=x"])


def test_a_code_of_a_dictionary_may_stand_for_no_value(tmp_path: Path) -> None:
    codes = pa.array([0, 1, 0], pa.int32())
    numbers = pa.DictionaryArray.from_arrays(codes, pa.array([5.0, None]))
    texts = pa.DictionaryArray.from_arrays(codes, pa.array(["x", None]))
    table = pa.table({"a": numbers, "c": texts, "k": texts})
    options: dict[str, Any] = {"categorical": "c", "keep": "k"}
    with pytest.raises(SourceError, match="row 1, column 'a': has no value: give missing='zero' or missing='nan'"):
        ss.convert(table, tmp_path / "a.zarr", **options)
    store = ss.convert(table, tmp_path / "a.zarr", missing="nan", **options)
    np.testing.assert_array_equal(store[:].toarray(), [[5, 1, 0], [np.nan, 0, 1], [5, 1, 0]])
    assert store.column("k")[:].tolist() == ["x", None, "x"]
    zero = ss.convert(table, tmp_path / "b.zarr", missing="zero", **options)
    assert zero[:].toarray().tolist() == [[5, 1], [0, 0], [5, 1]]


TRIPLES = {"row": pa.array([0, 2]), "feature": pa.array([1, 3])}
LISTS = {"indices": pa.array([[1], [3]])}
SAID: dict[str, tuple[dict[str, Any], Any, str]] = {
    "rows": (TRIPLES, [2, 6], "has row 2, expected one below 2, as its metadata say: pass n_rows="),
    "features": (TRIPLES, [5, 3], "has feature 3, expected one below 3, as its metadata say: pass n_features="),
    "many": (TRIPLES, [10**11, 6], "declares 100000000000 rows for 2 entries"),
    "wide": (TRIPLES, [5, 2**63], f"has {2**63} features, expected at most {2**63 - 2}"),
    "below": (TRIPLES, [-1, 6], 'the metadata under \'sparsestore\' are \'{"layout": "triples", "shape": [-1, 6]}\''),
    "short": (TRIPLES, [6], "expected a shape of two whole numbers of at least 0: pass n_rows= and n_features="),
    "text": (TRIPLES, "56", "expected a shape"),
    "float": (TRIPLES, [5.0, 6.0], "expected a shape"),
    "true": (TRIPLES, [True, True], "expected a shape"),
    "deep": (TRIPLES, [[[]] * 2] * 400, "expected a shape"),
    "lists": (
        LISTS,
        [2, 3],
        "row 1, column 'indices': feature 3, expected 0 to 2, as its metadata say: pass n_features=",
    ),
    "lists_wide": (LISTS, [2, 2**63], f"has {2**63} features"),
    "lists_short": (LISTS, None, "expected a shape of two whole numbers of at least 0: pass n_features="),
}


@pytest.mark.parametrize("name", SAID)
def test_a_shape_in_the_metadata_is_believed_as_far_as_the_entries_go(tmp_path: Path, name: str) -> None:
    columns, shape, message = SAID[name]
    lists = columns is LISTS
    fields = {"indices": "indices"} if lists else {"row": "row", "feature": "feature"}
    facts = json.dumps({"layout": "lists" if lists else "triples", "shape": shape})
    table = pa.table(columns).replace_schema_metadata({"sparsestore": facts})
    with pytest.raises(SourceError) as caught:
        list(parquet(tmp_path, table, **fields).blocks(1 << 20))
    assert message in str(caught.value)
    given = {"n_features": 7} if lists else {"n_rows": 4, "n_features": 7}
    assert ss.convert(parquet(tmp_path, table, **fields, **given), tmp_path / "a.zarr").shape == (2 if lists else 4, 7)


@pytest.mark.parametrize("text", [b"[" * 1024, b"\xff", b"", b"{", b"x" * 10_000])
def test_metadata_that_are_no_json_are_refused(tmp_path: Path, text: bytes) -> None:
    table = pa.table(TRIPLES).replace_schema_metadata({b"sparsestore": text})
    with pytest.raises(SourceError, match=r"the metadata under 'sparsestore' are '.*expected a shape"):
        parquet(tmp_path, table, row="row", feature="feature")


def test_a_shape_in_the_metadata_is_that_of_the_columns_of_an_export(tmp_path: Path) -> None:
    facts = json.dumps({"layout": "triples", "shape": [5, 6]})
    table = pa.table(TRIPLES).replace_schema_metadata({"sparsestore": facts})
    source = parquet(tmp_path, table, row="row", feature="feature")
    assert (source.n_rows, source.n_features) == (5, 6)
    source = parquet(tmp_path, table, row="feature", feature="row")
    assert (source.n_rows, source.n_features) == (4, 3)
    source = parquet(tmp_path, table, row="row:string", feature="feature:string")
    assert ss.convert(source, tmp_path / "a.zarr").shape == (2, 2)
    assert open_source(table, row="row", feature="feature").n_rows == 5  # what Arrow read from such a file


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = written(wide_frame().drop(columns=["city", "user", "price"]), tmp_path, suffix)
    whole = path.read_bytes()
    for payload in (whole[: len(whole) // 2], b"PAR1" + bytes(100), b""):
        path.write_bytes(payload)
        with pytest.raises(SourceError, match="that can be read"):
            open_source(path, label="y")
    if suffix == "arrow":
        return  # it has no checksums
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])
    with pytest.raises(SourceError):
        read(open_source(path, label="y"))


def test_a_query_that_fails_says_why(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    with pytest.raises(SourceError, match=r"duckdb: the query fails: .*nowhere"):
        open_source("duckdb:", sql="select * from nowhere")
    with pytest.raises(ValueError, match="format duckdb needs sql"):
        open_source("duckdb:")
    with sqlite3.connect(tmp_path / "x.sqlite") as connection:
        connection.execute("create table t (a)")
        connection.executemany("insert into t values (?)", [(1,), ("x",)])
    connection.close()
    with pytest.raises(SourceError, match="column 'a' has values of int, str, expected one type"):
        open_source(tmp_path / "x.sqlite", sql="select a from t")
    with pytest.raises(SourceError, match=r"x\.sqlite: the query fails: no such table"):
        open_source(tmp_path / "x.sqlite", sql="select a from u")


def test_without_arrow_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["pyarrow"] = None
from sparsestore.sources.registry import open_source
try:
    open_source(sys.argv[1])
except ImportError as error:
    print(error)
"""
    path = DATA / "fuxictr/train.parquet"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert 'pip install "sparsestore[arrow]"' in done.stdout


@pytest.mark.parametrize(
    "shape", ["triples", *(pytest.param(shape, marks=pytest.mark.slow) for shape in ("wide", "lists"))]
)
def test_memory_is_bounded(tmp_path: Path, shape: str) -> None:
    rng = np.random.default_rng(0)
    n = 1_000_000
    if shape == "wide":
        table = {f"f{k}": np.where(rng.random(n // 4) < 0.9, 0, k) for k in range(40)}
        options: dict[str, Any] = {}
    elif shape == "triples":
        table = {"u": rng.integers(0, 1000, 4 * n), "i": rng.integers(0, 500, 4 * n), "x": rng.random(4 * n)}
        options = {"row": "u", "feature": "i", "value": "x"}
    else:
        lists = pa.ListArray.from_arrays(np.arange(0, 10 * n + 1, 10, np.int32), rng.integers(0, 99, 10 * n))
        table, options = {"i": lists}, {"indices": "i"}
    pq.write_table(pa.table(table), tmp_path / "large.parquet")
    pq.write_table(pa.table(table).slice(0, 10), tmp_path / "warm.parquet")
    code = f"""
    import sys
    from sparsestore.sources.registry import open_source
    max_bytes = 16 << 20
    source, warm = (open_source(path, **{options!r}) for path in sys.argv[1:])
    """
    assert peak_of_reading(code, tmp_path / "large.parquet", tmp_path / "warm.parquet") <= (16 << 20) + (32 << 20)


def test_floats_behind_whole_numbers_are_none_of_these(tmp_path: Path) -> None:
    path, sql = tmp_path / "x.sqlite", "select * from t"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (a, b)")
        connection.executemany("insert into t values (?, ?)", [(number, 1) for number in range(20_000)])
        connection.execute("insert into t values (7.0, 1)")
        connection.commit()
        store = ss.convert(path, tmp_path / "whole.zarr", sql=sql, keep="b")
        assert store[-1].toarray().tolist() == [[7]]
        connection.execute("insert into t values (0.5, 1.5)")
    connection.close()
    for name, value in (("a", 0.5), ("b", 1.5)):
        message = f"row 20001, column '{name}': {value}, expected int64 as in the first rows: cast it in the query"
        with pytest.raises(SourceError, match=message):
            ss.convert(path, tmp_path / "s.zarr", sql=f"select {name} from t")


def test_a_value_that_the_signs_of_a_hash_would_make_another_is_refused(tmp_path: Path) -> None:
    lost = 2**53 + 1
    table = pa.table({"r": [0, 1], "f": ["a", "b"], "v": pa.array([1, lost], pa.uint64())})
    options: dict[str, Any] = {"row": "r", "feature": "f", "value": "v", "encode": "hash", "n_features": 8}
    with pytest.raises(SourceError, match=f"row 1, column 'v': {lost} is a whole number that float64, with room for"):
        ss.convert(table, tmp_path / "s.zarr", **options)
    store = ss.convert(table, tmp_path / "s.zarr", **options, dtype="float64")
    assert np.abs(store[:].data).tolist() == [1, 2.0**53]
