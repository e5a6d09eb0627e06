"""Wide tables: equal to pandas and numpy, every corner decided, every bad file refused with its line."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from check_source import DATA, check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import sparsestore as ss
from sparsestore.cli import app
from sparsestore.convert import append_source
from sparsestore.errors import SourceError
from sparsestore.kernels import table
from sparsestore.sources.registry import open_source


def opened(folder: Path, text: str, name: str = "x.csv", **options: Any) -> Any:
    path = folder / name
    path.write_bytes(text.encode())
    return open_source(path, **options)


def test_equals_numpy_on_a_real_file() -> None:
    path = DATA / "lightgbm/binary_head.train"
    whole = np.loadtxt(path)
    source = open_source(path, format="csv", header=False, delimiter="tab", label=0, dtype="float64")
    check_source(source, whole[:, 1:], {"y": whole[:, 0]})
    assert source.feature_names is None
    assert source.provenance()["format"] == "csv"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_bytes=st.sampled_from([2_000, 20_000, 1 << 24]), crlf=st.booleans())
def test_reads_what_pandas_writes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, max_bytes: int, crlf: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((int(rng.integers(1, 200)), 7)) < 0.2, rng.normal(size=1) * 10.0 ** rng.integers(-9, 9), 0)
    frame = pandas.DataFrame(x, columns=[f"f {i}, «x»" for i in range(7)])
    frame.insert(3, "y", rng.integers(0, 2, len(x)))
    frame.insert(0, "user", [f'u"{i},' for i in range(len(x))])
    frame["id"] = rng.integers(-(2**63), 2**63 - 1, len(x))
    path = tmp_path_factory.getbasetemp() / "table.csv"
    frame.to_csv(path, index=False, lineterminator="\r\n" if crlf else "\n")
    source = open_source(path, label="y", keep=["user", "id:int64"], dtype="float64")
    found, columns = read(source, max_bytes)
    wanted = pandas.read_csv(path, float_precision="round_trip")
    np.testing.assert_array_equal(found.toarray(), wanted[source.feature_names].to_numpy(float))
    for name, column in (("y", "y"), ("user", "user"), ("id", "id")):
        np.testing.assert_array_equal(columns[name], wanted[column])


def test_columns_are_named_and_of_their_dtype(tmp_path: Path) -> None:
    text = "a,y,w,b,when,skip,price\n0,1,0.5,2,9007199254740993,x,1.5\n3,0,1,0,-1,y,\n"
    source = opened(tmp_path, text, label="y", weight="w", keep="when:int64,price:float64", drop="skip", missing="zero")
    assert source.feature_names == ["a", "b"]
    assert source.columns == {
        "y": ("float32", ()),
        "sample_weight": ("float32", ()),
        "price": ("float64", ()),
        "when": ("int64", ()),
    }
    columns = {
        "y": np.array([1, 0], np.float32),
        "sample_weight": np.array([0.5, 1], np.float32),
        "price": np.array([1.5, np.nan]),
        "when": np.array([9007199254740993, -1]),
    }
    check_source(source, np.array([[0, 2], [3, 0]], np.float32), columns)


CORNERS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "zeros": ("a,b\n0,0\n0,0\n", {}, [[0, 0], [0, 0]]),
    "odd_zeros": ("a,b\n0.0,-0\n00, 0 \n", {}, [[0, 0], [0, 0]]),
    "long_zero": ("a,b\n0.00000000000000000000000,1\n", {}, [[0, 1]]),
    "no_newline_at_the_end": ("a,b\n1,2", {}, [[1, 2]]),
    "crlf": ("a,b\r\n1,0\r\n\r\n0,2\r\n", {}, [[1, 0], [0, 2]]),
    "blank_lines": ("a,b\n\n1,2\n\n\n3,4\n\n", {}, [[1, 2], [3, 4]]),
    "quotes": ('a,b\n"1","0"\n" 2 ",3\n', {}, [[1, 0], [2, 3]]),
    "blanks": ("a,b\n 1,2 \n\t3 ,  4\n", {}, [[1, 2], [3, 4]]),
    "signs_and_exponents": ("a,b\n-2.5e1,+.5\n", {}, [[-25, 0.5]]),
    "nan_and_inf": ("a,b\nnan,-inf\n", {}, [[np.nan, -np.inf]]),
    "one_field": ("a\n5\n0\n", {}, [[5], [0]]),
    "semicolon": ("a;b\n1;2\n", {"delimiter": ";"}, [[1, 2]]),
    "space": ("a b\n1 2\n", {"delimiter": "space"}, [[1, 2]]),
    "no_header": ("1,2\n0,3\n", {"header": False}, [[1, 2], [0, 3]]),
    "missing_zero": ("a,b\n,1\n2,\n,\n", {"missing": "zero"}, [[0, 1], [2, 0], [0, 0]]),
    "missing_nan": ("a,b\n,1\n2,\n", {"missing": "nan"}, [[np.nan, 1], [2, np.nan]]),
    "header_alone": ("a,b\n", {}, np.empty((0, 2))),
    "quoted_names": ('"a, b","c ""d"""\n1,2\n', {}, [[1, 2]]),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_reads(tmp_path: Path, corner: str) -> None:
    text, options, wanted = CORNERS[corner]
    check_source(opened(tmp_path, text, **options), np.array(wanted, np.float32))


