"""Rows against scipy: every format in, slices, takes and concatenations out, and nothing corrupt let through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsestore import csr
from sparsestore.csr import Rows

Array = NDArray[Any]
FORMATS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]


def a_dense(n: int, m: int, dtype: str = "float64", seed: int = 0) -> Array:
    """Two thirds zeros, some empty rows."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 100, (n, m)) * (rng.random((n, m)) < 0.3)
    dense[rng.random(n) < 0.3] = 0
    return dense.astype(dtype)


@st.composite
def matrices(draw: st.DrawFn) -> sp.csr_array:
    n, m = draw(st.integers(0, 8)), draw(st.integers(1, 8))
    return sp.csr_array(
        a_dense(n, m, draw(st.sampled_from(["int8", "float32", "float64", "bool"])), draw(st.integers(0, 99)))
    )


def same(rows: Rows, x: Any) -> None:
    x = sp.csr_array(x)
    x.sum_duplicates()
    assert rows.shape == x.shape
    assert rows.data.dtype == x.dtype
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(x, name), err_msg=name)
    csr.check(rows, canonical=True)


# ---------------------------------------------------------------------------------------------------- in and out


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
def test_every_scipy_format_is_taken(form: str, kind: str, dtype: str) -> None:
    dense = a_dense(12, 8, dtype)
    x = getattr(sp, f"{form}_{kind}")(dense)
    before = x.copy()
    same(csr.from_scipy(x), x.tocsr())
    np.testing.assert_array_equal(x.toarray(), before.toarray())


@pytest.mark.parametrize("form", FORMATS)
def test_a_matrix_without_entries_is_taken(form: str) -> None:
    rows = csr.from_scipy(getattr(sp, f"{form}_array")((3, 4), dtype=np.float32))
    assert (rows.shape, rows.nnz, rows.data.dtype) == ((3, 4), 0, np.float32)


def test_explicit_zeros_are_kept() -> None:
    x = sp.csr_array((np.array([0.0, 2.0]), np.array([1, 3]), np.array([0, 2])), shape=(1, 4))
    assert csr.from_scipy(x).data.tolist() == [0.0, 2.0]


def test_unsorted_columns_are_sorted_and_duplicates_summed_in_a_copy() -> None:
    indices, data = np.array([3, 1, 3, 2]), np.array([1.0, 2.0, 4.0, 8.0])
    x = sp.csr_array((data.copy(), indices.copy(), np.array([0, 3, 4])), shape=(2, 5))
    rows = csr.from_scipy(x)
    assert rows.indices.tolist() == [1, 3, 2]
    assert rows.data.tolist() == [2.0, 5.0, 8.0]
    assert x.indices.tolist() == indices.tolist()
    assert x.data.tolist() == data.tolist()


def test_wide_matrices_have_wide_indices() -> None:
    x = sp.csr_array((np.ones(1), np.array([2**40]), np.array([0, 1])), shape=(1, 2**41))
    assert csr.from_scipy(x).indices.dtype == np.int64
    x = sp.csr_array((np.ones(1), np.array([5], np.int64), np.array([0, 1], np.int64)), shape=(1, 9))
    assert csr.from_scipy(x).indices.dtype == np.int32


def test_the_other_byte_order_is_turned() -> None:
    dense = a_dense(5, 4)
    x = sp.csr_array(dense)
    x.data = x.data.astype(">f8")
    for rows in (csr.from_scipy(x), csr.from_dense(dense.astype(">f8"))):
        assert rows.data.dtype.isnative
        np.testing.assert_array_equal(rows.take(np.arange(5)).to_dense(), dense)


@pytest.mark.parametrize("dtype", ["complex128", "longdouble"])
def test_values_that_can_not_be_stored_are_refused(dtype: str) -> None:
    message = "can not be stored: expected bool, integers or real floats of up to 64 bits"
    with pytest.raises(ValueError, match=message):
        csr.from_scipy(sp.csr_array(np.eye(2, dtype=dtype)))
    with pytest.raises(ValueError, match=message):
        csr.from_dense(np.eye(2, dtype=dtype))


@pytest.mark.parametrize("x", [np.ones(3), np.ones((2, 2, 2)), np.array(["a"])], ids=["1-D", "3-D", "text"])
def test_what_is_no_matrix_is_refused(x: Array) -> None:
    with pytest.raises(ValueError, match="must have 2 dimensions"):
        csr.from_dense(x)


