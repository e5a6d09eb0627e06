"""Vowpal Wabbit's text: equal to a reader of one page of Python, every corner decided, bad lines refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import DATA, check_source, peak_of_reading, read
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

import sparsestore as ss
from sparsestore.cli import app
from sparsestore.errors import SourceError
from sparsestore.kernels import naming, vw
from sparsestore.sources.registry import open_source


def opened(folder: Path, text: str, **options: Any) -> Any:
    path = folder / "x.vw"
    path.write_bytes(text.encode())
    return open_source(path, **options)


@pytest.mark.parametrize("name", ["0001_head", "rcv1_head"])
def test_a_real_file_equals_what_plain_python_reads(name: str) -> None:
    path = DATA / f"vw/{name}.dat"
    names, labels, places = dict[str, int](), list[float](), list[tuple[int, int, float]]()
    for row, line in enumerate(path.read_text().splitlines()):
        head, _, rest = line.partition("|")
        space, *tokens = rest.split()
        labels.append(float(head))
        for token in tokens:
            feature, _, value = token.partition(":")
            places.append((row, names.setdefault(f"{space}^{feature}", len(names)), float(value or 1)))
    wanted = np.zeros((len(labels), len(names)))
    for row, number, value in places:
        wanted[row, number] += value
    source = open_source(path, format="vw", dtype="float64")
    found, columns = read(source)
    np.testing.assert_array_equal(found.toarray(), wanted)
    np.testing.assert_array_equal(columns["y"], labels)
    assert source.feature_names == list(names)
    if name == "0001_head":
        with pytest.raises(SourceError, match=r"1: the name of a feature is no number, .* found 'const:\.01'"):
            read(open_source(path, format="vw", encode="number"))


def test_names_that_are_numbers_may_be_the_features(tmp_path: Path) -> None:
    source = opened(tmp_path, "1 |a 4:0.5 1 |b 0\n0 |a 4 4:2\n", encode="number", n_features=7)
    check_source(
        source, np.array([[1, 1, 0, 0, 0.5, 0, 0], [0, 0, 0, 0, 3, 0, 0]], np.float32), {"y": np.array([1, 0])}
    )
    assert source.feature_names is None


def test_names_are_counted_as_they_come(tmp_path: Path) -> None:
    text = "1 |u age:2 m| bias |i red:0.5 age\n-1 |i blue red |u m\n| bias\n"
    store = ss.convert(opened(tmp_path, text), tmp_path / "a.zarr")
    assert store.feature_names is not None
    assert store.feature_names.tolist() == ["u^age", "u^m", "bias", "i^red", "i^age", "i^blue"]
    assert store[:].toarray().tolist() == [[2, 1, 1, 0.5, 1, 0], [0, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(store.column("y")[:], np.array([1, -1, np.nan], np.float32))


def test_importance_tags_and_weights_of_namespaces(tmp_path: Path) -> None:
    text = "1 2.5 'first|a:2 x:3 y\r\n\n0 second|a x:1e-1 x:0.2\n  |a:-1 y \n1 'no_space |a x"
    source = opened(tmp_path, text, importance=True, tag=True, dtype="float64")
    found, columns = read(source)
    np.testing.assert_array_equal(found.toarray(), [[6, 2], [0.1 + 0.2, 0], [0, -1], [1, 0]])
    assert columns["sample_weight"].tolist() == [2.5, 1, 1, 1]
    assert columns["tag"].tolist() == ["first", "second", "", "no_space"]
    np.testing.assert_array_equal(columns["y"], [1, 0, np.nan, 1])


def test_hashed_names_are_those_of_scikit_learn(tmp_path: Path) -> None:
    extraction = pytest.importorskip("sklearn.feature_extraction")
    rng = np.random.default_rng(0)
    rows = [[(f"{'ab'[k % 2]}", f"w{k}") for k in rng.integers(0, 30, 9).tolist()] for _ in range(50)]
    text = "".join("1 " + " ".join(f"|{space} {name}:2" for space, name in row) + "\n" for row in rows)
    found, _ = read(opened(tmp_path, text, encode="hash", n_features=32))
    bags = [[(f"{space}^{name}", 2.0) for space, name in row] for row in rows]
    wanted = extraction.FeatureHasher(32, input_type="pair").transform(bags)
    np.testing.assert_array_equal(found.toarray(), wanted.toarray())


def test_an_appended_file_keeps_the_numbers_of_known_features(tmp_path: Path) -> None:
    ss.convert(opened(tmp_path, "1 |a x |b y\n0 | z\n"), tmp_path / "a.zarr")
    (tmp_path / "2.vw").write_text("1 | z |c new |b y:3\n")
    done = CliRunner().invoke(app, ["append", str(tmp_path / "2.vw"), str(tmp_path / "a.zarr"), "--grow-features"])
    assert done.exit_code == 0, done.output
    with ss.open(tmp_path / "a.zarr") as store:
        assert store.feature_names is not None
        assert store.feature_names.tolist() == ["a^x", "b^y", "z", "c^new"]
        assert store[:].toarray().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 3, 1, 1]]
        names = store.feature_names[:3]
    known = ss.convert(tmp_path / "2.vw", tmp_path / "b.zarr", unknown="ignore", feature_names=names)
    assert known[:].toarray().tolist() == [[0, 3, 1]]
    (tmp_path / "3.vw").write_text("1 | z\n0 | z |b \x1b[31mnew\n")
    with pytest.raises(SourceError, match=r"3\.vw:2: .* is none of the features .*, found '\\x1b\[31mnew'$"):
        ss.convert(tmp_path / "3.vw", tmp_path / "c.zarr", unknown="error", feature_names=names)


PIECES = st.sampled_from(["|", " ", "\t", "\n", "\r\n", ":", "'", "1", "-2.5", "1e3", "a", "b^", "ä", "nan", "x1", "+"])


@settings(max_examples=300, deadline=None)
@given(text=st.lists(PIECES, max_size=40).map("".join))
@example(text="1 1 1|a")
@example(text="|a :3")
def test_the_loop_equals_its_twin(text: str) -> None:
    payload = np.frombuffer((text + "\n").encode(), np.uint8)
    found, twin = vw.examples(payload), vw.examples_numpy(payload)
    assert (found.status, found.offset if found.status else 0) == (twin.status, twin.offset if twin.status else 0)
    if found.status == vw.OK:
        for left, right in zip(found[2:], twin[2:], strict=True):
            np.testing.assert_array_equal(left, right)


@settings(deadline=None)
@given(texts=st.lists(st.text("0123456789x", max_size=20), max_size=20))
def test_whole_numbers_equal_their_twin(texts: list[str]) -> None:
    stops = np.cumsum([0, *map(len, texts)])
    text: NDArray[np.uint8] = np.frombuffer(("".join(texts) + "\n").encode(), np.uint8)
    found = [np.empty(len(texts), np.int64) for _ in range(2)]
    naming.decimals(text, stops[:-1], stops[1:], found[0])
    naming.decimals_numpy(text, stops[:-1], stops[1:], found[1])
    np.testing.assert_array_equal(*found)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "label": ("1 |a x\nyes |a x\n", {}, "2: expected a finite number that float64 can hold, found 'yes'"),
    "value": ("1 |a x:y\n", {}, "1: expected a finite number that float64 can hold, found 'y'"),
    "no_value": ("1 |a x: y\n", {}, "1: expected a finite number that float64 can hold, found"),
    "sum": ("1 |a y\n1 |a x:3e38 x:3e38\n", {}, "2: feature 1: the sum of its duplicates does not fit float32: give a"),
    "costs": ("1:0.5 2:1 |a x\n", {}, "1: expected a finite number that float64 can hold, found '1:0.5'"),
    "base": ("1 1 0.5 |a x\n", {}, "1: a third number, or more, before the first |"),
    "two_tags": ("1 'a |x y\n1 'my tag|a x\n", {}, "2: a second tag, expected one at most"),
    "two_quoted": ("1 'a 'b |x y\n", {"tag": True}, "1: a second tag, expected one at most"),
    "importance": ("1 |a x\n1 2 |a x\n", {}, "2: importance 2: give importance=True (--importance) to keep it"),
    "nameless": ("1 |a :3\n", {}, "1: a feature without a name, found ':3'"),
    "huge": ("1 |a x:1e39\n", {}, "1: value 1e+39 is beyond float32"),
    "large_label": ("16777217 |a x\n", {}, "1: label 16777217 is a whole number that float32 lacks"),
    "hat": ("1 |a^b x\n", {}, "1: the name of the namespace has a ^, which parts the two, found 'a^b'"),
    "plain_hat": ("1 | a^b\n", {}, "1: the name of the feature has a ^, which parts it from a namespace"),
    "long": (f"1 |a {'x' * 900}\n", {}, "1: the name of the feature has 900 bytes, expected at most 799"),
    "name": ("1 |a 3 x\n", {"encode": "number"}, "1: the name of a feature is no number, expected 0 or more: for na"),
    "high": (
        "1 |a 3\n",
        {"encode": "number", "n_features": 3},
        "1: the name of a feature is no number, expected 0 to 2",
    ),
    "base_1": (
        "1 |a 0\n",
        {"encode": "number", "zero_based": False},
        "1: the name of a feature is no number, expected 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_refused(tmp_path: Path, name: str) -> None:
    text, options, message = BAD[name]
    with pytest.raises(SourceError) as caught:
        read(opened(tmp_path, text, **options))
    assert str(caught.value).startswith(f"{tmp_path / 'x.vw'}:{message}")


@pytest.mark.parametrize("payload", [b"1 |a \xff\n", b"1 |\xff x\n", b"1 \xff|a x\n"], ids=["feature", "space", "tag"])
def test_what_is_no_text_is_refused(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "x.vw").write_bytes(payload)
    with pytest.raises(SourceError, match=r"x\.vw:1: the .*is no UTF-8 text"):
        read(open_source(tmp_path / "x.vw", tag=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encode": "vw"}, "encode='vw', expected one of dictionary, hash, number"),
        ({"n_features": 3}, "n_features=3 is for encode='hash' and 'number'"),
        ({"zero_based": False}, "zero_based is for encode='number'"),
        ({"encode": "number", "unknown": "ignore"}, "unknown='ignore' is for encode='dictionary'"),
        ({"encode": "hash"}, "encode='hash' needs n_features"),
    ],
    ids=["encode", "width", "base", "unknown", "hash"],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        opened(tmp_path, "1 |a x\n", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("n", [40_000, pytest.param(400_000, marks=pytest.mark.slow)])
def test_memory_is_bounded(tmp_path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{k}" for k in range(1000)]
    with (tmp_path / "large.vw").open("w") as file:
        for row in rng.integers(0, 1000, (n // 100, 10)).tolist():
            file.write("".join(f"1 |a {' '.join(words[k] for k in row)}:0.5 |b c:2\n" for _ in range(100)))
    (tmp_path / "warm.vw").write_text("1 |a x:0.5\n")
    code = """
    import sys
    from sparsestore.sources.registry import open_source
    max_bytes = 4 << 20
    source, warm = open_source(sys.argv[1]), open_source(sys.argv[2])
    """
    assert peak_of_reading(code, tmp_path / "large.vw", tmp_path / "warm.vw") <= (4 << 20) + (16 << 20)