def test_a_tsv_has_tabs(tmp_path: Path) -> None:
    source = opened(tmp_path, "a\tb\n1\t2\n", "x.tsv")
    check_source(source, np.array([[1, 2]], np.float32))
    (tmp_path / "y.tsv.gz").write_bytes(gzip.compress(b"a\tb\n1\t2\n"))
    check_source(open_source(tmp_path / "y.tsv.gz"), np.array([[1, 2]], np.float32))


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "empty": ("", {}, "1: the file is empty"),
    "empty_line": ("\n1,2\n", {}, "1: an empty line, expected names of fields"),
    "twice": ("a,b,a\n1,2,3\n", {}, "1: the name of field 2 is 'a' as field 0 is: rename it, or give header=False"),
    "nameless": ("a,,b\n1,2,3\n", {}, "1: the name of field 1 is empty: rename it"),
    "few": ("a,b,c\n1,2,3\n1,2\n", {}, "3: 2 fields, expected 3"),
    "few_zeros": ("a,b,c\n1,2,3\n0\n", {}, "3: 1 fields, expected 3"),
    "many": ("a,b\n1,2\n0,0,0\n", {}, "3: more than 2 fields, expected 2: is the delimiter ','?"),
    "word": ("a,b\n1,x\n", {}, "2: field 'b' is not a number that float64 can hold, found 'x'"),
    "header": (
        "a,b\n1,2\n",
        {"header": False},
        "1: field '0' is not a number that float64 can hold, found 'a': is thi",
    ),
    "missing": ("a,b\n1,\n", {}, "2: field 'b' is empty: give missing='zero' or missing='nan' if that is meant"),
    "kept_beyond": (
        "a,k\n1,1e39\n",
        {"keep": "k:float32"},
        "2: field 'k' 1e+39 is beyond float32: keep it as 'k:float64'",
    ),
    "beyond": ("a,b\n1,1e39\n", {}, "2: value 1e+39 is beyond float32: give dtype='float64'"),
    "far_beyond": ("a,b\n1,1e400\n", {}, "2: field 'b' is not a number that float64 can hold, found '1e400'"),
    "comma": ("a;b\n1,5;2\n", {"delimiter": ";"}, "2: field 'a' is not a number that float64 can hold, found '1,5'"),
    "label": ("a,y\n1,\n", {"label": "y"}, "2: the label 'y' is empty or no finite number"),
    "nan_weight": ("a,w\n1,nan\n", {"weight": "w"}, "2: the weight 'w' is empty or no finite number"),
    "large_label": (
        "a,y\n1,16777217\n",
        {"label": "y"},
        "2: field 'y' 16777217.0 is a whole number that float32 lacks",
    ),
    "whole": ("a,k\n1,1.5\n", {"keep": "k:int64"}, "2: field 'k' is no number of int64, found '1.5'"),
    "too_large": ("a,k\n1,300\n", {"keep": "k:uint8"}, "2: field 'k' is no number of uint8, found '300'"),
    "quote": ('a,b\n"1,2\n', {}, "2: field 'a' goes on behind its closing quote or over the end of the line"),
    "behind_quote": ('a,b\n"1"5,2\n', {}, "2: field 'a' goes on behind its closing quote"),
    "mark": ("\ufeffa,b\n1,2\n", {}, "1: starts with a byte order mark"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    text, options, message = BAD[name]
    with pytest.raises(SourceError) as caught:
        read(opened(tmp_path, text, **options))
    assert str(caught.value).startswith(f"{tmp_path / 'x.csv'}:{message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "z"}, "label='z': there is no such field, expected one of 'a', 'b', 'y'"),
        ({"label": "y", "weight": "y"}, "weight='y': the field 'y' is taken already"),
        ({"keep": "a:complex64"}, "keep='a:complex64': expected name:dtype with one of string, int8"),
        ({"drop": ["a", "b", "y"]}, "no field is left for a feature"),
        ({"label": "a", "keep": "y"}, "two fields become the column 'y': keep one of them"),
        ({"missing": "mean"}, "missing='mean', expected one of error, zero, nan"),
        ({"delimiter": "ab"}, "delimiter='ab', expected one character that no number has"),
        ({"delimiter": "."}, "delimiter='.', expected one character"),
        ({"header": False, "label": 3}, "label=3: there is no such field, expected a number from 0 to 2"),
        ({"dtype": "int8"}, "dtype=int8 for text, expected float32 or float64"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        opened(tmp_path, "a,b,y\n1,2,3\n", **options)
    assert message in str(caught.value)


FIELDS = st.sampled_from(
    ["0", "", "1", "-2.5", " 3 ", '"4"', '"', "x", "1e3", "nan", "0.0", "00", '"a""b"', "é", "1e400"]
)


@settings(deadline=None, max_examples=300)
@given(
    lines=st.lists(st.lists(FIELDS, max_size=5), max_size=6),
    kinds=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    missing=st.integers(0, 2),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_the_tokenizer_agrees_with_its_twin(lines: list[list[str]], kinds: list[int], missing: int, end: str) -> None:
    text = np.frombuffer(("".join(",".join(line) + end for line in lines) + "\n").encode(), np.uint8)
    of = np.array(kinds, np.uint8)
    places = np.array([kinds[:i].count(kind) for i, kind in enumerate(kinds)], np.int64)
    found = table.table(text, of, places, delimiter=44, missing=missing)
    expected = table.table_numpy(text, of, places, delimiter=44, missing=missing)
    assert found[:3] == expected[:3]
    if found.status == table.OK:
        for a, b in zip(found[3:], expected[3:], strict=True):
            np.testing.assert_array_equal(a, b)


@given(rows=st.lists(st.lists(st.text(max_size=5), min_size=2, max_size=2), min_size=1, max_size=10))
@settings(deadline=None)
def test_text_is_kept_as_the_csv_module_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    plain = [[cell.replace("\r", "").replace("\n", "") for cell in row] for row in rows]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["a", "s", "t"])
    writer.writerows([1, *row] for row in plain)
    path = tmp_path_factory.getbasetemp() / "kept.csv"
    path.write_text(out.getvalue(), encoding="utf-8", newline="")
    _, columns = read(open_source(path, keep=["s", "t"]))
    assert columns["s"].tolist() == [row[0] for row in plain]
    assert columns["t"].tolist() == [row[1] for row in plain]


def test_the_command_converts_a_table(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("user,a,b,y\nu1,0,2,1\nu2,3,0,0\n")
    out = str(tmp_path / "s.zarr")
    found = CliRunner().invoke(app, ["convert", str(tmp_path / "x.csv"), out, "--label", "y", "--keep", "user"])
    assert found.exit_code == 0, found.output
    store = ss.open(out)
    assert store.feature_names.tolist() == ["a", "b"]  # type: ignore[union-attr]
    assert store.column("user")[:].tolist() == ["u1", "u2"]
    np.testing.assert_array_equal(store[:].toarray(), [[0, 2], [3, 0]])
    assert "u1  b:2.0" in CliRunner().invoke(app, ["head", out]).output.replace("y=1.0 user=", "")


def test_memory_is_bounded(tmp_path: Path) -> None:
    line = ("0," * 99 + "1\n") * 1000
    (tmp_path / "large.csv").write_text(",".join(f"f{i}" for i in range(100)) + "\n" + line * 100)
    (tmp_path / "warm.csv").write_text("a,b\n1,2\n")
    code = """
    import sys
    from sparsestore.sources.registry import open_source
    max_bytes = 4 << 20
    source, warm = open_source(sys.argv[1]), open_source(sys.argv[2])
    """
    assert peak_of_reading(code, tmp_path / "large.csv", tmp_path / "warm.csv") <= (4 << 20) + (16 << 20)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_field_is_not_taken_for_numbers_of_rows(tmp_path: Path, shuffle: bool) -> None:
    (tmp_path / "x.csv").write_text("row_id,a\n7,1\n7,2\n")
    with pytest.raises(ValueError, match="a column can not be called 'row_id', which has the numbers of rows"):
        ss.convert(tmp_path / "x.csv", tmp_path / "s.zarr", keep="row_id:int64", shuffle=shuffle)
    assert not (tmp_path / "s.zarr").exists()


# ------------------------------------------------------------------------------------------------ categories and ranges


def tables() -> tuple[pandas.DataFrame, str]:
    rng = np.random.default_rng(3)
    n = 400
    frame = pandas.DataFrame(
        {
            "age": rng.integers(10, 70, n),
            "y": rng.integers(0, 2, n),
            "color": [f"c{k}" for k in rng.integers(0, 9, n).tolist()],
            "clicks": np.where(rng.random(n) < 0.7, 0, rng.integers(1, 100, n)),
            "city": [f"Ort {k}, «x»" for k in rng.integers(0, 30, n).tolist()],
        }
    )
    return frame, frame.to_csv(index=False)


def test_categories_are_those_of_pandas_in_the_order_they_come(tmp_path: Path) -> None:
    frame, text = tables()
    source = opened(tmp_path, text, label="y", categorical="city,color", keep="age:float32")
    store = ss.convert(source, tmp_path / "a.zarr")
    assert store.feature_names is not None
    names = store.feature_names.tolist()
    dummies = pandas.get_dummies(frame[["city", "color"]], prefix_sep="=", dtype=float)
    assert names[0] == "clicks"
    assert sorted(names[1:]) == sorted(dummies.columns)
    order = [name for row in frame.index for name in (f"city={frame.city[row]}", f"color={frame.color[row]}")]
    assert names[1:] == list(dict.fromkeys(order))  # row by row, whatever the blocks
    wanted = pandas.concat([frame[["clicks"]], dummies], axis=1)[names]
    np.testing.assert_array_equal(store[:].toarray(), wanted.to_numpy(np.float32))
    assert set(store.columns) == {"y", "age"}
    assert read(source)[0].shape == store.shape  # once more from the beginning


def test_ranges_are_those_of_numpy(tmp_path: Path) -> None:
    frame, text = tables()
    source = opened(tmp_path, text, label="y", drop="color,city", bucket="age:18|30|50.5,cl*:log2")
    assert source.feature_names is not None
    assert source.feature_names[:4] == ["age<18", "age=18..30", "age=30..50.5", "age>=50.5"]
    assert source.feature_names[4:8] == ["clicks<0", "clicks=0..1", "clicks=1..2", "clicks=2..4"]
    wanted = np.zeros((len(frame), source.n_features))
    wanted[np.arange(len(frame)), np.digitize(frame.age, [18, 30, 50.5])] = 1
    wanted[np.arange(len(frame)), 4 + np.digitize(frame.clicks, [0, *(2.0 ** np.arange(63))])] = 1
    check_source(source, wanted, {"y": frame.y.to_numpy(np.float32)})


def test_hashed_categories_are_those_of_scikit_learn(tmp_path: Path) -> None:
    extraction = pytest.importorskip("sklearn.feature_extraction")
    frame, text = tables()
    source = opened(
        tmp_path, text, label="y", drop="age", categorical=["color", "city"], encode="hash", n_features=1 + 16
    )
    check_source(source, read(source)[0])
    bags = [[f"color={color}", f"city={city}"] for color, city in zip(frame.color, frame.city, strict=True)]
    hashed = extraction.FeatureHasher(16, input_type="string").transform(bags).toarray()
    found = read(source)[0].toarray()
    np.testing.assert_array_equal(found[:, 1:], hashed)  # several of one row at one place add up
    np.testing.assert_array_equal(found[:, 0], frame.clicks)
    assert source.feature_names is None
    assert source.provenance()["options"]["encode"] == "hash"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_what_is_hashed_otherwise_is_not_appended(tmp_path: Path, form: str) -> None:
    def table(name: str, rows: dict[str, list[Any]]) -> Path:
        path = tmp_path / f"{name}.{form}"
        if form == "csv":
            lines = [",".join(rows), *(",".join(map(str, row)) for row in zip(*rows.values(), strict=True))]
            path.write_text("\n".join(lines) + "\n")
        else:
            pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").table(rows), path)
        return path

    rows: dict[str, list[Any]] = {"c": ["x", "y"], "a": [1, 2], "b": [3, 4]}
    first, again = table("first", rows), table("again", {**rows, "c": ["z", "x"]})
    swapped, fewer = table("swapped", {name: rows[name] for name in "cba"}), table("fewer", {"c": ["x"], "a": [1]})
    ss.convert(first, tmp_path / "s.zarr", categorical="c", encode="hash", n_features=16)
    ss.convert(tmp_path / "s.zarr", tmp_path / "copy.zarr")
    for name in ("s", "copy"):
        path = tmp_path / f"{name}.zarr"
        for source, n_features, message in (
            (swapped, 16, "one of these is 'b', in .* 'a'"),
            (fewer, 16, "features of numbers before these are '1', in .* '2'"),
            (again, 9, "texts are hashed to '9', in .* '16'"),
        ):
            with pytest.raises(ValueError, match=f"{message}: hash to the same n_features"):
                append_source(source, path, categorical="c", encode="hash", n_features=n_features)
        append_source(again, path, categorical="c", encode="hash", n_features=16)
        assert len(ss.open(path)) == 4


def test_empty_categories_and_ranges_are_what_is_said(tmp_path: Path) -> None:
    text = 'a,c,b\n1,x,2\n2,,\n0,"",nan\n'
    options: dict[str, Any] = {"categorical": "c", "bucket": {"b": [0, 5]}}
    zero = ss.convert(opened(tmp_path, text, missing="zero", **options), tmp_path / "zero.zarr")
    assert zero[:].toarray().tolist() == [[1, 0, 1, 0, 1], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    nan = ss.convert(opened(tmp_path, text, missing="nan", **options), tmp_path / "nan.zarr")
    assert nan.feature_names is not None
    assert nan.feature_names.tolist() == ["a", "b<0", "b=0..5", "b>=5", "c=x", "c="]
    assert nan[:].toarray().tolist() == [[1, 0, 1, 0, 1, 0], [2, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]
    for line, field in ((text, "b"), ("a,c,b\n1,x,2\n1,,2\n", "c")):
        with pytest.raises(SourceError, match=rf"x\.csv:3: field '{field}' is empty: give missing='zero'"):
            list(opened(tmp_path, line, **options).blocks(1 << 20))


def test_a_second_day_keeps_the_categories_of_the_first(tmp_path: Path) -> None:
    options: dict[str, Any] = {"categorical": "c", "label": "y"}
    ss.convert(opened(tmp_path, "n,c,y\n1,b,0\n2,a,1\n", **options), tmp_path / "a.zarr")
    (tmp_path / "2.csv").write_text("n,c,y\n0,c,1\n4,a,0\n")
    command = ["append", str(tmp_path / "2.csv"), str(tmp_path / "a.zarr"), "--categorical", "c", "--label", "y"]
    assert CliRunner().invoke(app, [*command, "--grow-features"]).exit_code == 0
    with ss.open(tmp_path / "a.zarr") as store:
        assert store.feature_names is not None
        assert store.feature_names.tolist() == ["n", "c=b", "c=a", "c=c"]
        assert store[:].toarray().tolist() == [[1, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 1], [4, 0, 1, 0]]


def test_a_second_day_keeps_the_category_of_empty_fields(tmp_path: Path) -> None:
    options: dict[str, Any] = {"categorical": "c*", "missing": "nan"}
    ss.convert(opened(tmp_path, "n,c1,c2\n1,a,\n2,,b\n", **options), tmp_path / "a.zarr")
    again = opened(tmp_path, "n,c1,c2\n3,,\n,d,b\n", **options)
    append_source(again, tmp_path / "a.zarr", grow_features=True)
    with ss.open(tmp_path / "a.zarr") as store:
        names = store.feature_names
        assert names is not None
        assert names.tolist() == ["n", "c1=a", "c2=", "c1=", "c2=b", "c1=d"]
        rows = [[1, 1, 1, 0, 0, 0], [2, 0, 0, 1, 1, 0], [3, 0, 1, 1, 0, 0], [np.nan, 0, 0, 0, 1, 1]]
        np.testing.assert_array_equal(store[:].toarray(), rows)
    ignored = ss.convert(
        opened(tmp_path, "n,c1,c2\n5,,new\n", **options, unknown="ignore"), tmp_path / "b.zarr", feature_names=names
    )
    assert ignored[:].toarray().tolist() == [[5, 0, 0, 1, 0, 0]]


def test_a_text_that_is_no_known_feature_is_told_with_its_line(tmp_path: Path) -> None:
    rows = "1,a,b\n" * 5 + f"2,a,\x1b{'x' * 2000}\n"
    source = opened(tmp_path, f"n,c1,c2\n{rows}", categorical="c*", unknown="error")
    with pytest.raises(SourceError, match=r":7: field 'c2' is none of the features .*, found '\\x1bx{39}'\.\.\.$"):
        ss.convert(source, tmp_path / "a.zarr", feature_names=["n", "c1=a", "c2=b"])


@pytest.mark.parametrize("text", ['id,"na\nme",5\n1,2\n', '"a"x,b\n1,2\n', '"a,b\n'])
def test_quoted_names_end_on_their_line_as_fields_do(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceError, match=r"csv:1: the line has no fields that can be read"):
        opened(tmp_path, text, keep="id" if "id" in text else None)


def test_a_tab_that_lacks_behind_a_quoted_name_is_told_in_print(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"""can be read: '\\t' expected after '"'$"""):
        opened(tmp_path, '"a"x\tb\n1\t2\n', delimiter="\t")


def test_names_that_no_feature_can_have_are_told_at_once(tmp_path: Path) -> None:
    """Not when all rows were read."""
    long = "x" * 1001
    with pytest.raises(SourceError, match=r"csv:1: the name 'x{40}'\.\.\. of a feature has 1001 bytes, expected 1 to"):
        opened(tmp_path, f"a,{long}\n1,2\n")
    check_source(opened(tmp_path, f"a,{long}\n1,2\n", drop=long), np.array([[1.0]]))
    assert opened(tmp_path, f"a,{long}\n", header=False, categorical="0,1").n_features is None


def test_names_that_are_there_and_no_field_can_have_are_refused(tmp_path: Path) -> None:
    for name, message in (
        ("d=a", "no field has a text for feature 'd=a', which is there already"),
        ("c=" + "a" * 998, "feature 'c=a.*, which is there already: its text has 998 bytes, expected at most 993"),
    ):
        source = opened(tmp_path, "c,longer\n1,a\n", categorical="c,longer")
        with pytest.raises(ValueError, match=message):
            ss.convert(source, tmp_path / "a.zarr", feature_names=[name])


CATEGORIES = {
    "alike": ({"categorical": "a,a=b"}, "a text of field 'a' and 'a=b' could have one name: rename a field"),
    "like_a_number": ({"categorical": "a"}, "a text of field 'a' and 'a=b' could have one name"),
    "twice": ({"categorical": "a,a"}, "categorical='a': the field 'a' is taken already"),
    "no_match": ({"categorical": "x*"}, "categorical='x*': no field that is left is called so"),
    "width": ({"categorical": "a", "drop": "a=b", "n_features": 7}, "n_features=7 is for encode='hash'"),
    "narrow": ({"categorical": "a", "drop": "a=b", "encode": "hash", "n_features": 1}, "0 are left to hash to"),
    "alone": ({"encode": "hash"}, "encode, n_features and unknown are for categories"),
    "edges": ({"bucket": {"n": [2, 1]}}, "the edges of 'n' are [2.0, 1.0], expected ascending numbers"),
    "no_edges": ({"bucket": "n"}, "bucket='n': found 'n', expected field:18|30|50 or field:log2"),
    "text_edges": ({"bucket": "n:a|b"}, "the edges of 'n' are ['a', 'b'], expected ascending numbers"),
    "log3": ({"bucket": {"n": "log3"}}, "the edges of 'n' are 'log3', expected numbers or 'log2'"),
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_categories_and_ranges_that_make_no_sense_are_refused(tmp_path: Path, name: str) -> None:
    options, message = CATEGORIES[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        opened(tmp_path, "a,a=b,n\n1,2,3\n", **options)
    assert message in str(caught.value)


def test_a_category_that_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"n,c\n1,a\n2,\xff\n")
    with pytest.raises(SourceError, match=r"x\.csv:3: field 'c' is no UTF-8 text"):
        list(open_source(tmp_path / "x.csv", categorical="c").blocks(1 << 20))
