"""UCI bag of words: equal to the same corpus in Matrix Market, and every bad file refused with its line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import DATA, check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import sparsestore as ss
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source


def opened(folder: Path, text: str, **options: Any) -> Any:
    path = folder / "x.uci"
    path.write_text(text)
    return open_source(path, **options)


def test_equals_the_same_corpus_in_matrix_market() -> None:
    lines = (DATA / "gensim/testcorpus.mm").read_text().splitlines()
    rows, features, counts = np.loadtxt(lines[2:]).T.astype(int)
    source = open_source(DATA / "gensim/testcorpus.uci")
    check_source(source, sparse.csr_array((counts, (rows - 1, features - 1)), shape=(9, 12)).astype(np.float32))
    assert source.provenance()["format"] == "uci"


@settings(max_examples=30, deadline=None)
@given(data=st.data(), max_bytes=st.sampled_from([500, 1 << 22]))
def test_reads_entries_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, max_bytes: int
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    places = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1))
    entries = data.draw(st.dictionaries(places, st.integers(1, 1000), max_size=50))
    text = f"{shape[0]}\n{shape[1]}   \n{len(entries)}\n" + "".join(
        f"{row + 1} {term + 1} {count}\n" for (row, term), count in entries.items()
    )
    expected = np.zeros(shape)
    for place, count in entries.items():
        expected[place] = count
    found, _ = read(opened(tmp_path_factory.getbasetemp(), text), max_bytes)
    np.testing.assert_array_equal(found.toarray(), expected)


def test_a_compressed_one_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "docword.kos.txt.gz"
    path.write_bytes(gzip.compress((DATA / "gensim/testcorpus.uci").read_bytes()))
    store = ss.convert(path, tmp_path / "a.zarr", format="uci", shuffle=True, seed=0)
    assert store.shape == (9, 12)
    assert store.nnz == 28
    assert int(store[:].sum()) == 29


BAD = {
    "words": ("9\nwords\n3\n", "2: expected the number of terms, found 'words'"),
    "one_line": ("9 12 28\n1 1 1\n", "1: expected the number of documents, found '9 12 28'"),
    "negative": ("9\n12\n-3\n", "3: expected the number of entries, found '-3'"),
    "empty": ("", "1: the file ends before the number of documents"),
    "no_entries": ("9\n12\n", "3: the file ends before the number of entries"),
    "cut": ("9\n12\n3\n1 1 1\n1 2 1     \n", "5: the file ends after 2 of 3 entries that line 3 declares"),
    "cut_much": ("9\n12\n300\n1 1 1\n", "3: declares 300 entries, but the file of 15 bytes can hold 1"),
    "many": ("9\n12\n1\n1 1 1\n1 2 1\n", "5: more entries than the 1 that line 3 declares"),
    "zero": ("9\n12\n1\n0 1 1\n", "4: expected rows 1 to 9 and columns 1 to 12, found '0 1 1'"),
    "high": ("9\n12\n1\n1 13 1\n", "4: expected rows 1 to 9 and columns 1 to 12, found '1 13 1'"),
    "fraction": ("9\n12\n1\n1 1 0.5\n", "4: value 0.5, expected a whole number"),
    "rows": ("99999999999\n12\n1\n1 1 1\n", "1: declares 99999999999 rows for 1 entries"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(SourceError) as caught:
        read(opened(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path / 'x.uci'}:{message}")


def test_memory_is_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, terms = rng.integers(1, 1000, 400_000), rng.integers(1, 5000, 400_000)
    lines = "".join(f"{row} {term} 1\n" for row, term in zip(rows.tolist(), terms.tolist(), strict=True))
    (tmp_path / "large.uci").write_text(f"1000\n5000\n400000\n{lines}")
    (tmp_path / "warm.uci").write_text("1\n1\n1\n1 1 1\n")
    code = """
    import sys
    from sparsestore.sources.registry import open_source
    max_bytes = 4 << 20
    source, warm = open_source(sys.argv[1]), open_source(sys.argv[2])
    """
    assert peak_of_reading(code, tmp_path / "large.uci", tmp_path / "warm.uci") <= (4 << 20) + (16 << 20)
