"""ARFF: equal to liac-arff and scipy, every corner decided, every bad file refused with its line."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.arff
from check_source import check_source, peak_of_reading, read
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.externals import _arff as liac
from typer.testing import CliRunner

import sparsestore as ss
from sparsestore import writer
from sparsestore.cli import app
from sparsestore.convert import append_source
from sparsestore.errors import SourceError
from sparsestore.kernels import arff
from sparsestore.kernels.names import names_of
from sparsestore.sources.registry import open_source

HEAD = """% a comment
@relation 'some weather'

@attribute a numeric
@ATTRIBUTE 'b c' REAL % of it
@attribute\tclass {no,yes,'per haps'}
@attribute "d" integer
@data
"""


def opened(folder: Path, text: str, name: str = "x.arff", **options: Any) -> Any:
    path = folder / name
    path.write_bytes(text.encode())
    return open_source(path, **options)


# --------------------------------------------------------------------------------------------- independent readers


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_bytes=st.sampled_from([2_000, 1 << 24]), sparse=st.booleans())
def test_reads_what_liac_arff_writes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, max_bytes: int, sparse: bool
) -> None:
    rng = np.random.default_rng(seed)
    n, width = int(rng.integers(1, 60)), int(rng.integers(3, 40))
    kinds = [["a", "it's", 'q"%', "x, y", "b c"], "REAL", "INTEGER", "NUMERIC"]
    attributes = [(f"it's {k}, {{%}}" if rng.random() < 0.3 else f"n{k}", kinds[rng.integers(4)]) for k in range(width)]
    attributes[:2] = [("y", ["-1", "1"]), ("name", "STRING")]
    attributes[2] = ("real", "REAL")
    rows: list[Any] = []
    x = np.zeros((n, width))
    for row in range(n):
        cells: dict[int, Any] = {1: f"s {row}, 'x' {rng.integers(9)}"}
        for k in rng.permutation(width)[: rng.integers(0, width)].tolist():
            kind = attributes[k][1]
            if isinstance(kind, list):
                x[row, k] = rng.integers(len(kind))
                cells[k] = kind[int(x[row, k])]
            elif kind != "STRING":
                x[row, k] = rng.integers(-5, 5) if kind == "INTEGER" else rng.normal() * 10.0 ** rng.integers(-9, 9)
                cells[k] = x[row, k]
        whole = [kind[0] if isinstance(kind, list) else 0 for _, kind in attributes]
        rows.append(dict(sorted(cells.items())) if sparse else [cells.get(k, whole[k]) for k in range(width)])
    text = liac.dumps({"relation": "r", "attributes": attributes, "data": rows, "description": ""})
    path = tmp_path_factory.getbasetemp() / "x.arff"
    path.write_text(text)
    source = open_source(path, label="y", keep="name", dtype="float64")
    found, columns = read(source, max_bytes)
    np.testing.assert_array_equal(found.toarray(), x[:, 2:])
    np.testing.assert_array_equal(columns["y"], x[:, 0])
    again = liac.loads(text, return_type=liac.LOD if sparse else liac.DENSE, encode_nominal=True)
    assert source.feature_names == [name for name, _ in again["attributes"]][2:]
    for row, cells in enumerate(again["data"]):
        for k in range(2, width):
            assert found[row, k - 2] == (cells.get(k, 0) if sparse else cells[k])
        assert columns["name"][row] == cells[1]


def test_equals_scipy_on_dense_rows(tmp_path: Path) -> None:
    text = HEAD + "1,2.5,yes,3\n-1e-3, 0 ,no,0\n 7,?,yes,2\n"
    data, _ = scipy.io.arff.loadarff(io.StringIO(text))
    x = np.stack(
        [data["a"], data["b c"], [[b"no", b"yes"].index(v) for v in data["class"]], data['"d"']], 1
    )  # scipy keeps the quotes
    source = opened(tmp_path, text, missing="nan")
    check_source(source, x.astype(np.float32))
    assert source.feature_names == ["a", "b c", "class", "d"]
    assert source.provenance()["format"] == "arff"


# -------------------------------------------------------------------------------------------------------- corners

CORNERS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "sparse": ("{0 1, 2 yes}\n{1 2.5,3 4}\n{}\n", {}, [[1, 0, 1, 0], [0, 2.5, 0, 4], [0, 0, 0, 0]]),
    "blanks": ("  {  0   1 ,\t2  'yes'  }  \n { } \n", {}, [[1, 0, 1, 0], [0, 0, 0, 0]]),
    "sparse_and_dense": ("{3 1}\n1,2,no,3\n", {}, [[0, 0, 0, 1], [1, 2, 0, 3]]),
    "zeros": ("{0 0, 1 0.0, 2 no, 3 -0}\n0,0e5,no,0.00000000000000000000\n", {}, np.zeros((2, 4))),
    "odd_zeros_between": ("{0 1, 1 0.000000000000000000000, 2 yes}\n{3 1}\n", {}, [[1, 0, 1, 0], [0, 0, 0, 1]]),
    "comments": ("% no row\n{0 1} % one\n\n1,2,yes,3 % two\n%{0 5}\n", {}, [[1, 0, 0, 0], [1, 2, 1, 3]]),
    "crlf": ("{0 1}\r\n\r\n1,2,no,3\r\n", {}, [[1, 0, 0, 0], [1, 2, 0, 3]]),
    "no_newline_at_the_end": ("{0 1, 2 yes}", {}, [[1, 0, 1, 0]]),
    "quotes": ('{0 \'1.5\', 1 "2", 2 "per haps"}\n', {}, [[1.5, 2, 2, 0]]),
    "escapes": ("{2 'per\\ haps'}\n", {}, [[0, 0, 2, 0]]),
    "nan_and_inf": ("{0 nan, 1 -inf}\n", {}, [[np.nan, -np.inf, 0, 0]]),
    "missing_zero": ("{0 ?, 2 ?}\n?,1,?,?\n", {"missing": "zero"}, [[0, 0, 0, 0], [0, 1, 0, 0]]),
    "missing_nan": ("{0 ?, 2 ?}\n", {"missing": "nan"}, [[np.nan, 0, np.nan, 0]]),
    "dropped": ("{0 x, 1 2}\n'x y',3,no,1\n", {"drop": "a"}, [[2, 0, 0], [3, 0, 1]]),
    "no_rows": ("", {}, np.empty((0, 4))),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_reads(tmp_path: Path, corner: str) -> None:
    text, options, wanted = CORNERS[corner]
    check_source(opened(tmp_path, HEAD + text, **options), np.array(wanted, np.float32))


def test_columns_are_named_and_of_their_dtype(tmp_path: Path) -> None:
    text = """@relation x
