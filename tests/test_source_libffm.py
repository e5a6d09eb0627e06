"""libffm: equal to a plain parser on real and made files; bad files are refused with their line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import DATA, check_source, read
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsestore as ss
from sparsestore.errors import SourceError
from sparsestore.kernels import tokenise
from sparsestore.sources.registry import open_source

REAL = DATA / "xlearn/small_head.txt"


def opened(folder: Path, text: str, **options: Any) -> Any:
    path = folder / "x.ffm"
    path.write_text(text)
    return open_source(path, **options)


def parsed(text: str, width: int, base: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and labels, as Python reads them."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    x = np.zeros((len(lines), width), np.float32)
    for i, (_, *entries) in enumerate(lines):
        for entry in entries:
            _, index, value = entry.split(":")
            x[i, int(index) - base] = float(value)
    return x, np.array([float(label) for label, *_ in lines], np.float32)


def test_equals_a_plain_parser_on_a_real_file() -> None:
    x, y = parsed(REAL.read_text(), 10_000)
    source = open_source(REAL, format="libffm", n_features=10_000)
    check_source(source, x, {"y": y})
    assert source.provenance()["format"] == "libffm"


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(st.integers(1, 60), st.tuples(st.integers(0, 30), st.integers(-9, 9)), max_size=9),
        min_size=1,
        max_size=30,
    ),
    zero_based=st.booleans(),
    max_bytes=st.sampled_from([500, 1 << 22]),
)
def test_reads_what_a_plain_parser_reads(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[int, tuple[int, int]]],
    zero_based: bool,
    max_bytes: int,
) -> None:
    text = "".join(
        f"{i % 2} {' '.join(f'{field}:{index}:{value}' for index, (field, value) in row.items())}\n"
        for i, row in enumerate(rows)
    )
    source = opened(tmp_path_factory.getbasetemp(), text, n_features=61, zero_based=zero_based)
    x, y = parsed(text, 61, 0 if zero_based else 1)
    found, columns = read(source, max_bytes)
    np.testing.assert_array_equal(found.toarray(), x)
    np.testing.assert_array_equal(columns["y"], y)


@given(text=st.text("01:9 .e-#\nq", max_size=60))
@settings(deadline=None)
def test_the_tokenizer_agrees_with_its_twin(text: str) -> None:
    payload = np.frombuffer((text + "\n").encode(), np.uint8)
    for ascending in (True, False):
        found = tokenise.svmlight(payload, base=0, ascending=ascending, fields=True)
        expected = tokenise.svmlight_numpy(payload, base=0, ascending=ascending, fields=True)
        assert found[:2] == expected[:2]
        if found.status == tokenise.OK:
            for a, b in zip(found[2:], expected[2:], strict=True):
                np.testing.assert_array_equal(a, b)


def test_becomes_a_store(tmp_path: Path) -> None:
    store = ss.convert(REAL, tmp_path / "a.zarr", format="libffm", shuffle=True, seed=0)
    assert set(store.column("y")[:]) == {0, 1}
    assert store.verify() == []


@pytest.mark.parametrize("max_bytes", [500, 1 << 22])
def test_an_index_of_several_fields_is_one_feature(tmp_path: Path, max_bytes: int) -> None:
    """As where features of all fields are hashed together."""
    text = "1 0:3:1 1:3:0.5 2:1:4\n0\n1 0:2:1 1:3:1\n0 5:7:0.1 1:7:0.2 1:0:1 9:7:0.3\n"
    found, columns = read(opened(tmp_path, text, dtype="float64"), max_bytes)
    x = np.zeros((4, 8))
    x[0, [1, 3]], x[2, [2, 3]], x[3, [0, 7]] = [4, 1.5], 1, [1, 0.6]
    np.testing.assert_allclose(found.toarray(), x, rtol=1e-15)
    np.testing.assert_array_equal(columns["y"], [1, 0, 1, 0])


BAD = {
    "svmlight": ("1 5:0.3\n", {}, "1: expected field:index:value with a whole index, found '5:0.3'"),
    "four_parts": ("1 0:1:2:3\n", {}, "1: the value after the colon is not a number that float64 can hold"),
    "no_field": ("1 0:1:2\n1 :1:2\n", {}, "2: expected field:index:value with a whole index, found ':1:2'"),
    "no_index": ("1 0::2\n", {}, "1: expected field:index:value with a whole index, found '0::2'"),
    "value": ("1 0:1:x\n", {}, "1: the value after the colon is not a number"),
    "below": ("1 0:0:1\n", {"zero_based": False}, "1: index 0, expected 1 or more, found '0:0:1'"),
    "sum": ("1 0:1:1\n1 0:3:1e308 1:3:1e308\n", {"dtype": "float64"}, "2: index 3: the sum of its duplicates does not"),
    "high": ("1 0:9:1\n", {"n_features": 9}, "1: index too high, expected at most 8 (n_features=9), found '0:9:1'"),
    "twice": ("1 0:3:1 1:3:1\n", {"sort": False}, "1: an index stands twice in the row, expected once"),
    "order": ("1 0:3:1 1:2:1\n", {"sort": False}, "1: indices not ascending, found '1:2:1' after a higher one"),
    "empty": ("1\n", {}, " none of the 1 rows has an entry, expected label field:index:value ..."),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    text, options, message = BAD[name]
    with pytest.raises(SourceError) as caught:
        read(opened(tmp_path, text, **options))
    assert str(caught.value).startswith(f"{tmp_path / 'x.ffm'}:{message}")


def test_svmlight_tells_of_libffm(tmp_path: Path) -> None:
    (tmp_path / "x.svm").write_text("1 0:5:0.3\n")
    with pytest.raises(SourceError, match="field:index:value is another format: give format='libffm'"):
        read(open_source(tmp_path / "x.svm"))
