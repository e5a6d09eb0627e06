"""LDA-C: equal to the same corpus in Matrix Market once its words are put in order; bad files are refused."""

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
from sparsestore.sources.registry import open_source


def opened(folder: Path, text: str, **options: Any) -> Any:
    path = folder / "x.ldac"
    path.write_text(text)
    return open_source(path, **options)


def counted() -> np.ndarray:
    """The corpus itself, its words counted by hand."""
    words = (DATA / "gensim/testcorpus.blei.vocab").read_text().split()
    documents = (DATA / "gensim/testcorpus.txt").read_text().lower().splitlines()
    return np.array([[document.split().count(word) for word in words] for document in documents], np.float32)


def test_equals_the_words_counted() -> None:
    source = open_source(DATA / "gensim/testcorpus.blei")
    check_source(source, counted())
    assert source.columns == {}
    assert source.provenance()["format"] == "lda_c"


def test_becomes_a_store_without_columns(tmp_path: Path) -> None:
    store = ss.convert(DATA / "gensim/testcorpus.blei", tmp_path / "a.zarr", n_features=20)
    assert store.shape == (9, 20)
    assert store.columns == {}


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.integers(0, 60), st.integers(1, 99), max_size=9), min_size=1, max_size=30),
    max_bytes=st.sampled_from([500, 1 << 22]),
)
def test_reads_terms_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[int, int]], max_bytes: int
) -> None:
    text = "".join(f"{len(row)} {' '.join(f'{term}:{n}' for term, n in row.items())}\n" for row in rows)
    source = opened(tmp_path_factory.getbasetemp(), text, n_features=61, sort=True)
    expected = np.zeros((len(rows), 61))
    for i, row in enumerate(rows):
        expected[i, list(row)] = list(row.values())
    found, _ = read(source, max_bytes)
    np.testing.assert_array_equal(found.toarray(), expected)


BAD = {
    "svmlight": ("1 0:1\n1 0:1 3:2\n", {}, "2: the line begins with 1, and 2 terms follow: was it cut short"),
    "cut": ("3 0:1 4:2\n", {}, "1: the line begins with 3, and 2 terms follow"),
    "no_number": ("0:1 4:2\n", {}, "1: the label is not a finite number, found '0:1'"),
    "order": ("2 4:1 0:2\n", {}, "1: indices not ascending, found '0:2' after a higher one: give sort=True"),
    "twice": ("2 4:1 4:2\n", {"sort": True}, "1: index 4 stands twice in the row"),
    "high": ("1 9:1\n", {"n_features": 9}, "1: index too high, expected at most 8"),
    "qid": ("1 qid:3 9:1\n", {}, "1: found 'qid:3' but the first row has no qid"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    text, options, message = BAD[name]
    with pytest.raises(SourceError) as caught:
        read(opened(tmp_path, text, **options))
    assert str(caught.value).startswith(f"{tmp_path / 'x.ldac'}:{message}")
