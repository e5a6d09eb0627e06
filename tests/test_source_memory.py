"""Matrices in memory: every layout of scipy, and dense ones, in bounded memory."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from check_source import check_in_order, check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from sparsestore import csr
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

LAYOUTS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]


def as_layout(x: sparse.coo_array, layout: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sparse.SparseEfficiencyWarning)  # a DIA matrix of many diagonals, on purpose
        return x.asformat(layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [sparse.coo_array, sparse.coo_matrix])
@pytest.mark.parametrize("density", [0.0005, 0.3], ids=["mostly_empty_rows", "full_rows"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "bool"])
def test_every_layout_of_scipy(layout, kind, density, dtype):
    x = sparse.random_array((600, 40), density=density, rng=np.random.default_rng(0), format="coo")
    x.data = x.data * 100 + 1
    matrix = as_layout(kind(x.astype(dtype)), layout)
    source = open_source(matrix)
    assert source.name == f"scipy {layout}_{'array' if kind is sparse.coo_array else 'matrix'} in memory"
    assert source.dtype == dtype
    check_source(source, x.astype(dtype))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(LAYOUTS), st.sampled_from([1, 300, 3000, 1 << 20]))
def test_unsorted_entries_and_duplicates(seed, layout, max_bytes):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 80)), int(rng.integers(1, 20)))
    n = int(rng.integers(0, 100))
    entries = rng.integers(1, 5, n), (rng.integers(0, shape[0], n), rng.integers(0, shape[1], n))
    coo = sparse.coo_array(entries, shape=shape)
    x = as_layout(coo, layout)
    if layout == "csr":  # keeps duplicates and disorder, unlike scipy's conversion
        order = np.argsort(entries[1][0], kind="stable")
        indptr = np.searchsorted(entries[1][0][order], np.arange(shape[0] + 1))
        x = sparse.csr_array((entries[0][order], entries[1][1][order], indptr), shape=shape)
    before = [array.copy() for array in (x.indptr, x.indices, x.data)] if layout == "csr" else []
    found, _ = read(open_source(x), max_bytes)
    np.testing.assert_array_equal(found.toarray(), coo.toarray())
    check_in_order(open_source(x), coo)
    for old, new in zip(before, (x.indptr, x.indices, x.data) if before else (), strict=True):
        np.testing.assert_array_equal(old, new)  # the caller's matrix is left as it was


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "bsr"])
@pytest.mark.parametrize(
    "value", [np.uint8(200), np.int64(2**62), np.float32(3e38), np.float64(1e308)], ids=lambda value: value.dtype.name
)
def test_a_sum_of_duplicates_that_does_not_fit_is_an_error(layout, value):
    """Integers do not wrap around, and nothing becomes inf."""
    rows, columns = np.array([7, 2, 5, 5, 2, 2, 0, 1]), np.array([1, 2, 1, 1, 1, 0, 0, 0])
    data = np.array([1, 2, value, value, 3, 4, 5, 6], value.dtype)
    x = sparse.coo_array((data, (rows, columns)), shape=(8, 3))
    if layout == "csc":
        by_column = np.argsort(columns, kind="stable")
        x = sparse.csc_array((data[by_column], rows[by_column], [0, 3, 7, 8]), shape=x.shape)
    elif layout in ("csr", "bsr"):
        by_row, indptr = np.argsort(rows, kind="stable"), np.array([0, 1, 2, 5, 5, 5, 7, 7, 8])
        kind, values = (sparse.csr_array, data) if layout == "csr" else (sparse.bsr_array, data.reshape(-1, 1, 1))
        x = kind((values[by_row], columns[by_row], indptr), shape=x.shape)
    wrong = f"row 5, feature 1: the sum of its duplicates does not fit {value.dtype}: give a wider dtype="
    with pytest.raises(SourceError, match=wrong):
        read(open_source(x))
    with pytest.raises(ValueError, match=wrong):
        csr.from_scipy(x)


def test_a_row_in_memory_may_have_more_entries_than_features():
    rng = np.random.default_rng(0)
    rows, columns = np.sort(rng.integers(0, 2, 200_000))[::-1], rng.integers(0, 3, 200_000)
    x = sparse.coo_array((np.ones(200_000, np.int32), (rows, columns)), shape=(2, 3))
    found, _ = read(open_source(x), 1 << 16)
    np.testing.assert_array_equal(found.toarray(), [np.bincount(columns[rows == row]) for row in (0, 1)])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool", ">f4"])
def test_dense(order, dtype):
    x = np.where(np.random.default_rng(0).random((500, 30)) < 0.2, 3, 0).astype(dtype).copy(order)
    source = open_source(x)
    assert source.dtype == np.dtype(dtype).newbyteorder("=")
    check_source(source, x.astype(np.float32))


def test_nan_is_an_entry_of_a_dense_matrix():
    check_source(open_source(np.array([[np.nan, 0], [0, 1]])), np.array([[np.nan, 0], [0, 1]]))


def test_rows_are_taken_too():
    rows = csr.from_dense(np.eye(3))
    check_source(open_source(rows), np.eye(3))


def taken(matrix) -> bool:
    """Whether its rows are taken in any order."""
    source = open_source(matrix)
    check_source(source, matrix)
    return source.in_order(np.arange(source.n_rows), 1 << 20) is not None


def test_rows_in_memory_are_taken_in_any_order(tmp_path):
    x = sparse.random_array((600, 40), density=0.3, rng=np.random.default_rng(0), format="csr")
    shuffled = x.tocoo()
    order = np.random.default_rng(1).permutation(x.nnz)
    shuffled = sparse.coo_array((shuffled.data[order], (shuffled.row[order], shuffled.col[order])), shape=x.shape)
    ones = x.astype(bool)
    ones.data[:] = True
    for matrix in (x, ones, x.tocsc(), x.tolil(), shuffled, x.toarray(), x.toarray(order="F")):
        assert taken(matrix)
    pickled = pickle.loads(pickle.dumps(x, protocol=5))
    assert taken(pickled)
    counts = CountVectorizer().fit_transform(["some words", "and some more", "words"])
    assert taken(counts)
    # a row costs more where all of it must be found, or read from the disk
    assert not taken(x.tobsr((2, 2)))
    assert not taken(x.tocoo())
    for name, array in {"data": x.data, "dense": x.toarray()}.items():
        np.save(tmp_path / name, array)
    assert not taken(np.load(tmp_path / "dense.npy", mmap_mode="r"))
    assert not taken(np.load(tmp_path / "dense.npy", mmap_mode="r")[3:].view(np.ndarray))
    data = np.load(tmp_path / "data.npy", mmap_mode="r")
    assert not taken(sparse.csr_array((data, x.indices, x.indptr), shape=x.shape))
    # and what compiled loops do not read goes the other way
    twice = np.repeat(x.data, 2)[::2]
    assert not taken(sparse.csr_array((twice, x.indices, x.indptr), shape=x.shape))


def test_explicit_zeros_stay_entries_but_fill_of_blocks_does_not():
    x = sparse.csr_array((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert read(open_source(x))[0].nnz == 2
    assert read(open_source(x.tobsr((1, 2))))[0].nnz == 1


def test_values_and_width_can_be_changed():
    x = sparse.csr_array(np.eye(3))
    check_source(open_source(x, dtype="float32", n_features=5), np.eye(3, 5, dtype=np.float32))


def test_no_rows_and_no_features():
    check_source(open_source(sparse.csr_array((0, 3))), np.zeros((0, 3)))
    check_source(open_source(sparse.coo_array((3, 0))), np.zeros((3, 0)))
    check_source(open_source(np.zeros((3, 0))), np.zeros((3, 0)))


def broken(**arrays):
    x = sparse.csr_array(np.eye(4))
    for name, value in arrays.items():
        setattr(x, name, np.array(value, getattr(x, name).dtype))
    return x


def coo_with_row(row: int) -> sparse.coo_array:
    x = sparse.coo_array(np.eye(4))
    x.row[-1] = row
    return x


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (broken(indices=[0, 1, 2, 9]), r"in rows 0 to 4: row 3 has feature number 9, expected 0 to 3"),
        (broken(indices=[0, -1, 2, 3]), r"in rows 0 to 4: "),
        (broken(indptr=[0, 2, 1, 3, 4]), r"indptr falls at row 1: 2 to 1"),
        (broken(indptr=[1, 1, 2, 3, 4]), r"indptr starts at 1, expected 0"),
        (broken(indptr=[0, 1, 2, 3, 9]), r"indptr goes up to 9, but there are 4 entries"),
        (coo_with_row(7), r"row numbers from 0 to 7, expected 0 to 3"),
    ],
    ids=["index", "negative_index", "indptr_falls", "indptr_start", "indptr_end", "coo_row"],
)
def test_a_broken_matrix_is_refused(matrix, message):
    with pytest.raises(SourceError, match=f"^scipy .* in memory: {message}"):
        read(open_source(matrix))
    with pytest.raises(SourceError, match=f"^scipy .* in memory: {message}"):  # of rows as they stand in the matrix
        list(open_source(matrix).in_order(np.array([2, 3, 0, 1]), 1 << 20) or [])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (np.zeros(3), ValueError, "numpy ndarray in memory: has 1 dimensions, expected 2: reshape it"),
        (np.zeros((2, 2), complex), ValueError, "values of dtype complex128 can not be stored"),
        (np.zeros((2, 2), object), ValueError, "values of dtype object can not be stored"),
        (np.ma.masked_array(np.zeros((2, 2))), ValueError, "its mask can not be stored"),
        ([[1, 2]], ValueError, "block 0: found a list, expected a path, a scipy.sparse matrix, a 2-D numpy array"),
    ],
    ids=["one_dimension", "complex", "object", "masked", "list"],
)
def test_what_is_no_matrix_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        open_source(data)


def test_values_never_lose_their_fractions():
    with pytest.raises(ValueError, match="values of dtype float64 can not become int32: convert them first"):
        open_source(np.eye(2), dtype="int32")
    with pytest.raises(ValueError, match="has 2 features, expected at most n_features=1"):
        open_source(np.eye(2), n_features=1)


MAKE = """
import numpy as np, sys
from scipy import sparse
from sparsestore.sources.registry import open_source
rng = np.random.default_rng(0)
max_bytes = 32 << 20
warm = open_source(sparse.coo_array(([1, 2], ([3, 1], [0, 0])), shape=(9, 9)).asformat({warm!r}))
n_rows, nnz = {n_rows}, {nnz}
x = sparse.coo_array(
    (np.ones(nnz, np.float32), (rng.integers(0, n_rows, nnz, np.int32), rng.integers(0, 100, nnz, np.int32))),
    shape=(n_rows, 100),
)
source = open_source(x.asformat({layout!r}))
del x
"""


@pytest.mark.parametrize(
    ("layout", "n_rows", "nnz", "bound"),
    [
        ("coo", 100_000_000, 1_000_000, 28_000_000),
        ("coo", 1_000_000, 4_000_000, 24 * 4_000_000 + 8_000_000),
        ("csr", 1_000_000, 8_000_000, 0),
        ("csc", 50_000_000, 1_000_000, 28_000_000),
        ("csc", 1_000_000, 4_000_000, 24 * 4_000_000 + 8_000_000),
        ("bsr", 1_000_000, 4_000_000, 0),
    ],
    ids=["coo_mostly_empty", "coo", "csr", "csc_mostly_empty", "csc", "bsr"],
)
def test_memory_stays_within_the_bound(layout, n_rows, nnz, bound):
    peak = peak_of_reading(MAKE.format(layout=layout, n_rows=n_rows, nnz=nnz, warm=layout))
    assert peak <= (32 << 20) + bound + (8 << 20)


TAKE = """
class Taken:
    def __init__(self, source):
        self.source, self.order = source, np.random.default_rng(0).permutation(source.n_rows)

    def blocks(self, max_bytes):
        return self.source.in_order(self.order, max_bytes)

warm, source = Taken(warm), Taken(source)
"""


def test_memory_of_rows_in_another_order_stays_within_the_bound():
    peak = peak_of_reading(MAKE.format(layout="csr", n_rows=1_000_000, nnz=8_000_000, warm="csr") + TAKE)
    assert peak <= (32 << 20) + 8_000_000 + (8 << 20)