@attribute y {b, a}
@attribute w numeric
@attribute id numeric
@attribute who string
@attribute day date 'yyyy-MM-dd'
@attribute kind {x,'y z'}
@attribute price real
@attribute f numeric
@data
{0 a, 1 0.5, 2 9007199254740993, 3 'é, \\'x\\'', 4 "2020-01-01", 5 'y z', 6 1.5, 7 2}
{7 3}
b,2,-1,?,?,?,?,0
"""
    keep = "id:int64,who,day,kind,price:float64"
    source = opened(tmp_path, text, label="y", weight="w", keep=keep)
    columns = {
        "y": np.array([1, 0, 0], np.float32),
        "sample_weight": np.array([0.5, 0, 2], np.float32),
        "price": np.array([1.5, 0, np.nan]),
        "id": np.array([9007199254740993, 0, -1]),
        "who": np.array(["é, 'x'", "", ""], object),
        "day": np.array(["2020-01-01", "", ""], object),
        "kind": np.array(["y z", "x", ""], object),
    }
    assert list(source.columns) == list(columns)
    check_source(source, np.array([[2], [3], [0]], np.float32), columns)


def test_nominal_values_are_numbers_where_that_is_said(tmp_path: Path) -> None:
    source = opened(tmp_path, HEAD + "{2 yes}\n{}\n1,2,'per haps',3\n", keep="class:uint8")
    check_source(
        source, np.array([[0, 0, 0], [0, 0, 0], [1, 2, 3]], np.float32), {"class": np.array([1, 0, 2], np.uint8)}
    )


def test_weights_behind_the_rows_are_kept_where_that_is_said(tmp_path: Path) -> None:
    text = HEAD + "{0 1}, {0.5}\n{1 2}\n1,2,yes,3,{ 2 }\n{} , {0.33333333333333333333}% w\n"
    source = opened(tmp_path, text, weight="{}", dtype="float64")
    x = np.array([[1, 0, 0, 0], [0, 2, 0, 0], [1, 2, 1, 3], [0, 0, 0, 0]])
    check_source(source, x, {"sample_weight": np.array([0.5, 1, 2, 1 / 3])})


def test_a_compressed_one_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "x.arff.gz").write_bytes(gzip.compress((HEAD + "{0 1, 2 yes}\n{3 2}\n").encode()))
    arguments = ["convert", str(tmp_path / "x.arff.gz"), str(tmp_path / "s.zarr"), "--label", "class", "--drop", "d"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    store = ss.open(tmp_path / "s.zarr")
    assert store.feature_names.tolist() == ["a", "b c"]  # type: ignore[union-attr]
    np.testing.assert_array_equal(store[:].toarray(), [[1, 0], [0, 0]])
    np.testing.assert_array_equal(store.column("y")[:], [1, 0])


# ------------------------------------------------------------------------------------------------------ bad files

ROWS_FROM = 9


def test_other_values_of_a_label_than_those_of_the_store_are_not_appended(tmp_path: Path) -> None:
    for name, values, label in (("a", "T,B", "B"), ("b", "B,NK", "B"), ("c", "T,B,NK", "NK")):
        text = f"@relation r\n@attribute x real\n@attribute c {{{values}}}\n@data\n1,{label}\n"
        (tmp_path / f"{name}.arff").write_text(text)
    ss.convert(tmp_path / "a.arff", tmp_path / "a.zarr", label="c")
    ss.convert(tmp_path / "a.zarr", tmp_path / "copy.zarr")
    for store in ("a.zarr", "copy.zarr"):
        with pytest.raises(ValueError, match=r"b\.arff: number 0 of column 'y' stands for 'B', in .*\.zarr for 'T'"):
            append_source(tmp_path / "b.arff", tmp_path / store, label="c")
        append_source(tmp_path / "c.arff", tmp_path / store, label="c")
        with ss.open(tmp_path / store) as both:
            assert both.column("y")[:].tolist() == [1, 2]


def nominal(tmp_path: Path, name: str, values: list[str], value: str) -> Path:
    path = tmp_path / f"{name}.arff"
    path.write_text(f"@relation r\n@attribute x real\n@attribute c {{{','.join(values)}}}\n@data\n1,{value}\n")
    return path


def test_other_values_of_a_feature_than_those_of_the_store_are_not_appended(tmp_path: Path) -> None:
    ss.convert(nominal(tmp_path, "a", ["T", "B"], "B"), tmp_path / "a.zarr")
    ss.convert(tmp_path / "a.zarr", tmp_path / "copy.zarr")
    other, longer = nominal(tmp_path, "b", ["B", "T"], "B"), nominal(tmp_path, "c", ["T", "B", "NK"], "NK")
    for store in ("a.zarr", "copy.zarr"):
        with pytest.raises(ValueError, match=r"b\.arff: number 0 of feature 'c' stands for 'B', in .*\.zarr for 'T'"):
            append_source(other, tmp_path / store)
        append_source(longer, tmp_path / store)
        with ss.open(tmp_path / store) as both:
            assert both[:].toarray()[:, 1].tolist() == [1, 2]


@pytest.mark.parametrize("options", [{}, {"label": "c"}])
def test_what_appended_files_brought_is_kept_too(tmp_path: Path, options: dict[str, Any]) -> None:
    ss.convert(nominal(tmp_path, "a", ["T", "B"], "B"), tmp_path / "a.zarr", **options)
    append_source(nominal(tmp_path, "b", ["T", "B", "NK"], "NK"), tmp_path / "a.zarr", **options)
    append_source(nominal(tmp_path, "c", ["T"], "T"), tmp_path / "a.zarr", **options)
    ss.convert(tmp_path / "a.zarr", tmp_path / "copy.zarr")
    other = nominal(tmp_path, "d", ["T", "B", "DC"], "DC")
    for store in ("a.zarr", "copy.zarr"):
        with pytest.raises(ValueError, match=r"number 2 of .* stands for 'DC', in .*\.zarr for 'NK'"):
            append_source(other, tmp_path / store, **options)


def test_of_many_values_none_is_another_unseen(tmp_path: Path) -> None:
    values = [f"v{number}" for number in range(1500)]
    path = nominal(tmp_path, "a", values, "v1400")
    ss.convert(path, tmp_path / "a.zarr")
    append_source(path, tmp_path / "a.zarr")
    values.insert(1200, "new")
    with pytest.raises(ValueError, match="number 1000 of feature 'c' stands for '1000 to 1500: crc32"):
        append_source(nominal(tmp_path, "b", values, "v1400"), tmp_path / "a.zarr")


def test_values_of_two_files_appended_at_once_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ss.convert(nominal(tmp_path, "a", ["T", "B"], "B"), tmp_path / "a.zarr")
    first, second = (nominal(tmp_path, name, ["T", "B", name], name) for name in ("NK", "DC"))
    write = writer.Writer.write

    def after_another(self: Any, *arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        append_source(first, tmp_path / "a.zarr")
        write(self, *arguments, **options)

    monkeypatch.setattr(writer.Writer, "write", after_another)
    with pytest.raises(ValueError, match=r"number 2 of feature 'c' stands for 'DC', in .* for 'NK'"):
        append_source(second, tmp_path / "a.zarr")
    assert len(ss.open(tmp_path / "a.zarr")) == 2


def test_names_that_no_feature_can_have_are_told_at_once(tmp_path: Path) -> None:
    text = f"@relation r\n@attribute a real\n@attribute {'b' * 1001} real\n@data\n1,2\n"
    with pytest.raises(SourceError, match=r"x\.arff: the name 'b{40}'\.\.\. of a feature has 1001 bytes"):
        opened(tmp_path, text)
    assert opened(tmp_path, text, drop="b" * 1001).feature_names == ["a"]


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "word": ("{0 1}\n{0 x}\n", {}, "10: attribute 'a' is not a number that float64 can hold, found 'x'"),
    "nul": ("{0 1\0}\n", {}, "9: attribute 'a' is not a number that float64 can hold, found '1\\x00'"),
    "far_beyond": ("{0 1e400}\n", {}, "9: attribute 'a' is not a number that float64 can hold, found '1e400'"),
    "beyond": ("{0 1e39}\n", {}, "9: value 1e+39 is beyond float32: give dtype='float64'"),
    "nominal": (
        "{2 maybe}\n",
        {},
        "9: attribute 'class' has no value 'maybe', expected one of 'no', 'yes', 'per haps'",
    ),
    "nominal_kept": ("{2 maybe}\n", {"keep": "class"}, "9: attribute 'class' has no value 'maybe'"),
    "no_blank": ("{01}\n", {}, "9: expected a number of an attribute, a blank and a value, found '01}'"),
    "no_index": ("{a 1}\n", {}, "9: expected a number of an attribute, a blank and a value, found 'a 1}'"),
    "comma_at_the_end": ("{0 1,}\n", {}, "9: expected a number of an attribute, a blank and a value, found '}'"),
    "negative": ("{-1 1}\n", {}, "9: expected a number of an attribute, a blank and a value, found '-1 1}'"),
    "high": ("{4 1}\n", {}, "9: attribute number '4', expected 0 to 3"),
    "long_index": ("{" + "9" * 30 + " 1}\n", {}, "9: attribute number '9"),
    "unordered": ("{1 1, 0 1}\n", {}, "9: numbers of attributes not ascending, found '0' after a higher one"),
    "twice": ("{1 1, 1 1}\n", {}, "9: attribute number '1' stands twice in the row, expected once"),
    "few": ("1,2,no,3\n1,2\n", {}, "10: 2 values, expected 4"),
    "many": ("1,2,no,3,4\n", {}, "9: expected the end of the line behind the values of 4 attributes, found ',4'"),
    "behind": ("{0 1} x\n", {}, "9: expected the end of the line behind the values of 4 attributes, found 'x'"),
    "open_brace": ("{0 1\n{0 2}\n", {}, "9: expected a comma behind the value of attribute 'a', found ''"),
    "blank_between": ("{0 1 2 yes}\n", {}, "9: expected a comma behind the value of attribute 'a', found '2 yes}'"),
    "semicolon": ("1;2;no;3\n", {}, "9: attribute 'a' is not a number that float64 can hold, found '1;2;no;3'"),
    "empty": ("1,,no,3\n", {}, "9: attribute 'b c' has no value, found ',no,3'"),
    "missing": ("{1 ?}\n", {}, "9: attribute 'b c' is missing (?): give missing='zero' or missing='nan' if that is"),
    "missing_label": ("{2 ?}\n", {"label": "class"}, "9: attribute 'class' is ?, expected a finite number"),
    "missing_whole": ("{3 ?}\n", {"keep": "d:int64"}, "9: attribute 'd' is no number of int64, found ?"),
    "missing_nominal": ("{2 ?}\n", {"keep": "class:uint8"}, "9: attribute 'class' is ?, expected uint8"),
    "fraction": ("{3 1.5}\n", {"keep": "d:int64"}, "9: attribute 'd' is no number of int64, found '1.5'"),
    "quote": ("{2 'yes}\n", {}, "9: attribute 'class' goes on over the end of the line, found \"'yes}\""),
    "escaped_end": ("{2 'yes\\\n", {}, "9: attribute 'class' goes on over the end of the line"),
    "weight": ("{0 1}, {5}\n", {}, "9: the row has a weight, '{5}': give weight='{}' to keep such weights"),
    "bad_weight": ("{0 1}, {x}\n", {"weight": "{}"}, "9: the weight is not a finite number in braces, found 'x}'"),
    "infinite_weight": (
        "{0 1}, {inf}\n",
        {"weight": "{}"},
        "9: the weight is not a finite number in braces, found 'inf}",
    ),
    "open_weight": ("{0 1}, {5\n", {"weight": "{}"}, "9: the weight is not a finite number in braces, found '{5'"),
    "large_label": (
        "{0 16777217}\n",
        {"label": "a"},
        "9: attribute 'a' 16777217.0 is a whole number that float32 lacks",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    text, options, message = BAD[name]
    with pytest.raises(SourceError) as caught:
        read(opened(tmp_path, HEAD + text, **options))
    assert str(caught.value).startswith(f"{tmp_path / 'x.arff'}:{message}")
    assert str(caught.value).isprintable()


BAD_HEADS: dict[str, tuple[str, str]] = {
    "empty": ("", ":1: the file ends before @data"),
    "no_data": ("@relation x\n@attribute a numeric\n", ":3: the file ends before @data"),
    "no_attributes": ("@relation x\n@data\n", ": no attribute is left for a feature"),
    "csv": ("a,b\n1,2\n", ":1: expected @relation, @attribute or @data, found 'a,b'"),
    "type": (
        "@attribute a numerical\n",
        ":1: attribute 'a' is of the type 'numerical', expected numeric, real, integer",
    ),
    "relational": ("@attribute a relational\n", ":1: attribute 'a' is of the type 'relational', expected numeric"),
    "no_type": ("@attribute a\n", ":1: expected @attribute name type, found 'a'"),
    "no_name": ("@attribute '' real\n", ":1: an attribute without a name"),
    "open_quote": ("@attribute 'a real\n", ':1: expected @attribute name type, found "\'a real"'),
    "twice": ("@attribute a real\n@attribute 'a' real\n", ":2: a second attribute 'a': rename it"),
    "open_braces": ("@attribute a {x,y\n", ":1: attribute 'a': expected values in braces, found ',y'"),
    "no_values": ("@attribute a {}\n", ":1: attribute 'a': expected values in braces, found '{}'"),
    "values_twice": ("@attribute a {x,'x'}\n", ":1: attribute 'a' has the value 'x' twice"),
    "behind_values": ("@attribute a {x} y\n", ":1: attribute 'a': expected values in braces, found '} y'"),
    "string": (
        "@attribute a real\n@attribute s string\n@data\n",
        ": attribute 's' is a string, which is no feature: keep= ",
    ),
    "date": (
        "@attribute a real\n@attribute s DATE\n@data\n",
        ": attribute 's' is a date, which is no feature: keep= it, or",
    ),
    "mark": ("\ufeff@relation x\n", ":1: starts with a byte order mark"),
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_bad_header_is_refused(tmp_path: Path, name: str) -> None:
    text, message = BAD_HEADS[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        opened(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'x.arff'}{message}")


def test_names_must_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "x.arff").write_bytes(b"@relation \xff\n@attribute \xff numeric\n@data\n")
    with pytest.raises(
        SourceError, match=r"x\.arff:2: the line is no UTF-8 text: invalid start byte: save it as UTF-8"
    ):
        open_source(tmp_path / "x.arff")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "z"}, "label='z': there is no such attribute, expected one of 'a', 'b c', 'class', 'd'"),
        ({"label": "a", "weight": "a"}, "weight='a': the attribute is taken already"),
        ({"keep": "a:date"}, "keep='a:date': expected name:dtype with one of string, int8"),
        ({"label": "a", "keep": "y:int8"}, "keep='y': there is no such attribute"),
        ({"drop": ["a", "b c", "class", "d"]}, "no attribute is left for a feature"),
        ({"missing": "mean"}, "missing='mean', expected one of error, zero, nan"),
        ({"dtype": "int8"}, "dtype=int8 for text, expected float32 or float64"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        opened(tmp_path, HEAD, **options)
    assert message in str(caught.value)


# --------------------------------------------------------------------------------------------- the loop and its twin

VALUES = [["a", "b c", "it's"], [], [], ["x"]]
TOKENS = st.sampled_from(
    [
        *["0", "1", "-2.5e3", "0.0", "0." + "0" * 25, "1" * 25, "nan", "1e400", "?", "'?'", "", "é", "x", "a"],
        *["'b c'", '"it\'s"', "'it\\'s'", "'", "{", "}", "\\", "%"],
    ]
)
SPARSE_ROWS = st.lists(st.tuples(st.integers(0, 5), TOKENS), max_size=4).map(
    lambda cells: "{" + ", ".join(f"{k} {token}" for k, token in cells) + "}"
)
DENSE_ROWS = st.lists(TOKENS, min_size=3, max_size=5).map(",".join)
WEIGHTS = st.sampled_from(["", "", "", ", {5}", ",{ 0.5 }", ", {x}", " , 3", "%, {5}", "}", ",{1" + "0" * 30 + "}"])
LINES = st.lists(st.tuples(SPARSE_ROWS | DENSE_ROWS | st.text("{}0 1,'%?a\\\t\r", max_size=12), WEIGHTS), max_size=5)


@settings(deadline=None, max_examples=400)
@example(
    lines=[("\\a, 0, 0, x", "")], kinds=[0] * 4, missing=0, weighted=False, end="\n"
)  # it escapes inside quotes alone
@given(
    lines=LINES,
    kinds=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    missing=st.integers(0, 2),
    weighted=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_the_tokenizer_agrees_with_its_twin(
    lines: list[tuple[str, str]], kinds: list[int], missing: int, weighted: bool, end: str
) -> None:
    text = np.frombuffer(("".join(line + weight + end for line, weight in lines) + "\n").encode(), np.uint8)
    names = [(value.encode(), k) for k, values in enumerate(VALUES) for value in values]
    attributes = arff.Attributes(
        np.array(kinds, np.uint8),
        np.array([kinds[:i].count(kind) for i, kind in enumerate(kinds)], np.int64),
        np.array([0, -1, -1, 3], np.int64),
        names_of([name for name, _ in names], [k for _, k in names]),
    )
    found = arff.arff(text, attributes, missing=missing, weighted=weighted)
    expected = arff.arff_numpy(text, attributes, missing=missing, weighted=weighted)
    assert found[:3] == expected[:3]
    for a, b in zip(found[3:], expected[3:], strict=True):
        np.testing.assert_array_equal(a, b)


@settings(deadline=None, max_examples=150)
@given(
    head=st.lists(
        st.sampled_from(
            ["@relation x", "@attribute a numeric", "@attribute 'b", "@attribute b {x,'y z'}", "%", "@data"]
        )
        | st.text(max_size=12).map(lambda text: "@attribute " + text.replace("\n", " ")),
        max_size=4,
    ),
    rows=st.lists(st.binary(max_size=20) | SPARSE_ROWS.map(str.encode), max_size=4),
)
def test_whatever_the_bytes_are_it_is_rows_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, head: list[str], rows: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.arff"
    lines = [line.encode("utf-8", "replace") for line in ["@attribute first real", *head, "@data"]]
    path.write_bytes(b"\n".join([*lines, *rows]))
    message = f"{path}:"
    try:
        read(open_source(path, missing="nan"))
    except SourceError as error:
        message = str(error)
    assert message.startswith(f"{path}:")
    assert message.isprintable()


# ---------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("{3 1, 17 0.25, 99 b}\n", id="sparse"),
        pytest.param("{}\n", id="empty", marks=pytest.mark.slow),
        pytest.param(",".join(["0"] * 99) + ",a\n", id="dense", marks=pytest.mark.slow),
    ],
)
def test_memory_is_bounded_and_does_not_grow_with_the_file(tmp_path: Path, line: str) -> None:
    head = "@relation x\n" + "".join(f"@attribute f{k} numeric\n" for k in range(99)) + "@attribute y {a,b}\n@data\n"
    (tmp_path / "warm.arff").write_text(head + line * 10)
    code = """
    import sys
    from sparsestore.sources.registry import open_source
    max_bytes = 4 << 20
    source, warm = open_source(sys.argv[1], label="y"), open_source(sys.argv[2], label="y")
    """
    peaks = []
    for mib in (3, 30):
        (tmp_path / "x.arff").write_text(head + line * ((mib << 20) // len(line)))
        peaks.append(peak_of_reading(code, tmp_path / "x.arff", tmp_path / "warm.arff"))
    assert max(peaks) <= (4 << 20) + (16 << 20)
    assert peaks[1] <= peaks[0] + (4 << 20)
