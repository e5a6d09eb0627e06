"""Blocks that Python gives one after the other become one store, and what does not fit is told by its number."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import sparsestore as ss
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

X = sparse.random_array((300, 20), density=0.2, rng=np.random.default_rng(0), format="csr", dtype=np.float32)
Y = np.arange(300) % 3


def blocks(size: int = 64) -> list[Any]:
    return [(X[at : at + size], Y[at : at + size]) for at in range(0, 300, size)]


@pytest.mark.parametrize("shuffle", [False, True])
def test_whole_numbers_that_the_dtype_of_all_blocks_lacks_are_refused(tmp_path: Path, shuffle: bool) -> None:
    blocks = [np.array([[2**53 + 1, 1]]), np.array([[0.5, 1]])]
    for each in (blocks, blocks[::-1]):
        with pytest.raises(ValueError, match=r"values have 9007199254740993, which float64, the common dtype of all"):
            ss.convert(iter(each), tmp_path / "s.zarr", shuffle=shuffle)
    assert not (tmp_path / "s.zarr").exists()


def test_a_list_of_blocks_is_a_source() -> None:
    source = open_source(blocks())
    assert source.name == "list of blocks in memory"
    assert source.columns == {"y": ("int64", ())}
    check_source(source, X, {"y": Y})


def test_a_generator_is_read_once(tmp_path: Path) -> None:
    store = ss.convert((block for block in blocks()), tmp_path / "a.zarr", shuffle=True, seed=0)
    order = store.column("row_id")[:]
    np.testing.assert_array_equal(store[:].toarray(), X[order].toarray())
    np.testing.assert_array_equal(store.column("y")[:], Y[order])
    source = open_source(block for block in blocks())
    read(source)
    with pytest.raises(ValueError, match="was read already and gives its blocks once: make it anew"):
        read(source)


def test_blocks_of_which_some_have_missing_values_are_shuffled(tmp_path: Path) -> None:
    given = np.ma.array(Y, mask=np.arange(300) == 150)
    parts = [(X[at : at + 64], given[at : at + 64] if at == 128 else Y[at : at + 64]) for at in range(0, 300, 64)]
    store = ss.convert(parts, tmp_path / "a.zarr", shuffle=True, seed=0)
    order, found = store.column("row_id")[:], store.column("y")[:]
    assert order[np.ma.getmaskarray(found)].tolist() == [150]
    np.testing.assert_array_equal(found.filled(-1), given[order].filled(-1))


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=8), max_bytes=st.sampled_from([500, 1 << 20]), dense=st.booleans())
def test_blocks_of_any_length_give_the_same_rows(cuts: list[int], max_bytes: int, dense: bool) -> None:
    edges = [0, *sorted(cuts), 300]
    parts = [X[a:b] for a, b in pairwise(edges)]
    found, _ = read(open_source([part.toarray() if dense else part for part in parts]), max_bytes)
    np.testing.assert_array_equal(found.toarray(), X.toarray())


def test_what_stands_beside_x_is_named_as_in_keras_or_by_a_mapping(tmp_path: Path) -> None:
    weight, text = np.linspace(0, 1, 300), np.array([f"t{i}" for i in range(300)], object)
    store = ss.convert([(X, Y, weight)], tmp_path / "a.zarr")
    np.testing.assert_array_equal(store.column("sample_weight")[:], weight)
    store = ss.convert([(X, {"y": Y, "text": text, "two": np.ones((300, 2))})], tmp_path / "b.zarr")
    assert store.column("text")[299] == "t299"
    assert store.column("two").shape == (300, 2)
    assert ss.convert([X, X[:5]], tmp_path / "c.zarr").shape == (305, 20)
    assert ss.convert([(X, None)], tmp_path / "d.zarr").columns == {}


def test_vectorizers_of_scikit_learn_fill_a_store(tmp_path: Path) -> None:
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.feature_extraction.text import HashingVectorizer

    texts = [["the cat sat", "a dog"], ["on the mat"]]
    vectorizer = HashingVectorizer(n_features=1 << 10)
    store = ss.convert((vectorizer.transform(some) for some in texts), tmp_path / "a.zarr")
    np.testing.assert_array_equal(store[:].toarray(), vectorizer.transform(chain(*texts)).toarray())
    hasher = FeatureHasher(n_features=64)
    rows = [{"dog": 1, "cat": 2}, {"run": 5}]
    store = ss.convert(((hasher.transform(rows), np.array([0, 1])) for _ in range(2)), tmp_path / "b.zarr")
    assert store.shape == (4, 64)


def test_widths_and_dtypes(tmp_path: Path) -> None:
    assert open_source(blocks(), n_features=50).n_features == 50
    store = ss.convert([X[:5].astype(np.int8), X.astype(np.float64)], tmp_path / "a.zarr")
    assert store.dtype == np.float64
    assert ss.convert(blocks(), tmp_path / "b.zarr", dtype="float64").dtype == np.float64


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ([], "list of blocks in memory: gives no block, expected at least one"),
        (iter(()), "gives no block"),
        ([(X, Y[:5])], r"block 0: 'y' has shape \(5,\), expected a value, or k, for each of its 300 rows"),
        ([(X, Y), (X[:, :5], Y)], "block 1 has 5 features, expected 20 as the first"),
        ([(X, Y), X], r"block 1 has columns \[\], expected those of the first, \['y'\]"),
        ([(X, Y, Y, Y)], "block 0 has 4 parts, expected x"),
        (["text"], "block 0: found a str, expected a path, a scipy.sparse matrix"),
        ([X, np.zeros((2, 20), complex)], "block 1: .*values of dtype complex128 can not be stored"),
        ([X, np.zeros(20)], "block 1: .*has 1 dimensions, expected 2"),
    ],
)
def test_what_is_no_block_is_refused(tmp_path: Path, given_: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ss.convert(given_, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_what_the_generator_raises_comes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[Any]:
        yield from blocks()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ss.convert(failing(), tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("data", [{"x": X}, b"bytes", 7, None])
def test_other_things_are_no_iterables_of_blocks(data: Any) -> None:
    with pytest.raises(ValueError, match="expected a path, a scipy"):
        open_source(data)


def test_a_damaged_matrix_is_told_by_its_block() -> None:
    bad = X.copy()
    bad.indices[3] = 99
    with pytest.raises(SourceError, match=r"block 1: .*row 0 has feature number 99"):
        read(open_source([X, bad]))


def test_memory_is_that_of_a_block() -> None:
    code = """
    import numpy as np
    from scipy import sparse
    from sparsestore.sources.registry import open_source
    max_bytes = 1 << 20
    def blocks(n):
        for seed in range(n):
            x = sparse.random_array((2000, 500), density=0.1, rng=np.random.default_rng(seed), format="csr")
            yield x, np.arange(2000)
    source, warm = open_source(blocks(100)), open_source(blocks(2))
    """
    assert peak_of_reading(code) < 24 << 20  # a block has 1.2 MB, and all of them 120 MB