@given(
    st.integers(0, 6),
    st.integers(0, 6),
    st.sampled_from(["bool", "uint8", "int64", "float16", "float32"]),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_from_dense_is_to_dense_backwards(n: int, m: int, dtype: str, seed: int) -> None:
    dense = a_dense(n, m, dtype, seed)
    rows = csr.from_dense(dense)
    csr.check(rows, canonical=True)
    found = rows.to_dense()
    assert found.dtype == dense.dtype
    np.testing.assert_array_equal(found, dense)


def test_nan_is_an_entry_of_a_dense_matrix() -> None:
    assert np.isnan(csr.from_dense(np.array([[0.0, np.nan]])).data).all()


def test_to_dense_fills_what_it_is_given() -> None:
    rows = csr.from_dense(a_dense(4, 5))
    out = np.zeros((4, 5), np.float32)
    assert rows.to_dense(out=out) is out
    np.testing.assert_array_equal(out, a_dense(4, 5))
    with pytest.raises(ValueError, match=r"out has shape \(4, 6\), expected \(4, 5\)"):
        rows.to_dense(out=np.zeros((4, 6)))


# -------------------------------------------------------------------------------------- slice, take, concatenate


@given(matrices(), st.data())
@settings(max_examples=60, deadline=None)
def test_slices_takes_and_concatenations_are_those_of_scipy(x: sp.csr_array, data: st.DataObject) -> None:
    rows, n = csr.from_scipy(x), x.shape[0]
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    same(rows.slice(start, stop), x[start:stop])
    picked = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=10)) if n else [], np.int64)
    same(rows.take(picked), x[picked])
    joined = csr.concatenate([rows.slice(start, stop), rows, rows.take(picked)])
    same(joined, sp.vstack([x[start:stop], x, x[picked]]).tocsr())
    np.testing.assert_array_equal(rows.to_dense(), x.toarray())
    same(csr.from_scipy(rows.to_scipy()), x)


def test_a_slice_copies_nothing() -> None:
    rows = csr.from_dense(a_dense(9, 9))
    assert np.shares_memory(rows.slice(1, 5).indices, rows.indices)


def test_half_floats_are_taken() -> None:
    rows = csr.from_dense(np.array([[0, 1.5], [2.5, 0]], np.float16))
    assert rows.take(np.array([1, 0])).data.tolist() == [2.5, 1.5]


def test_concatenate_wants_equal_widths() -> None:
    with pytest.raises(ValueError, match=r"different numbers of features: \[3, 4\]"):
        csr.concatenate([csr.from_dense(np.eye(3)), csr.from_dense(np.eye(4))])
    with pytest.raises(ValueError, match="at least one part"):
        csr.concatenate([])


@pytest.mark.parametrize("n", [1, 3, 1000])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64"])
def test_arrays_for_tensorflow_start_at_a_multiple_of_64_bytes(n: int, dtype: str) -> None:
    made = csr.empty_aligned(n, dtype)
    assert made.shape == (n,)
    assert made.dtype == dtype
    assert made.ctypes.data % 64 == 0


# ---------------------------------------------------------------------------------------------------------- check


def corrupted(**changes: Any) -> Rows:
    fields: dict[str, Any] = {
        "indptr": np.array([0, 2, 2, 5], np.int64),
        "indices": np.array([1, 3, 0, 2, 4], np.int32),
        "data": np.arange(5.0),
        "n_features": 5,
    }
    return Rows(**{**fields, **changes})


