"""Tables of triples: equal to pandas and scipy, texts numbered as they come, every bad line refused."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from check_source import check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from typer.testing import CliRunner

import sparsestore as ss
from sparsestore.cli import app
from sparsestore.convert import append_source
from sparsestore.errors import ResourceError, SourceError
from sparsestore.sources.registry import open_source
from sparsestore.sources.row_values import RowValues


def opened(folder: Path, text: str, **options: Any) -> Any:
    path = folder / "x.csv"
    path.write_bytes(text.encode())
    return open_source(path, **{"row": "r", "feature": "f", **options})


def test_numbers_in_any_order_become_a_matrix(tmp_path: Path) -> None:
    text = "f,r,x,note\n2,0,1.5,a\n0,3,-1,b\n1,0,2e3,c\n"
    source = opened(tmp_path, text, value="x", n_rows=5, n_features=4, dtype="float64")
    expected = np.zeros((5, 4))
    expected[0, 2], expected[3, 0], expected[0, 1] = 1.5, -1, 2e3
    check_source(source, expected)
    assert source.columns == {}
    assert source.provenance()["options"]["row"] == "r"


def test_without_a_value_each_line_is_one_and_repeats_add_up(tmp_path: Path) -> None:
    store = ss.convert(opened(tmp_path, "r,f\n1,1\n2,3\n1,1\n", zero_based=False), tmp_path / "a.zarr")
    assert store[:].toarray().tolist() == [[2, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"x\.csv: row 0 has feature 0 more than once"):
        ss.convert(tmp_path / "x.csv", tmp_path / "b.zarr", row="r", feature="f", zero_based=False, duplicates="error")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_bytes=st.sampled_from(["24MiB", "1GiB"]), shuffle=st.booleans())
def test_texts_are_numbered_as_pandas_factorizes_them(
    tmp_path_factory: pytest.TempPathFactory, seed: int, max_bytes: str, shuffle: bool
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 2000))
    frame = pandas.DataFrame(
        {
            "item": [f'"i,{k}"' if k % 3 else f"ä {k}" for k in rng.integers(0, 30, n).tolist()],
            "user": [f"u{k}" for k in rng.integers(0, 50, n).tolist()],
            "stars": rng.integers(1, 6, n),
        }
    )
    frame.to_csv(folder / "x.csv.gz", index=False)
    options: dict[str, Any] = {"row": "user:string", "feature": "item:string", "value": "stars"}
    store = ss.convert(
        folder / "x.csv.gz", folder / "a", max_bytes=max_bytes, shuffle=shuffle, seed=1 if shuffle else None, **options
    )
    (users, user_names), (items, item_names) = pandas.factorize(frame["user"]), pandas.factorize(frame["item"])
    expected = sparse.coo_array((frame["stars"], (users, items))).toarray()
    order = store.column("row_id")[:] if shuffle else np.arange(len(user_names))
    np.testing.assert_array_equal(store[:].toarray(), expected[order])
    assert store.column("user")[:].tolist() == user_names[order].tolist()
    assert store.feature_names is not None
    assert store.feature_names.tolist() == item_names.tolist()


def test_labels_and_weights_of_rows_come_with_each_line(tmp_path: Path) -> None:
    text = "r,f,x,y,w\n0,1,1,5,0.5\n3,0,1,7,1\n0,0,2,5,0.5\n"
    store = ss.convert(opened(tmp_path, text, value="x", label="y", weight="w"), tmp_path / "a.zarr")
    np.testing.assert_array_equal(store.column("y")[:], np.array([5, np.nan, np.nan, 7], np.float32))
    np.testing.assert_array_equal(store.column("sample_weight")[:], np.array([0.5, np.nan, np.nan, 1], np.float32))


def test_hashed_features_are_those_of_scikit_learn(tmp_path: Path) -> None:
    extraction = pytest.importorskip("sklearn.feature_extraction")
    rng = np.random.default_rng(0)
    pairs = [(int(r), f"word {k}") for r, k in rng.integers(0, 40, (500, 2))]
    text = "r,f,x\n" + "".join(f"{row},{word},2\n" for row, word in pairs)
    source = opened(tmp_path, text, feature="f:string", value="x", encode="hash", n_features=64)
    store = ss.convert(source, tmp_path / "a.zarr")
    bags: list[list[tuple[str, float]]] = [[] for _ in range(store.shape[0])]
    for row, word in pairs:
        bags[row].append((word, 2.0))
    hasher = extraction.FeatureHasher(64, input_type="pair")
    np.testing.assert_array_equal(store[:].toarray(), hasher.transform(bags).toarray())
    assert store.feature_names is None


def test_an_appended_file_keeps_the_numbers_of_known_features(tmp_path: Path) -> None:
    options: dict[str, Any] = {"row": "r", "feature": "f:string", "value": "x"}
    (tmp_path / "1.csv").write_text("r,f,x\n0,b,1\n1,a,2\n")
    (tmp_path / "2.csv").write_text("r,f,x\n0,c,3\n0,a,4\n1,b,5\n")
    ss.convert(tmp_path / "1.csv", tmp_path / "a.zarr", **options)
    command = ["append", str(tmp_path / "2.csv"), str(tmp_path / "a.zarr"), "--row", "r", "--feature", "f:string"]
    refused = CliRunner().invoke(app, [*command, "--value", "x"])
    assert refused.exit_code == 1
    done = CliRunner().invoke(app, [*command, "--value", "x", "--grow-features"])
    assert done.exit_code == 0, done.output
    with ss.open(tmp_path / "a.zarr") as store:
        assert store.feature_names is not None
        assert store.feature_names.tolist() == ["b", "a", "c"]
        assert store[:].toarray().tolist() == [[1, 0, 0], [0, 2, 0], [0, 4, 3], [5, 0, 0]]
        names = store.feature_names
    ignored = ss.convert(tmp_path / "2.csv", tmp_path / "b.zarr", **options, unknown="ignore", feature_names=names[:2])
    assert ignored[:].toarray().tolist() == [[0, 4], [5, 0]]
    with pytest.raises(SourceError, match=r"2\.csv:2: field 'f' is none of the features that are given, found 'c'"):
        ss.convert(tmp_path / "2.csv", tmp_path / "c.zarr", **options, unknown="error", feature_names=names[:2])
    more = ss.convert(tmp_path / "1.csv", tmp_path / "d.zarr", **options, feature_names=names)
    assert more.shape == (2, 3)


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
@pytest.mark.parametrize("form", ["csv", "parquet", "table", "sqlite"])
@pytest.mark.parametrize("row", ["u:string", "n"], ids=["texts", "numbers"])
def test_rows_of_ignored_features_are_rows(tmp_path: Path, row: str, form: str, shuffle: bool) -> None:
    frame = pandas.DataFrame(
        {
            "u": ["w", "x", "y", "x", "z", "z"],
            "n": [0, 1, 2, 1, 3, 3],
            "i": ["new", "a", "b", "b", "new", "newer"],
            "v": [7, 1, 2, 3, 4, 5],
            "l": [2, 1, 0, 1, 5, 5],
        }
    )
    options: dict[str, Any] = {"row": row, "feature": "i:string", "value": "v", "label": "l", "unknown": "ignore"}
    source: Any = tmp_path / f"x.{form}"
    if form == "csv":
        frame.to_csv(source, index=False)
    elif form == "sqlite":
        with sqlite3.connect(source) as connection:
            frame.to_sql("t", connection, index=False)
        connection.close()
        options["sql"] = "select * from t"
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pa.Table.from_pandas(frame, preserve_index=False)
        if form == "parquet":
            pq.write_table(table, source)
        source = table if form == "table" else source
    options |= {"shuffle": shuffle, "seed": 0 if shuffle else None}
    store = ss.convert(source, tmp_path / "a.zarr", feature_names=["a", "b"], **options)
    order = store.column("row_id")[:] if shuffle else np.arange(4)
    np.testing.assert_array_equal(store[:].toarray(), np.array([[0, 0], [1, 3], [0, 2], [0, 0]])[order])
    np.testing.assert_array_equal(store.column("y")[:], np.array([2, 1, 0, 5])[order])
    if row == "u:string":
        assert store.column("u")[:].tolist() == [["w", "x", "y", "z"][k] for k in order.tolist()]
    append_source(source, tmp_path / "a.zarr", **options)
    with ss.open(tmp_path / "a.zarr") as twice:
        assert twice.shape == (8, 2)
    none = ss.convert(source, tmp_path / "b.zarr", feature_names=["c"], **options)
    assert (none.shape, none.nnz) == ((4, 1), 0)
    np.testing.assert_array_equal(np.sort(none.column("y")[:]), [0, 1, 2, 5])


def test_rows_of_ignored_features_are_rows_of_a_sort_on_disk(tmp_path: Path) -> None:
    n = 1_000_000
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"n": np.arange(n), "i": np.where(rng.random(n) < 0.9, "a", "new")})
    frame.loc[n - 70_000 :, "i"] = "new"
    frame.to_csv(tmp_path / "x.csv", index=False)
    options: dict[str, Any] = {"row": "n", "feature": "i:string", "unknown": "ignore", "feature_names": ["a"]}
    for shuffle in (False, True):
        store = ss.convert(tmp_path / "x.csv", tmp_path / f"{shuffle}", max_bytes="24MiB", shuffle=shuffle, **options)
        order = store.column("row_id")[:] if shuffle else np.arange(n)
        np.testing.assert_array_equal(store[:].toarray()[:, 0], (frame.i == "a").to_numpy()[order])


def test_an_ignored_row_that_is_far_too_high_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("r,f\n0,a\n99999999999,b\n")
    with pytest.raises(SourceError, match="declares 100000000000 rows for 2 entries"):
        ss.convert(
            tmp_path / "x.csv", tmp_path / "a.zarr", row="r", feature="f:string", unknown="ignore", feature_names=["a"]
        )


def test_names_of_fields_may_have_colons(tmp_path: Path) -> None:
    source = opened(tmp_path, "r:token\tf:token\n1\t0\n", row="r:token:string", feature="f:token", delimiter="tab")
    store = ss.convert(source, tmp_path / "a.zarr")
    assert store.column("r:token")[:].tolist() == ["1"]
    headless = opened(tmp_path, "1\t0\n", row=0, feature=1, header=False, delimiter="tab", n_rows=2, n_features=1)
    assert read(headless)[0].toarray().tolist() == [[0], [1]]


def test_an_empty_table_is_an_empty_store(tmp_path: Path) -> None:
    assert ss.convert(opened(tmp_path, "r,f\n", n_features=3), tmp_path / "a.zarr").shape == (0, 3)


BAD = {
    "row_is_text": ({}, "a,0,1\n", "2: field 'r' is not a number that float64 can hold, found 'a'"),
    "row_below": ({}, "-1,0,1\n", "2: field 'r' is no number of a row, expected a whole number from 0: texts are "),
    "row_base": (
        {"zero_based": False},
        "1,1,1\n0,1,1\n",
        "3: field 'r' is no number of a row, expected a whole number",
    ),
    "row_high": ({"n_rows": 3}, "3,0,1\n", "2: field 'r' is no number of a row, expected 0 to 2, found '3'"),
    "fraction": ({}, "0,0.5,1\n", "2: field 'f' is no number of a feature, expected a whole number from 0"),
    "too_high": ({}, "0,9007199254740993,1\n", "2: field 'f' is no number of a feature"),
    "feature_high": ({"n_features": 2}, "0,1,1\n0,2,1\n", "3: field 'f' is no number of a feature, expected 0 to 1"),
    "empty_row": ({}, ",0,1\n", "2: field 'r' is empty"),
    "empty_value": ({}, "0,0,\n", "2: field 'x' is empty"),
    "huge_value": ({}, "0,0,1e39\n", "2: field 'x' is beyond float32: give dtype='float64', found '1e39'"),
    "label": ({"label": "y"}, "0,0,1,2\n1,0,1,3\n0,1,1,4\n", "4: field 'y' is another than in a line before"),
    "same_block": ({"label": "y"}, "0,0,1,2\n0,1,1,4\n", "3: field 'y' is another than in a line before"),
    "label_nan": ({"label": "y"}, "0,0,1,nan\n", "2: field 'y' is no finite number, found 'nan'"),
    "label_large": ({"label": "y"}, "0,0,1,16777217\n", "2: field 'y' is a whole number that float32 lacks"),
    "empty_text": ({"feature": "f:string"}, '0,"",1\n', "2: field 'f' is empty"),
    "empty_hashed": ({"feature": "f:string", "encode": "hash", "n_features": 8}, "0,,1\n", "2: field 'f' is empty"),
    "long_text": ({"feature": "f:string"}, f"0,{'x' * 1001},1\n", "2: field 'f' has 1001 bytes, expected at most 1000"),
    "rows": ({}, "99999999999,0,1\n", " declares 100000000000 rows for 1 entries"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_refused(tmp_path: Path, name: str) -> None:
    options, lines, message = BAD[name]
    header = "r,f,x,y\n" if "label" in options else "r,f,x\n"
    with pytest.raises(SourceError) as caught:
        list(opened(tmp_path, header + lines, value="x", **options).blocks(1 << 20))
    assert str(caught.value).startswith(f"{tmp_path / 'x.csv'}:{message}")


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"r,f\n0,a\n0,\xff\n")
    with pytest.raises(SourceError, match=r"x\.csv:3: field 'f' is no UTF-8 text"):
        list(open_source(tmp_path / "x.csv", row="r", feature="f:string").blocks(1 << 20))


OPTIONS = {
    "no_feature": ({"feature": None}, "format csv needs feature beside row"),
    "twice": ({"feature": "r"}, "feature='r': the field 'r' is taken already"),
    "nowhere": ({"value": "z"}, "value='z': there is no such field, expected one of 'r', 'f', 'x'"),
    "dtype": ({"row": "r:float32"}, "row='r:float32': expected name:dtype with one of int64, string"),
    "wide": ({"keep": "x"}, "keep: no option of format csv"),
    "n_rows": ({"row": "r:string", "n_rows": 3}, "n_rows=3 is for numbered rows"),
    "n_features": ({"feature": "f:string", "n_features": 3}, "n_features=3 is for numbered features or encode='hash'"),
    "hash": ({"feature": "f:string", "encode": "hash"}, "encode='hash' needs n_features"),
    "encode": ({"encode": "hash"}, "encode and unknown are for features that are texts"),
    "encoding": ({"feature": "f:string", "encode": "one-hot"}, "encode='one-hot', expected one of dictionary, hash"),
    "rows": ({"n_rows": -1}, "n_rows is -1, expected an integer of at least 0"),
    "unknown": ({"feature": "f:string", "unknown": "x"}, "unknown='x', expected one of add, ignore, error"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, name: str) -> None:
    options, message = OPTIONS[name]
    given = {"row": "r", "feature": "f", **options}
    (tmp_path / "x.csv").write_text("r,f,x\n0,0,1\n")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        open_source(tmp_path / "x.csv", **{key: value for key, value in given.items() if value is not None})
    assert message in str(caught.value)


def test_what_is_held_for_rows_is_limited(tmp_path: Path) -> None:
    values = RowValues("a.csv: field 'y'", max_bytes=1 << 16)
    assert values.put(np.arange(5000), np.ones(5000)) is None
    with pytest.raises(ResourceError, match=r"a\.csv: field 'y': 1,000,000 rows have one"):
        values.put(np.array([999_999]), np.ones(1))
    lines = "".join(f"user {k},0\n" for k in range(300_000))
    with pytest.raises(ResourceError, match=r"field 'r': its .* different texts take"):
        ss.convert(opened(tmp_path, "r,f\n" + lines, row="r:string"), tmp_path / "a.zarr", max_bytes="24MiB")
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.parametrize("n", [200_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_memory_is_bounded(tmp_path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 1000, n), rng.integers(0, 500, n)
    lines = "".join(f"u{user},i{item},1\n" for user, item in zip(users.tolist(), items.tolist(), strict=True))
    (tmp_path / "large.csv.gz").write_bytes(gzip.compress(b"r,f,x\n" + lines.encode(), 1))
    (tmp_path / "warm.csv").write_text("r,f,x\na,b,1\n")
    code = """
    import sys
    from sparsestore.sources.registry import open_source
    max_bytes = 4 << 20
    source, warm = (open_source(p, row="r:string", feature="f:string", value="x") for p in sys.argv[1:])
    """
    assert peak_of_reading(code, tmp_path / "large.csv.gz", tmp_path / "warm.csv") <= (4 << 20) + (16 << 20)