CORRUPTIONS = {
    "index past the width": (
        {"indices": np.array([1, 3, 0, 2, 5], np.int32)},
        "row 2 has feature number 5, expected 0 to 4",
    ),
    "index 2**31 - 1": ({"indices": np.array([1, 3, 0, 2, 2**31 - 1], np.int32)}, "feature number 2147483647"),
    "index -2**31": ({"indices": np.array([-(2**31), 3, 0, 2, 4], np.int32)}, "row 0 has feature number -2147483648"),
    "index -3": ({"indices": np.array([1, 3, -3, 2, 4], np.int32)}, "row 2 has feature number -3"),
    "index -3 in 64 bits": ({"indices": np.array([1, 3, -3, 2, 4], np.int64)}, "row 2 has feature number -3"),
    "indptr decreasing": ({"indptr": np.array([0, 3, 2, 5])}, "indptr decreases at row 1: 3 to 2"),
    "indptr 2**31 - 1": ({"indptr": np.array([0, 2**31 - 1, 2, 5])}, "indptr decreases at row 1"),
    "indptr -5": ({"indptr": np.array([0, -5, 2, 5])}, "indptr decreases at row 0: 0 to -5"),
    "indptr start": ({"indptr": np.array([1, 2, 2, 5])}, r"indptr must start at 0, found \[1\]"),
    "indptr empty": ({"indptr": np.array([], np.int64)}, r"indptr must start at 0, found \[\]"),
    "indptr end": ({"indptr": np.array([0, 2, 2, 1005])}, "indptr ends at 1005, expected the number of entries, 5"),
    "short data": ({"data": np.arange(4.0)}, "indices has 5 entries and data has 4"),
    "long data": ({"data": np.arange(6.0)}, "indices has 5 entries and data has 6"),
    "no features": ({"n_features": 0}, "feature number 1, expected 0 to -1"),
}


def test_a_sound_matrix_passes() -> None:
    csr.check(corrupted(), canonical=True)


@pytest.mark.parametrize(("changes", "message"), CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_corruption_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        csr.check(corrupted(**changes))


@pytest.mark.parametrize("indices", [[3, 1, 0, 2, 4], [1, 3, 0, 0, 4], [1, 3, 0, 4, 2]])
def test_rows_that_do_not_ascend_are_told_when_canonical_ones_are_due(indices: list[int]) -> None:
    rows = corrupted(indices=np.array(indices, np.int32))
    csr.check(rows)
    with pytest.raises(ValueError, match=r"row \d: feature number \d follows \d, expected strictly ascending"):
        csr.check(rows, canonical=True)


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=6))
@settings(deadline=None)
def test_the_canonical_check_sees_every_row_and_no_border(rows: list[list[int]]) -> None:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    indices = np.array([index for row in rows for index in row], np.int32)
    made = Rows(indptr, indices, np.ones(len(indices)), 6)
    bad = next((i for i, row in enumerate(rows) if sorted(set(row)) != row), None)
    if bad is None:
        csr.check(made, canonical=True)
    else:
        with pytest.raises(ValueError, match=f"^row {bad}: "):
            csr.check(made, canonical=True)


def scipy_corrupted(name: str) -> sp.csr_array:
    """As the table of scipy#8778: arrays replaced behind the constructor's back."""
    x = sp.csr_array((np.ones(5), np.array([1, 3, 0, 2, 4], np.int32), np.array([0, 2, 2, 5], np.int32)), shape=(3, 5))
    for field, value in CORRUPTIONS[name][0].items():
        if field != "n_features":
            setattr(x, field, value)
    return x


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "no features"])
def test_a_corrupt_scipy_matrix_never_reaches_compiled_code(name: str) -> None:
    with pytest.raises(ValueError, match=r"indptr|feature number|entries"):
        csr.from_scipy(scipy_corrupted(name))


def test_a_scipy_matrix_with_too_few_offsets_is_refused() -> None:
    x = scipy_corrupted("short data")
    x.data = np.ones(5)
    x.indptr = np.array([0, 5], np.int32)
    with pytest.raises(ValueError, match="indptr has 2 elements, expected 4, one more than rows"):
        csr.from_scipy(x)


@pytest.mark.parametrize("features", [[3, 7], [9, 0, 9, 5], [], list(range(9, -1, -1))], ids=str)
def test_features_of_a_matrix_of_any_width_are_taken_alike(features: list[int]) -> None:
    dense = a_dense(30, 10)
    narrow = csr.from_dense(dense)
    spread = 2**36  # scipy's own loop would hold 8 bytes for each of 2**40 features
    wide = Rows(narrow.indptr, narrow.indices.astype(np.int64) * spread, narrow.data, 2**40)
    chosen = np.array(features, np.int64)
    for taken in (narrow.take_features(chosen), wide.take_features(chosen * spread)):
        csr.check(taken, canonical=True)
        np.testing.assert_array_equal(taken.to_dense(), dense[:, features])
        assert taken.indices.dtype == np.int32
