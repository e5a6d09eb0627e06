"""What is appended comes back exactly, what fails leaves nothing behind, and of several writers none loses rows."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trust.interrupts import interrupted, places_of_a_second

from sparsestore import layout, maintain, manifest, segment_writer, writer
from sparsestore.columns import exactly
from sparsestore.convert import append_source
from sparsestore.csr import Rows
from sparsestore.documents import dump
from sparsestore.errors import CorruptStoreError, FormatError, StoreExistsError
from sparsestore.features import read_names
from sparsestore.format import ColumnSchema, root_document
from sparsestore.integrity import verify
from sparsestore.journal import Journal
from sparsestore.manifest import read_manifest, versions
from sparsestore.reader import Reader
from sparsestore.storage import LocalStorage, open_storage
from sparsestore.writer import Writer, append_to, create

Array = NDArray[Any]
conversion = sys.modules["sparsestore.convert"]  # the package's own name is that of the function


def open_reader(path: Path, version: int | None = None, **options: Any) -> Reader:
    storage = open_storage(path)
    return Reader(storage, read_manifest(storage, version), **options)


def everything(path: Path, **options: Any) -> Rows:
    reader = open_reader(path, **options)
    return reader.read(0, reader.shape[0])


def documents(path: Path) -> list[Any]:
    reader = open_reader(path)
    return [reader.segment(i).document for i in range(len(reader.lines))]


def write(w: Writer, *blocks: tuple[Any, dict[str, Any]], then: Callable[[], object] = lambda: None) -> None:
    """Append blocks of x and columns inside a writer's with statement, then do something else there."""
    with w:
        for x, columns in blocks:
            w.append(x, **columns)
        then()


def raiser(error: type[BaseException]) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.zarr"


@pytest.fixture
def store(path: Path) -> Path:
    """Three rows, one column."""
    with create(path, n_features=4) as w:
        w.append(np.eye(3, 4, dtype=np.float32), y=np.array([0, 1, 2]))
    return path


# -------------------------------------------------------------------------------------------------- round trips

BLOCK_DTYPES = ["bool", "uint8", "int8", "int32", "int64", "float32", "float64"]


@st.composite
def blocks(draw: st.DrawFn) -> list[sp.csr_array]:
    m = draw(st.sampled_from([1, 5, 70_000]))
    made = []
    for _ in range(draw(st.integers(0, 5))):
        n, dtype = draw(st.integers(0, 6)), draw(st.sampled_from(BLOCK_DTYPES))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        high = draw(st.sampled_from([2, 100, 300, 70_000]))
        x = sp.random_array((n, m), density=min(1.0, 3 / m), rng=rng, format="csr")
        x.data = rng.integers(
            1, 2 if dtype == "bool" else min(high, np.iinfo("int8").max if dtype == "int8" else high), x.nnz
        )
        x = x.astype(dtype)
        if dtype.startswith("float") and draw(st.booleans()) and x.nnz:
            x.data[0] = draw(st.sampled_from([0.5, np.nan, np.inf, -0.0, -3.0]))
        made.append(x)
    return made


@given(
    made=blocks(),
    profile=st.sampled_from(["raw", "compact"]),
    max_bytes=st.sampled_from([2, 200, 10**6]),
    mmap=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_whatever_is_appended_is_what_scipy_stacks(
    tmp_path_factory: pytest.TempPathFactory, made: list[sp.csr_array], profile: str, max_bytes: int, mmap: bool
) -> None:
    path = tmp_path_factory.mktemp("store") / "s"
    with create(path, profile=profile, max_bytes=max_bytes, n_features=made[0].shape[1] if made else 0) as w:
        for block in made:
            w.append(block)
    found = everything(path, mmap=mmap)
    full = [block for block in made if block.shape[0]]
    if not full:
        assert len(found) == 0
        return
    expected = sp.vstack(full).tocsr()
    assert found.data.dtype == expected.dtype
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(np.signbit(found.data), np.signbit(expected.data))
    reader = open_reader(path, mmap=mmap)
    order = np.random.default_rng(0).integers(0, len(found), 15)
    np.testing.assert_array_equal(reader.locate(order).take(dtype="float64").to_dense(), expected.toarray()[order])
    assert verify(reader) == []


def test_anndata_and_zarr_read_a_segment(path: Path) -> None:
    from anndata.io import sparse_dataset

    zarr = pytest.importorskip("zarr")
    x = sp.random_array((50, 30), density=0.2, rng=np.random.default_rng(0), format="csr")
    with create(path) as w:
        w.append(x, y=np.arange(50), name=np.array([f"row {i}" for i in range(50)]))
    segment = zarr.open_group(path, mode="r")[f"segments/{open_reader(path).lines[0].id}"]
    np.testing.assert_array_equal(sparse_dataset(segment["X"]).to_memory().toarray(), x.toarray())
    assert segment["columns/y"][:].tolist() == list(range(50))
    assert segment["columns/name"][7] == "row 7"


@pytest.mark.parametrize("profile", ["raw", "compact"])
def test_an_array_of_several_shards_comes_back(path: Path, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_writer.ArrayWriter.__init__, "__defaults__", ((), None, 1 << 14, 1 << 15, 0))
    dense = np.random.default_rng(0).integers(1, 60_000, (130, 1000)).astype(np.uint16)
    dense[5:100:7] = 0
    with create(path, max_bytes=2, profile=profile) as w:
        for start in range(0, 130, 33):
            w.append(dense[start : start + 33])
    assert open_reader(path).segment(0).indices.spec.n_shards > 2
    for mmap in (True, False):
        np.testing.assert_array_equal(everything(path, mmap=mmap).to_dense(), dense)
        reader = open_reader(path, mmap=mmap)
        rows = np.random.default_rng(1).integers(0, 130, 50)
        np.testing.assert_array_equal(reader.locate(rows).take(dtype="uint16").to_dense(), dense[rows])
        assert reader.locate(np.array([5, 12])).take().nnz == 0  # empty rows alone


def test_chunks_of_a_wide_column_are_shorter(path: Path) -> None:
    wide = np.arange(700 * 1500, dtype=np.float32).reshape(700, 1500)
    with create(path, n_features=1, columns={"wide": ("float32", 1500), "y": "int64"}) as w:
        w.append(np.zeros((700, 1)), wide=wide, y=np.arange(700))
    reader = open_reader(path)
    assert reader.segment(0).spec("columns/wide").chunk == 256  # 1.5 MB; as many again would be more than 2 MiB
    assert reader.segment(0).spec("columns/y").chunk == 1024
    np.testing.assert_array_equal(reader.column("wide", np.arange(700)), wide)
    assert verify(reader) == []


@pytest.mark.parametrize(
    "values", [[1, 1], [True, True], [0.25, 0.25], [2**53 + 1] * 2, [0.0, 0.0], [-7.0, -7.0]], ids=str
)
def test_equal_values_become_a_fill_value_and_no_chunk(path: Path, values: list[Any]) -> None:
    data = np.array(values)
    with create(path, n_features=3) as w:
        w.append(Rows(np.array([0, 1, 2]), np.array([0, 2], np.int32), data, 3))
    assert documents(path)[0].constant
    assert not [name for name in files(path) if "X/data/c" in name]
    found = everything(path)
    assert found.data.dtype == data.dtype
    assert found.data.tolist() == values


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (np.array([1, 2], np.int64), "uint8"),
        (np.array([-1, 300], np.int64), "int16"),
        (np.array([1.0, 70_000.0]), "uint32"),
        (np.array([1.0, 0.5], np.float32), "float32"),
        (np.array([0.0, -0.0], np.float32), "float32"),
        (np.array([0.5, 1.5], np.float16), "float32"),
        (np.array([1.0, np.nan]), "float64"),
        (np.array([True, False]), "uint8"),
        (np.array([0, 2**64 - 1], np.uint64), "uint64"),
    ],
    ids=str,
)
def test_values_are_stored_as_narrow_as_is_exact(path: Path, values: Array, stored: str) -> None:
    with create(path, n_features=3) as w:
        w.append(Rows(np.array([0, 2]), np.array([0, 2], np.int32), values, 3))
    assert documents(path)[0].data_dtype == stored
    for mmap in (True, False):
        found = everything(path, mmap=mmap)
        assert found.data.dtype == values.dtype
        np.testing.assert_array_equal(found.data, values)
        np.testing.assert_array_equal(np.signbit(found.data), np.signbit(values))


def test_indices_are_as_narrow_as_the_width_allows(tmp_path: Path) -> None:
    for n_features, dtype in ((65_536, "uint16"), (65_537, "int32"), (2**31 + 1, "int64")):
        path = tmp_path / f"{n_features}"
        with create(path, n_features=n_features) as w:
            w.append(sp.csr_array(([5.0], ([0], [n_features - 1])), shape=(1, n_features)))
        assert documents(path)[0].indices_dtype == dtype
        assert everything(path).indices.tolist() == [n_features - 1]


def one_value(value: Any, dtype: str, width: int = 4) -> Rows:
    return Rows(np.array([0, 1]), np.array([width - 1], np.int32), np.array([value], dtype), width)


def test_a_wider_value_closes_the_segment_and_nothing_narrows_again(path: Path) -> None:
    with create(path, max_bytes=2) as w:
        for value, dtype in (
            (1, "int64"),
            (1, "uint8"),
            (200, "int64"),
            (3, "int8"),
            (-1, "int64"),
            (0.5, "float32"),
            (1, "int8"),
        ):
            w.append(one_value(value, dtype))
    assert [(d.rows, d.data_dtype, d.constant) for d in documents(path)] == [
        (2, "uint8", True),
        (2, "uint8", False),
        (1, "int16", False),
        (2, "float64", False),
    ]
    assert everything(path).data.tolist() == [1, 1, 200, 3, -1, 0.5, 1]
    assert open_reader(path).dtype == np.float64


def test_a_wider_row_closes_the_segment(path: Path) -> None:
    with create(path, max_bytes=2) as w:
        for width in (10, 70_000, 10):
            w.append(one_value(2.0, "float32", width))
    assert [(d.rows, d.indices_dtype, d.n_features) for d in documents(path)] == [
        (1, "uint16", 10),
        (2, "int32", 70_000),
    ]
    assert open_reader(path).shape == (3, 70_000)
    assert everything(path).indices.tolist() == [9, 69_999, 9]


def test_values_looked_at_together_share_a_segment(path: Path) -> None:
    with create(path) as w:
        for value in (1, 300, 0.5):
            w.append(one_value(value, "float32"))
    assert [d.data_dtype for d in documents(path)] == ["float32"]


def test_no_more_is_held_than_was_allowed(path: Path) -> None:
    import tracemalloc

    x = np.full((1000, 50), 0.5, np.float32) * np.arange(1, 51)
    with create(path, max_bytes="1MiB") as w:
        w.append(x)
        w.append(x)
        tracemalloc.start()
        held = []
        for _ in range(20):
            w.append(x)
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        # a large page and a chunk of 64k elements for each of the two long arrays
        assert max(held) < 5 << 20
    assert open_reader(path).shape == (22_000, 50)


@pytest.mark.parametrize("max_bytes", [2, "1GiB"])
def test_a_block_may_change_after_it_was_appended(path: Path, max_bytes: int | str) -> None:
    x = sp.csr_array(np.eye(3, dtype=np.float32) * 7)
    y = np.arange(3)
    with create(path, max_bytes=max_bytes) as w:
        w.append(x, y=y)
        x.data[:] = 0
        y[:] = 0
    assert everything(path).data.tolist() == [7, 7, 7]
    assert open_reader(path).column("y").tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------------- logical dtype


def test_the_logical_dtype_is_numpys_common_one(path: Path) -> None:
    with create(path, n_features=4) as w:
        w.append(one_value(1, "int8"))
        w.append(one_value(1, "float32"))
    assert open_reader(path).dtype == np.float32
    with append_to(path) as w:
        w.append(one_value(1, "int64"))
    assert open_reader(path).dtype == np.float64


def test_a_declared_dtype_is_kept(path: Path) -> None:
    with create(path, dtype="float32", n_features=4) as w:
        w.append(one_value(0.1, "float64"))
    assert open_reader(path).dtype == np.float32
    assert everything(path).data.tolist() == [np.float32(0.1)]


@pytest.mark.parametrize(
    ("dtype", "row", "message"),
    [
        ("uint8", [1.0, 256.0, -1.0], "row 2, feature 1: value 256.0 does not fit uint8: give a wider dtype="),
        ("uint8", np.array([0, 0, -1]), "row 2, feature 2: value -1 does not fit uint8"),
        ("int8", [2.5, 300.0, 0.0], "row 2, feature 0: value 2.5 does not fit int8"),
        ("int64", [0.0, np.nan, 2.0**63], "row 2, feature 1: value nan does not fit int64"),
        ("float32", [0.1, np.inf, 1e300], r"row 2, feature 2: value 1e\+300 does not fit float32"),
        ("float16", np.array([0, 1, 70_000]), "row 2, feature 2: value 70000 does not fit float16"),
        ("bool", [1.0, 0.0, 2.0], "row 2, feature 2: value 2.0 does not fit bool"),
    ],
    ids=["wraps", "negative", "cut", "nan", "inf", "inf16", "bool"],
)
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array], ids=["dense", "sparse"])
def test_a_value_that_a_declared_dtype_can_not_hold_is_an_error(
    path: Path, dtype: str, row: Any, message: str, form: Callable[..., Any]
) -> None:
    fine = np.array([[1, 0, 1], [0, 1, 0]])
    with pytest.raises(ValueError, match=message):
        write(create(path, n_features=3, dtype=dtype), (form(fine), {}), (form(np.array([row])), {}))
    assert not path.exists()


def test_duplicates_are_summed_in_a_declared_dtype_or_are_an_error(path: Path) -> None:
    twice = sp.csr_array((np.array([200, 1, 200], np.uint8), [2, 1, 2], [0, 0, 3]), shape=(2, 3))
    with pytest.raises(ValueError, match="row 3, feature 2: the sum of its duplicates does not fit uint8: give a"):
        write(create(path, n_features=3), (np.eye(2, 3, dtype=np.uint8), {}), (twice, {}))
    assert not path.exists()
    write(create(path, n_features=3, dtype="int16"), (twice, {}))
    assert everything(path).to_dense().tolist() == [[0, 0, 0], [0, 1, 400]]


def test_values_are_rounded_to_a_declared_dtype_of_floats_and_stored_so(path: Path) -> None:
    x = np.array([[0.1, np.inf, -0.0], [np.nan, 1e-300, 2.5]])
    with create(path, dtype="float32") as w:
        w.append(x)
        w.append(np.arange(6).reshape(2, 3))
    found = everything(path)
    assert (found.data.dtype, documents(path)[0].data_dtype) == (np.float32, "float32")
    np.testing.assert_array_equal(found.to_dense(), np.vstack([x, np.arange(6).reshape(2, 3)]).astype(np.float32))


@pytest.mark.parametrize("dtype", ["complex64", "longdouble", "U3", object])
def test_a_dtype_that_can_not_be_stored_is_refused(path: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match="expected bool, integers or floats of up to 64 bits"):
        create(path, dtype=dtype)
    assert not path.exists()


# ------------------------------------------------------------------------------------------------------- columns

COLUMNS: dict[str, Array] = {
    "ints": np.array([1, -5, 2**62]),
    "big": np.array([0, 1, 2**64 - 1], np.uint64),
    "floats": np.array([0.5, np.nan, -np.inf]),
    "half": np.array([0.5, 1, 2], np.float16),
    "flags": np.array([True, False, True]),
    "many": np.arange(6.0).reshape(3, 2),
    "text": np.array(["a", "", "größe"]),
    "objects": np.array(["x", "yy", "z"], object),
    "nnz": np.array([1, 2, 3]),
    "user id": np.array([7, 8, 9], np.uint32),
}


@pytest.mark.parametrize("profile", ["raw", "compact"])
def test_columns_of_every_kind_come_back(path: Path, profile: str) -> None:
    with create(path, profile=profile) as w:
        w.append(np.eye(3), **COLUMNS)
        w.append(np.eye(3), **COLUMNS)
    reader = open_reader(path)
    assert verify(reader) == []
    rows = np.array([5, 0, 1])
    for name, values in COLUMNS.items():
        twice = np.concatenate([values, values])
        found = reader.column(name)
        assert found.tolist() == twice.tolist() or name == "floats"
        np.testing.assert_array_equal(found, twice)
        np.testing.assert_array_equal(reader.column(name, rows), twice[rows])
        assert not isinstance(found, np.ma.MaskedArray)
        if values.dtype.kind not in "UO":
            assert found.dtype == values.dtype


def test_masked_values_come_back_masked(path: Path) -> None:
    numbers = np.ma.MaskedArray([1.0, 2.0, 3.0], [False, True, False])
    words = np.ma.MaskedArray(np.array(["a", "b", "c"], object), [True, False, False])
    with create(path) as w:
        w.append(np.eye(3), y=np.arange(3.0), name=np.array(["d", "e", "f"], object))
        w.append(np.eye(3), y=numbers, name=words)
        w.append(np.eye(3), y=np.arange(3.0), name=np.array(["d", "e", "f"], object))
    with append_to(path) as w:
        w.append(np.eye(3), y=np.arange(3.0), name=np.array(["d", "e", "f"], object))
    y, name = open_reader(path).column("y"), open_reader(path).column("name")
    assert y.tolist() == [0, 1, 2, 1, None, 3, 0, 1, 2, 0, 1, 2]
    assert name.tolist() == ["d", "e", "f", None, "b", "c", *"defdef"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"columns are \[\], expected \['y', 'z'\]: 'y' is missing; 'z' is missing"),
        ({"y": np.arange(3), "z": np.arange(3), "w": np.arange(3)}, "'w' is unknown"),
        ({"y": np.arange(2), "z": np.arange(3)}, r"column 'y' has shape \(2,\), expected \(3,\)"),
        ({"y": np.ones((3, 2)), "z": np.arange(3)}, r"column 'y' has shape \(3, 2\), expected \(3,\)"),
        ({"y": 5, "z": np.arange(3)}, r"column 'y' has shape \(\), expected \(3,\)"),
        (
            {"y": np.array([0, 1.5, 2]), "z": np.arange(3)},
            "column 'y' has the value 1.5, which its dtype int64 can not hold",
        ),
        ({"y": np.array([0, 1, np.nan]), "z": np.arange(3)}, "column 'y' has the value nan"),
        ({"y": np.array([0, 1, 2**63], np.uint64), "z": np.arange(3)}, "column 'y' has the value 9223372036854775808"),
        ({"y": np.array(list("abc")), "z": np.arange(3)}, "column 'y' has dtype <U1, expected int64"),
        (
            {"y": np.arange(3), "z": np.array([0, 1e300, 0])},
            "column 'z' has the value 1e.300, which its dtype float32 can not",
        ),
        ({"y": np.arange(3), "z": np.array([0, 2**53 + 1, 0])}, "column 'z' has the value 9007199254740993"),
        (
            {"y": np.arange(3), "z": np.arange(3), "row_id": np.arange(3)},
            "'row_id' must come with every block of a writer",
        ),
    ],
    ids=[
        "none",
        "unknown",
        "short",
        "2-D",
        "scalar",
        "fraction",
        "nan",
        "unsigned",
        "text",
        "overflow",
        "inexact",
        "row ids",
    ],
)
def test_columns_that_do_not_match_are_refused_and_nothing_is_published(
    path: Path, columns: dict[str, Any], message: str
) -> None:
    w = create(path, n_features=3, columns={"y": "int64", "z": "float32"}, max_bytes=2)
    with pytest.raises(ValueError, match=message):
        write(w, (np.eye(3), {"y": np.arange(3), "z": np.arange(3)}), (np.eye(3), columns))
    assert not path.exists()


def test_a_block_that_was_refused_may_be_left_out(path: Path) -> None:
    with create(path, n_features=3) as w:
        w.append(np.eye(3), y=np.arange(3))
        with pytest.raises(ValueError, match="column 'y' has shape"):
            w.append(np.eye(3), y=np.arange(2))
        w.append(np.eye(3), y=np.arange(3))
    assert open_reader(path).shape == (6, 3)
    assert verify(open_reader(path)) == []


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ({"label": np.arange(2)}, "has shape"),
        ({"label": np.array([1j, 2, 3])}, "has dtype"),
        ({"row_id": [-1, 0, 1]}, "has the number -1"),
    ],
)
def test_a_first_block_that_was_refused_decides_nothing(path: Path, refused: dict[str, Any], message: str) -> None:
    w = create(path)
    with pytest.raises(ValueError, match=message):
        w.append(np.eye(3), **refused)
    write(w, (np.eye(3), {"y": np.arange(3)}))
    reader = open_reader(path)
    assert list(reader.manifest.columns) == ["y"]
    assert verify(reader) == []


def test_floats_are_rounded_to_the_precision_declared(path: Path) -> None:
    with create(path, columns={"y": "float32"}) as w:
        w.append(np.eye(1), y=np.array([0.1]))
    assert open_reader(path).column("y").tolist() == [np.float32(0.1)]


def test_integers_that_a_column_holds_exactly_are_taken(path: Path) -> None:
    with create(path, columns={"y": "uint8", "f": "bool", "z": ("float64", 2)}) as w:
        w.append(np.eye(2), y=np.array([0.0, 255.0]), f=np.array([0, 1]), z=np.array([[1, 2], [3, 2**53]]))
    assert open_reader(path).column("z").tolist() == [[1, 2], [3, 2**53]]
    assert open_reader(path).column("f").tolist() == [False, True]


LOST = 2**53 + 1


@pytest.mark.parametrize("library", ["pandas", "pandas of arrow", "polars", "pyarrow"])
def test_whole_numbers_of_which_some_are_missing_do_not_become_others(path: Path, library: str) -> None:
    module = pytest.importorskip(library.split()[0])

    def column(*numbers: int | None) -> Any:
        if library.startswith("pandas"):
            return module.Series(numbers, dtype="Int64" if library == "pandas" else "int64[pyarrow]")
        return module.Series(numbers) if library == "polars" else module.array(numbers)

    with pytest.raises(ValueError, match=f"column 'id' has missing values, .* float64, which lacks its value {LOST}"):
        write(create(path), (np.eye(2), {"id": column(LOST, None)}))
    write(create(path), (np.eye(2), {"id": column(LOST - 1, None), "whole": column(LOST, 1)}))
    np.testing.assert_array_equal(open_reader(path).column("id"), [LOST - 1, np.nan])
    assert open_reader(path).column("whole").tolist() == [LOST, 1]


@pytest.mark.parametrize("missing", [None, np.nan])
def test_a_missing_text_of_numpy_is_told(path: Path, missing: Any) -> None:
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("numpy has no text of any width before 2.0")
    texts = np.array(["a", missing], np.dtypes.StringDType(na_object=missing))
    with pytest.raises(ValueError, match=r"column 'y' has values of (NoneType|float), expected str"):
        write(create(path), (np.eye(2), {"y": texts}))
    assert not path.exists()


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_whole_number_that_the_common_dtype_lacks_is_refused(path: Path, dtype: str, order: int) -> None:
    other = np.array([[0.5]]) if dtype == "int64" else np.array([[-1]])
    blocks = [(np.array([[LOST]], dtype), {}), (other, {})][::order]
    with pytest.raises(ValueError, match=f"values have {LOST}, which float64, the common dtype of all of them, lacks"):
        write(create(path), *blocks)
    assert not path.exists()
    write(create(path, dtype="float64"), *blocks)  # as it is asked for
    write(create(path, overwrite=True), (np.array([[LOST - 1]], dtype), {}), (other, {}))
    assert sorted(everything(path).data.tolist()) == sorted([*other[0].tolist(), LOST - 1])


def test_values_that_were_whole_numbers_stay_those_when_others_are_appended(path: Path) -> None:
    write(create(path), (np.array([[LOST, 1]]), {}))
    for other in (np.array([[0.5, 1]]), np.array([[2**63, 1]], np.uint64)):
        with pytest.raises(ValueError, match="its values are int64, beyond 32 bits, of which float64, the common dty"):
            write(append_to(path), (other, {}))
    write(append_to(path), (np.array([[-LOST, 300]], np.int64), {}))
    assert everything(path).data.tolist() == [LOST, 1, -LOST, 300]
    few, more = path.with_name("few"), path.with_name("more")
    write(create(few), (np.array([[1, 2**32 - 1]]), {}))
    write(append_to(few), (np.array([[0.5, 1]]), {}))
    assert everything(few).data.tolist() == [1, 2**32 - 1, 0.5, 1]
    none = path.with_name("none")
    write(create(none), (np.zeros((2, 2), np.int64), {}))
    write(append_to(none), (np.array([[0.5, 1]]), {}))
    assert everything(none).data.tolist() == [0.5, 1]
    write(create(more), (np.array([[0.5, 1]]), {}))
    with pytest.raises(ValueError, match=f"values have {LOST}, which float64"):
        write(append_to(more), (np.array([[1, LOST]]), {}))


def test_what_another_writer_appended_meanwhile_stays_what_it_was(path: Path) -> None:
    write(create(path), (np.array([[1, 2]]), {}))
    late = append_to(path)
    late.append(np.array([[0.5, 1]]))
    write(append_to(path), (np.array([[LOST, 1]]), {}))
    with pytest.raises(ValueError, match="its values are int64, beyond 32 bits"), late:
        pass
    assert everything(path).data.tolist() == [1, 2, LOST, 1]


class Saturating(np.ndarray[Any, Any]):
    """Floats beyond an integer's dtype become its end, as on ARM; on x86 they become its lowest."""

    def astype(self, dtype: Any, *arguments: Any, **options: Any) -> Any:
        to = np.dtype(dtype)
        if self.dtype.kind != "f" or to.kind not in "iu":
            return super().astype(dtype, *arguments, **options)
        ends = np.iinfo(to)
        return np.array([int(min(max(value, ends.min), ends.max)) for value in self.tolist()], to).view(Saturating)


@pytest.mark.parametrize("kind", [np.ndarray, Saturating])
@pytest.mark.parametrize(
    ("value", "given", "declared"),
    [
        (2**63 - 1, "int64", "float64"),
        (2**64 - 1, "uint64", "float64"),
        (2**31 - 1, "int32", "float32"),
        (65535, "uint16", "float16"),
        (2.0**63, "float64", "int64"),
        (2.0**64, "float32", "uint64"),
        (-1.0, "float16", "uint8"),
    ],
)
def test_a_number_that_is_another_in_the_dtype_of_a_column_is_refused_on_any_processor(
    kind: Any, value: float, given: str, declared: str
) -> None:
    values = np.array([0, value], given).view(kind)
    with pytest.raises(ValueError, match=f"column 'y' has the value .*, which its dtype {declared} can not hold"):
        exactly("y", values, ColumnSchema(declared))
    assert exactly("y", values[:1], ColumnSchema(declared)).tolist() == [0]


@pytest.mark.parametrize("values", [np.array(["a", None], object), np.array([b"a", b"b"]), np.array([1, 2])], ids=str)
def test_a_text_column_takes_text_alone(path: Path, values: Array) -> None:
    with (
        pytest.raises(ValueError, match=r"column 'y' has values of .*, expected str"),
        create(path, columns={"y": "string"}) as w,
    ):
        w.append(np.eye(2), y=values)


def test_texts_of_a_list_are_stored_as_they_are(path: Path) -> None:
    texts = ["nul at the end\0", np.str_("numpy's"), "ä", ""]
    with create(path) as w:
        w.append(np.eye(4), y=texts)
    assert open_reader(path).column("y").tolist() == texts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", 1], "column 'y' has values of int, expected str"),
        ([np.nan, "a"], "column 'y' has values of float, expected str"),
        (["a", "\ud800"], "column 'y' has text with the number 0xd800, which is no character"),
    ],
    ids=["number", "nan", "half_a_character"],
)
def test_a_list_that_is_not_all_text_is_refused(path: Path, values: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), create(path) as w:
        w.append(np.eye(2), y=values)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a/b": "int64"}, "column name 'a/b' can not be stored"),
        ({"y.mask": "bool"}, "not end with '.mask'"),
        ({"y": "complex64"}, "column 'y' has dtype complex64, expected bool, integers"),
        ({"y": "datetime64[s]"}, "column 'y' has dtype datetime64"),
        ({"y": ("int64", 0)}, r"column 'y' has shape \(0,\) a row, expected \(\) or \(k,\) with k >= 1"),
        ({"y": ("string", 2)}, r"column 'y' is text of shape \(2,\) a row, expected \(\): give each of its 2 values"),
        ({"y": ("int64", 2, 2)}, r"column 'y' has shape \(2, 2\) a row"),
        ({"y": "int46"}, "column 'y' has dtype 'int46': data type 'int46' not understood"),
        ({"y": ["float32", 3]}, r"column 'y' has dtype \['float32', 3\]: .*; for k values a row give \(dtype, k\)"),
        (["y"], "columns is a list, expected a mapping"),
    ],
)
def test_a_schema_that_can_not_be_stored_is_refused(path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(path, columns=columns)
    assert not path.exists()


# ---------------------------------------------------------------------------------------- rows that are refused


def test_a_flag_that_lies_about_the_order_lets_nothing_through(path: Path) -> None:
    x = sp.csr_array((np.ones(2), np.array([3, 1]), np.array([0, 2])), shape=(1, 5))
    x.has_sorted_indices = True
    x.has_canonical_format = True
    with (
        pytest.raises(ValueError, match="row 0: feature number 1 follows 3, expected strictly ascending"),
        create(path) as w,
    ):
        w.append(x)
    assert not path.exists()


def test_rows_given_as_rows_are_checked(path: Path) -> None:
    with pytest.raises(ValueError, match="feature number 9, expected 0 to 3"), create(path) as w:
        w.append(Rows(np.array([0, 1]), np.array([9], np.int32), np.ones(1), 4))


def test_another_width_is_refused_with_the_hint(store: Path) -> None:
    with (
        pytest.raises(ValueError, match="x has 6 features, expected the store's 4; pass grow_features=True"),
        append_to(store) as w,
    ):
        w.append(np.eye(6), y=np.arange(6))
    # a row too narrow is no reason to widen the store
    with pytest.raises(ValueError, match=r"x has 3 features, expected the store's 4$"), append_to(store) as w:
        w.append(np.eye(3), y=np.arange(3))
    assert open_reader(store).version == 1


def test_a_store_grows_wider_when_told(store: Path) -> None:
    with append_to(store, grow_features=True) as w:
        w.append(np.eye(6, dtype=np.float32), y=np.arange(6))
        w.append(np.eye(2, dtype=np.float32), y=np.arange(2))
    assert open_reader(store).shape == (11, 6)
    assert open_reader(store, 1).shape == (3, 4)
    np.testing.assert_array_equal(everything(store).to_dense()[:3], np.eye(3, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "fast"}, "profile is 'fast', expected one of raw, compact"),
        ({"n_features": -1}, "n_features is -1, expected an integer from 0"),
        ({"n_features": True}, "n_features is True"),
        ({"n_features": 60.5}, "n_features is 60.5, expected an integer"),
        ({"n_features": "60"}, "n_features is '60', expected an integer"),
        ({"dtype": "flaot"}, "dtype is 'flaot': data type 'flaot' not understood"),
        ({"max_bytes": "lots"}, "max_bytes is 'lots', expected bytes"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(path, **options)
    assert not path.exists()


# --------------------------------------------------------------------------------------------- nothing published


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("max_bytes", [2, "1GiB"], ids=["written", "held"])
def test_a_block_that_raises_leaves_no_file_and_no_folder(
    path: Path, error: type[BaseException], max_bytes: Any
) -> None:
    columns = {"y": np.arange(3), "s": np.array(list("abc"))}
    w = create(path, max_bytes=max_bytes)
    with pytest.raises(error):
        write(w, (np.eye(3), columns), (np.eye(3) / 2, columns), then=raiser(error))
    assert not path.exists()
    assert list(path.parent.iterdir()) == []


def test_an_interrupt_while_a_writer_is_made_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fcntl.flock", interrupted)
    with pytest.raises(KeyboardInterrupt), create(path):
        pass
    assert not path.exists()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="hears signals where CPython does")
def test_an_interrupt_anywhere_before_the_block_of_a_writer_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Nothing on the disk, that is: between open(2) and the line that knows of it a descriptor stays open."""
    folder = tmp_path_factory.mktemp("interrupted")
    path = str(folder / "stores" / "s.zarr")
    made: list[Any] = [None]

    def work() -> None:
        made[0] = create(path).__enter__()

    def undone() -> None:
        made[0].abort()
        made[0] = None

    heard = places_of_a_second(work, undone)
    assert len(heard) > 100
    for place in heard:
        assert interrupted(work, place) == (True, False), place
        assert list(folder.iterdir()) == [], place


def test_a_writer_that_is_made_and_not_used_leaves_nothing(path: Path) -> None:
    create(path)
    create(path).abort()
    assert not path.exists()


def test_a_folder_that_was_there_stays_and_is_empty(path: Path) -> None:
    path.mkdir()
    w = create(path, max_bytes=2)
    with pytest.raises(ZeroDivisionError):
        write(w, (np.eye(3), {}), then=raiser(ZeroDivisionError))
    assert list(path.iterdir()) == []


@pytest.mark.parametrize(
    "start", [append_to, lambda path, **options: create(path, overwrite=True, **options)], ids=["append", "overwrite"]
)
def test_a_failed_new_version_leaves_the_store_as_it_was(store: Path, start: Any) -> None:
    before = files(store)
    w = start(store, max_bytes=2)
    with pytest.raises(ZeroDivisionError):
        write(w, (np.eye(3, 4), {"y": np.arange(3)}), then=raiser(ZeroDivisionError))
    assert files(store) == before
    assert open_reader(store).version == 1


def test_a_segment_torn_by_an_error_is_never_published(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = segment_writer.ArrayWriter.append

    def full_disk(self: Any, values: Array) -> None:
        if self.prefix.endswith("columns/y") and self.length:
            raise OSError(28, "No space left on device")
        real(self, values)

    monkeypatch.setattr(segment_writer.ArrayWriter, "append", full_disk)
    w = create(path, max_bytes=2)
    w.append(np.eye(3), y=np.arange(3))
    with pytest.raises(OSError, match="No space left"):
        w.append(np.eye(3), y=np.arange(3))
    with pytest.raises(ValueError, match="an earlier write failed half-way: nothing can be published"):
        write(w)
    assert not path.exists()


def test_a_segment_whose_end_failed_is_never_published(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was half written must not be finished a second time, though there is room again."""
    real = segment_writer.SegmentWriter.finish

    def full_disk(self: Any, *arguments: Any) -> Any:
        real(self, *arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    w = create(path)
    w.append(np.eye(3), y=np.arange(3))
    monkeypatch.setattr(segment_writer.SegmentWriter, "finish", full_disk)
    with pytest.raises(OSError, match="No space left"):
        w.publish()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="an earlier write failed half-way: nothing can be published"):
        w.publish()
    w.abort()
    assert not path.exists()


def interrupted_at_line(n: int, call: Callable[[], object]) -> bool:
    """Call, and raise a KeyboardInterrupt before the n-th line of `writer` that is run; whether there was one."""
    left = [n]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != writer.__file__:
            return None
        if event == "line":
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_anywhere_in_publish_loses_no_row_and_publishes_none_twice(tmp_path: Path) -> None:
    for n in range(1, 1000):
        path = tmp_path / str(n)
        write(create(path), (np.eye(3), {}))
        w = append_to(path)
        for _ in range(3):
            w.append(np.eye(3))
        if not interrupted_at_line(n, w.publish):
            break
        try:
            w.publish()
        except ValueError as error:
            assert "the writer is closed" in str(error) or "an earlier write failed half-way" in str(error), n  # noqa: PT017
        w.abort()
        opened = open_reader(path)
        assert (opened.version, opened.shape) in [(1, (3, 3)), (2, (12, 3))], n
        assert list((path / "writers").iterdir()) == [], n
    assert n > 50


def test_a_block_that_failed_is_not_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Any, kind: str, value: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    w = create(path, max_bytes=400)
    w.append(np.eye(3))
    monkeypatch.setattr(Journal, "note", full_disk)
    with pytest.raises(OSError, match="No space left"):
        w.append(np.ones((10, 3)))
    monkeypatch.undo()
    assert (w.n_rows, w.nnz) == (3, 3)
    w.append(np.ones((10, 3)))
    assert (w.n_rows, w.nnz) == (13, 33)
    w.publish()
    assert open_reader(path).shape == (13, 3)


@pytest.mark.parametrize("start", [create, append_to])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_was_interrupted_when_it_was_published_is_not_published_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch, start: Any, error: type[BaseException]
) -> None:
    if start is append_to:
        write(create(path), (np.eye(3), {}))
    real = LocalStorage.publish

    def broken(self: LocalStorage, key: str, *arguments: Any) -> None:
        real(self, key, *arguments)
        if key.startswith("versions/"):
            raise error

    w = start(path)
    w.append(np.eye(3))
    monkeypatch.setattr(LocalStorage, "publish", broken)
    with pytest.raises(error):
        w.publish()
    monkeypatch.undo()
    for call in (w.publish, lambda: w.append(np.eye(3))):
        with pytest.raises(ValueError, match="the writer is closed"):
            call()
    w.abort()
    opened = open_reader(path)
    assert opened.shape == (6 if start is append_to else 3, 3)
    assert verify(opened) == []
    assert [*(path / "writers").iterdir()] == []


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({1: "a", "1": "b"}, r"attrs: found the key 1, expected strings"),
        ({"a": {None: 1}}, r"attrs\['a'\]: found the key None, expected strings"),
        ({"a": [1, np.nan]}, r"attrs\['a'\]\[1\]: found nan, expected a finite number"),
        ({"a": np.arange(2)}, r"attrs\['a'\]: found a ndarray, expected what JSON has"),
    ],
    ids=["keys_alike", "key_none", "nan", "array"],
)
def test_attrs_that_json_would_not_give_back_are_refused(path: Path, attrs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(path, attrs=attrs)
    w = create(path)
    w.attrs.update(attrs)
    with pytest.raises(ValueError, match=message):
        write(w, (np.eye(3), {}))
    assert not path.exists()


def test_numbers_of_numpy_are_written_as_those_of_python(path: Path) -> None:
    attrs = {"n": np.int64(2**60), "x": np.float32(0.5), "flag": np.bool_(True), "cuts": (1, np.uint8(2))}
    write(create(path, attrs=attrs), (np.eye(3), {}))
    assert read_manifest(open_storage(path)).attrs == {"n": 2**60, "x": 0.5, "flag": True, "cuts": [1, 2]}


def test_keys_of_an_enumeration_are_written_as_the_text_that_they_are(path: Path) -> None:
    class Fold(str, Enum):  # noqa: UP042 - whose str() is its text
        TRAIN = "train"

    write(create(path, attrs={Fold.TRAIN: Fold.TRAIN, "Fold.TRAIN": 2}), (np.eye(3), {}))
    assert read_manifest(open_storage(path)).attrs == {"train": "train", "Fold.TRAIN": 2}


def test_an_error_while_publishing_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: LocalStorage, key: str, payload: bytes, temporary: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalStorage, "publish", broken)
    with pytest.raises(OSError, match="Input/output"), create(path) as w:
        w.append(np.eye(3))
    assert not path.exists()


def test_every_call_that_fails_leaves_the_previous_version(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the k-th write, then the (k + 1)-th, until an append goes through, as SQLite's tests do."""
    real, count = os.write, [0]

    def limited(descriptor: int, payload: Any) -> int:
        count[0] -= 1
        if count[0] < 0:
            raise OSError(28, "No space left on device")
        return real(descriptor, payload)

    before = files(store)
    monkeypatch.setattr(os, "write", limited)
    for allowed in range(200):
        count[0] = allowed
        try:
            with append_to(store, max_bytes=2) as w:
                w.append(np.eye(3, 4), y=np.arange(3))
        except OSError:
            assert files(store) == before, allowed
            assert versions(LocalStorage(store)) == [1]
        else:
            break
    assert allowed > 15
    assert open_reader(store).shape == (6, 4)


def test_a_closed_writer_says_so(path: Path) -> None:
    w = create(path)
    w.append(np.eye(2))
    assert w.publish() == 1
    for call in (w.publish, lambda: w.append(np.eye(2))):
        with pytest.raises(ValueError, match="the writer is closed"):
            call()
    w.abort()  # nothing is left to drop
    assert open_reader(path).shape == (2, 2)


def test_an_aborted_writer_publishes_nothing(path: Path) -> None:
    with create(path) as w:
        w.append(np.eye(2))
        w.abort()
    assert not path.exists()


def test_a_published_store_holds_no_trace_of_its_writer(store: Path) -> None:
    assert not [name for name in files(store) if name.startswith("writers/") or "tmp" in name]


# ---------------------------------------------------------------------------------------- what is there already


def test_the_name_of_every_folder_is_durable_before_the_first_version_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: set[Path] = set()

    def sync(folder: int | Path) -> None:
        folder = Path(f"/proc/self/fd/{folder}").readlink() if isinstance(folder, int) else folder
        durable.update(folder.iterdir())

    def publish(storage: LocalStorage, key: str, payload: bytes, temporary: str) -> None:
        if key.startswith("versions/"):
            folders = {storage.root, *(found for found in storage.root.rglob("*") if found.is_dir())}
            assert folders - {storage.root / "writers"} <= durable
        real(storage, key, payload, temporary)

    real = LocalStorage.publish
    monkeypatch.setattr("sparsestore.storage._sync_folder", sync)
    monkeypatch.setattr(LocalStorage, "publish", publish)
    with create(path) as w:
        w.append(np.eye(3))


def test_an_existing_store_is_refused(store: Path) -> None:
    with pytest.raises(FileExistsError, match="a store is there already: append to it, or pass overwrite=True"):
        create(store)
    assert open_reader(store).shape == (3, 4)


@pytest.mark.parametrize(
    "names",
    [
        ["notes.txt"],
        ["zarr.json"],
        ["zarr.json", "segments/x"],
        ["c/0"],
        *([f"{folder}/ages.csv"] for folder in ("segments", "features", "writers", "versions", "versions/pages")),
    ],
    ids=["file", "group", "groups", "array", "segments", "features", "writers", "versions", "pages"],
)
def test_a_foreign_folder_is_refused_even_with_overwrite(path: Path, names: list[str]) -> None:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    for overwrite in (False, True):
        with pytest.raises(StoreExistsError, match=r"exists and is no sparsestore.*: choose another path or remove it"):
            create(path, overwrite=overwrite)
    assert files(path) == sorted(names)


def test_a_file_is_refused(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is no sparsestore"):
        create(path, overwrite=True)
    assert path.read_text() == "mine"


def test_what_a_killed_writer_left_is_no_obstacle(path: Path) -> None:
    program = (
        "import sys, os, numpy as np; from sparsestore.writer import create\n"
        "w = create(sys.argv[1], max_bytes=2); w.append(np.eye(3)); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    assert files(path)
    with create(path) as w:
        w.append(np.eye(2))
    assert open_reader(path).shape == (2, 2)


def test_overwriting_keeps_the_old_version_readable(store: Path) -> None:
    old = open_reader(store)
    with create(store, overwrite=True, n_features=7) as w:
        w.append(np.eye(5, 7), label=np.arange(5.0))
    assert open_reader(store).shape == (5, 7)
    assert list(open_reader(store).columns) == ["label"]
    assert open_reader(store).manifest.parent == 1
    for reader in (old, open_reader(store, 1)):
        np.testing.assert_array_equal(reader.read(0, 3).to_dense(), np.eye(3, 4))
        assert reader.column("y").tolist() == [0, 1, 2]


def test_a_store_without_rows_is_one(path: Path) -> None:
    with create(path, n_features=7, columns={"y": "int64"}, attrs={"source": "none"}):
        pass
    reader = open_reader(path)
    assert (reader.shape, reader.nnz, reader.lines, reader.version) == ((0, 7), 0, [], 1)
    assert reader.column("y").shape == (0,)
    assert len(reader.read(0, 0)) == 0
    assert reader.manifest.attrs == {"source": "none"}
    with append_to(path) as w:
        w.append(np.eye(7), y=np.arange(7))
    assert open_reader(path).shape == (7, 7)


def test_rows_without_entries_are_rows(path: Path) -> None:
    with create(path) as w:
        w.append(sp.csr_array((5, 3), dtype=np.float32))
    for mmap in (True, False):
        assert everything(path, mmap=mmap).shape == (5, 3)
    assert verify(open_reader(path)) == []


def test_appending_to_nothing_is_file_not_found(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        append_to(path)
    assert not path.exists()


# -------------------------------------------------------------------------------------------------- several writers


def check_rows(path: Path, appended: int) -> None:
    """Every row once: row i of each append has y = its own number, and row ids do not overlap."""
    reader = open_reader(path)
    assert reader.shape[0] == 3 + appended
    ids = reader.column("row_id")
    assert ids.tolist() == list(range(3 + appended))
    assert sorted(reader.column("y").tolist()[3:]) == sorted(range(100, 100 + appended))
    x = reader.read(0, reader.shape[0]).to_dense()
    np.testing.assert_array_equal(x.sum(axis=1)[3:], reader.column("y")[3:])
    assert verify(reader) == []


def row_of(number: int) -> dict[str, Any]:
    return {"x": np.array([[0, number, 0, 0]], np.float32), "y": np.array([number])}


def test_an_appender_that_loses_the_race_takes_up_the_new_version(store: Path) -> None:
    with append_to(store) as slow, append_to(store) as fast:
        slow.append(**row_of(100))
        fast.append(**row_of(101))
        assert fast.publish() == 2
    assert open_reader(store).version == 3
    assert open_reader(store).column("y").tolist() == [0, 1, 2, 101, 100]
    check_rows(store, 2)


def test_appenders_in_threads_lose_no_row(store: Path) -> None:
    barrier, errors = threading.Barrier(4), []

    def work(number: int) -> None:
        try:
            barrier.wait()
            for i in range(3):
                with append_to(store) as w:
                    w.append(**row_of(100 + 3 * number + i))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    check_rows(store, 12)
    assert versions(LocalStorage(store)) == list(range(1, 14))


def test_appenders_in_processes_lose_no_row(store: Path) -> None:
    program = (
        "import sys, numpy as np; from sparsestore.writer import append_to\n"
        "sys.stdin.readline()\n"
        "for number in range(int(sys.argv[2]), int(sys.argv[2]) + 4):\n"
        "    with append_to(sys.argv[1]) as w:\n"
        "        w.append(np.array([[0, number, 0, 0]], np.float32), y=np.array([number]))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(store), str(first)], stdin=subprocess.PIPE)
        for first in (100, 104, 108)
    ]
    for process in running:
        process.communicate(b"\n")
    assert [process.returncode for process in running] == [0, 0, 0]
    check_rows(store, 12)


def test_appended_rows_with_their_own_numbers_are_counted_from_the_rows_before(store: Path) -> None:
    with append_to(store) as w, append_to(store) as other:
        w.append(np.zeros((3, 4), np.float32), y=np.arange(3), row_id=np.array([2, 0, 1]))
        other.append(np.zeros((2, 4), np.float32), y=np.arange(2))
        other.publish()
    assert open_reader(store).column("row_id").tolist() == [0, 1, 2, 3, 4, 7, 5, 6]


@pytest.mark.parametrize(
    ("row_id", "message"),
    [
        ([-5, 1, 2], "'row_id' has the number -5, expected numbers from 0: leave it out"),
        ([0, 2**63 - 3, 1], "has the number 9223372036854775805, expected at most 9223372036854775804: 3 rows are"),
        ([0, 1], r"'row_id' has shape \(2,\), expected \(3,\)"),
        (np.ma.array([0, 1, 2], mask=[0, 1, 0]), "'row_id' has masked values"),
        ([0, 1, 2.5], "'row_id' has the value 2.5"),
    ],
    ids=["negative", "beyond 64 bits", "short", "masked", "fraction"],
)
def test_numbers_of_rows_that_are_none_are_refused(store: Path, row_id: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(append_to(store), (np.zeros((3, 4), np.float32), {"y": np.arange(3), "row_id": row_id}))
    assert open_reader(store).shape[0] == 3


def test_numbers_of_rows_fit_behind_the_rows_that_others_appended_meanwhile(store: Path) -> None:
    def append_more() -> None:
        write(append_to(store), (np.zeros((1, 4), np.float32), {"y": [7]}))

    highest = (np.zeros((1, 4), np.float32), {"y": [1], "row_id": [2**63 - 4]})
    with pytest.raises(ValueError, match="expected at most 9223372036854775803: 4 rows are before these"):
        write(append_to(store), highest, then=append_more)
    assert verify(open_reader(store)) == []
    assert open_reader(store).column("row_id").tolist() == [0, 1, 2, 3]


def test_an_appender_refuses_columns_that_changed_meanwhile(store: Path) -> None:
    w = append_to(store)
    w.append(**row_of(100))
    write(create(store, overwrite=True), (np.eye(4), {"z": np.arange(4)}))
    with pytest.raises(ValueError, match=r"columns changed while rows were appended: found \['z'\], expected \['y'\]"):
        write(w)
    assert open_reader(store).version == 2


@pytest.mark.parametrize("grow", [False, True])
def test_an_appender_widens_a_narrower_store_that_came_meanwhile_only_where_it_may(store: Path, grow: bool) -> None:
    w = append_to(store, grow_features=grow)
    w.append(**row_of(100))
    write(create(store, overwrite=True), (np.eye(3), {"y": np.arange(3)}))
    if grow:
        write(w)
    else:
        with pytest.raises(ValueError, match="x has 4 features, expected the store's 3; pass grow_features=True"):
            write(w)
    assert open_reader(store).shape == ((4, 4) if grow else (3, 3))
    assert verify(open_reader(store)) == []


def test_of_two_that_make_the_same_store_the_second_loses(path: Path) -> None:
    second = create(path)
    second.append(np.eye(2))
    write(create(path), (np.eye(3), {}))
    with pytest.raises(FileExistsError, match="another process made a store here meanwhile: append to it"):
        write(second)
    assert open_reader(path).shape == (3, 3)
    assert len([name for name in files(path) if name.endswith("segment.json")]) == 1
    assert verify(open_reader(path)) == []


def test_a_writer_that_gives_up_leaves_another_ones_store_alone(path: Path) -> None:
    with create(path, max_bytes=2) as second:
        second.append(np.eye(2))
        first = create(path)
        with pytest.raises(ZeroDivisionError):
            write(first, (np.eye(3), {}), then=raiser(ZeroDivisionError))
    assert open_reader(path).shape == (2, 2)


def test_what_a_writer_made_that_nobody_ended_is_garbage(store: Path) -> None:
    before = files(store)
    w = append_to(store, max_bytes=2)
    w.append(**row_of(100))
    assert maintain.gc(store, older_than=0) == []
    del w
    gc.collect()
    assert maintain.gc(store, older_than=0)
    assert files(store) == before


def test_gc_spares_what_is_published_while_it_looks(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = append_to(store, max_bytes=2)
    w.append(**row_of(100))
    real = maintain._Writers.of

    def slow(*arguments: Any, **options: Any) -> Any:
        w.publish()  # just before gc asks who is still writing
        return real(*arguments, **options)

    monkeypatch.setattr(maintain._Writers, "of", slow)
    maintain.gc(store, older_than="0s")
    check_rows(store, 1)


def test_gc_spares_what_a_new_writer_makes_while_it_looks(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Writer] = []
    real = maintain._Writers.of

    def slow(*arguments: Any, **options: Any) -> Any:
        living = real(*arguments, **options)
        started.append(append_to(store, max_bytes=2))  # just after
        started[0].append(**row_of(100))
        return living

    monkeypatch.setattr(maintain._Writers, "of", slow)
    maintain.gc(store, older_than="0s")
    started[0].publish()
    check_rows(store, 1)


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("whole", [True, False], ids=["published", "begun"])
def test_a_store_made_while_another_writer_gives_up_keeps_its_zarr_json(
    path: Path, monkeypatch: pytest.MonkeyPatch, n: int, whole: bool
) -> None:
    real, steps, others = writer.remove_skeleton, list[str](), list[Writer]()

    def act() -> None:
        """What another process does just before the n-th step."""
        others.append(create(path, max_bytes=2))
        others[0].append(np.eye(4))
        if whole:
            others[0].publish()

    def step(function: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*arguments: Any, **options: Any) -> Any:
            steps.append(function.__name__)
            if len(steps) == n:
                act()
            return function(*arguments, **options)

        return taken

    def slow(storage: LocalStorage, **options: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(writer, "remove_skeleton", real)
            patch.setattr(Path, "rmdir", step(Path.rmdir))
            for name in ("read", "exists", "remove"):
                patch.setattr(LocalStorage, name, step(getattr(LocalStorage, name)))
            real(storage, **options)

    monkeypatch.setattr(writer, "remove_skeleton", slow)
    w = create(path, feature_names=["one too few"])
    with pytest.raises(ValueError, match="feature_names has 1 names"):  # zarr.json is made by then
        write(w, (np.eye(2), {}))
    monkeypatch.undo()
    (other,) = others
    if not whole:
        other.publish()
    assert open_reader(path).shape == (4, 4)
    assert verify(open_reader(path)) == []


def test_a_writer_that_gives_up_when_the_disk_failed_says_so_beside_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one begins when zarr.json was just taken away, which is put back then."""
    fsync, remove, others = os.fsync, LocalStorage.remove, list[Writer]()

    def fails(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().match("X/indices/c/0"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    def slow(self: LocalStorage, key: str) -> int:
        if key == "zarr.json":
            others.append(create(path))
        return remove(self, key)

    monkeypatch.setattr(os, "fsync", fails)
    monkeypatch.setattr(LocalStorage, "remove", slow)
    with pytest.raises(OSError, match="X/indices/c/0"):
        write(create(path), (np.eye(2), {}))
    monkeypatch.undo()
    write(others[0], (np.eye(4), {}))
    assert verify(open_reader(path)) == []


def before_call(monkeypatch: pytest.MonkeyPatch, name: str, n: int, act: Callable[[], Any]) -> list[str]:
    """Have another process do something just before the n-th call of a function of `manifest`; the calls so far."""
    real, calls = getattr(manifest, name), list[str]()

    def slow(*arguments: Any) -> Any:
        calls.append(name)
        if len(calls) == n:
            act()
        return real(*arguments)

    monkeypatch.setattr(manifest, name, slow)
    return calls


def several_versions(path: Path) -> None:
    """Four versions more."""
    for number in range(4):
        with append_to(path) as w:
            w.append(**row_of(100 + number))


@pytest.mark.parametrize(("name", "n"), [("read_manifest", 1), ("read_manifest", 3), ("segment_lines", 3)])
@pytest.mark.parametrize("then", ["nothing", "append", "overwrite"])
def test_gc_goes_on_beside_a_gc_that_removes_what_it_looks_at(
    store: Path, monkeypatch: pytest.MonkeyPatch, name: str, n: int, then: str
) -> None:
    """Versions, and pages, are gone that were listed; in place of the newest there may be a newer one."""

    def act() -> None:
        monkeypatch.undo()
        if then == "append":
            write(append_to(store), ([[0, 104, 0, 0]], {"y": [104]}))
        elif then == "overwrite":
            write(create(store, overwrite=True), (np.eye(2, 4), {"y": [0, 1]}))
        maintain.gc(store, older_than=0)

    monkeypatch.setattr(writer, "INLINE_SEGMENTS", 1)
    several_versions(store)
    calls = before_call(monkeypatch, name, n, act)
    found = manifest.needed_keys(LocalStorage(store))
    assert len(calls) == n
    assert found.keys() >= manifest.needed_keys(LocalStorage(store)).keys()
    assert len(versions(LocalStorage(store))) == 1


def test_an_append_that_finds_a_dead_journal_goes_on_beside_a_gc(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several_versions(store)
    append_to(store)._journal.release()  # as if killed
    real = conversion.needed_keys

    def slow(*arguments: Any) -> Any:
        before_call(monkeypatch, "read_manifest", 1, lambda: maintain.gc(store))
        return real(*arguments)

    monkeypatch.setattr(conversion, "needed_keys", slow)
    append_source(np.array([[0, 104, 0, 0]], np.float32), store, columns={"y": np.array([104])}, progress=False)
    assert versions(LocalStorage(store)) == [5, 6]
    check_rows(store, 5)


def test_gc_tells_of_a_version_that_is_damaged_and_removes_nothing(store: Path) -> None:
    several_versions(store)
    (store / "versions/00000003.json").write_bytes(b"{")
    before = files(store)
    with pytest.raises(CorruptStoreError, match=r"00000003\.json"):
        maintain.gc(store, keep_versions=3, older_than=0)
    assert files(store) == before


def test_a_writer_whose_journal_gc_looked_at_takes_another(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    real, taken = fcntl.flock, []

    def contended(descriptor: int, operation: int) -> None:
        if not taken:
            taken.append(descriptor)
            raise BlockingIOError
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", contended)
    w = append_to(store, max_bytes=2)
    monkeypatch.undo()
    w.append(**row_of(100))
    maintain.gc(store, older_than="0s")
    w.publish()
    check_rows(store, 1)


# ----------------------------------------------------------------------------------------------------------- pages


def test_many_segments_go_through_pages(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "INLINE_SEGMENTS", 4)
    for number in range(10):
        with append_to(store) as w:
            w.append(**row_of(100 + number))
    reader = open_reader(store)
    assert [page.segments for page in reader.manifest.pages] == [4, 4]
    assert len(reader.manifest.segments) == 3
    check_rows(store, 10)
    assert reader.column("y").tolist()[3:] == list(range(100, 110))
    assert open_reader(store, 5).shape[0] == 7  # versions from before the pages too


def test_a_page_is_written_when_more_than_256_segments_are_published_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with create(path, max_bytes=2) as w:
        for number in range(258):
            w.append(one_value(number, "int64"))
            w._close_segment()
    manifest = open_reader(path).manifest
    assert ([page.segments for page in manifest.pages], len(manifest.segments)) == ([256], 2)
    assert everything(path).data.tolist() == list(range(258))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_readers_and_writers_hold_no_files(store: Path) -> None:
    for number in range(10):
        with append_to(store) as w:
            w.append(**row_of(100 + number))
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = open_reader(store)
    kept = reader.locate(np.arange(13))
    reader.column("y")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    reader.close()
    assert kept.take().shape == (13, 4)  # what was found stays valid


def test_what_is_read_stays_valid_when_the_store_is_gone(store: Path) -> None:
    reader = open_reader(store)
    found, rows = reader.locate(np.arange(3)), reader.read(0, 3)
    reader.close()
    open_storage(store).remove("")
    np.testing.assert_array_equal(found.take().to_dense(), np.eye(3, 4))
    np.testing.assert_array_equal(rows.to_dense(), np.eye(3, 4))


def test_attributes_may_change_until_publication(store: Path) -> None:
    with append_to(store, attrs={"source": "b"}) as w:
        w.append(**row_of(100))
        w.attrs["rows"] = w.n_rows
    assert open_reader(store).manifest.attrs == {"source": "b", "rows": 1}


def test_a_writer_shows_what_it_has(path: Path) -> None:
    w = create(path)
    w.append(np.eye(3))
    assert repr(w) == f"<Writer of {str(path)!r}: 3 rows, 3 entries, open>"
    assert (w.n_rows, w.nnz) == (3, 3)
    w.abort()
    assert repr(w).endswith("closed>")


def test_values_too_wide_for_the_format_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="up to 64 bits"), create(path) as w:
        w.append(np.eye(2, dtype=np.longdouble))


def test_a_column_of_another_shape_than_the_manifest_says_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsestore.format import ColumnSchema

    reader = open_reader(store)
    reader.manifest.columns["y"] = ColumnSchema("int64", (2,))
    with pytest.raises(FormatError, match=r"column 'y' is int64 \(3,\) in segment .*, expected int64 \(3, 2\)"):
        reader.column("y")


def test_the_default_bound_is_that_of_the_documentation() -> None:
    assert writer.HOLD_BYTES == 64 << 20
    assert layout.SHARD == 16 << 20
    assert isinstance(Writer, type)


def test_names_may_change_until_a_version_is_published(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: LocalStorage, key: str, payload: bytes, temporary: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    w = create(path, feature_names=["a", "b"])
    w.append(np.eye(2))
    w._storage.publish("zarr.json", dump(root_document("0" * 32)), w._journal.temporary)
    monkeypatch.setattr(LocalStorage, "publish", full_disk)
    with pytest.raises(OSError, match="No space left"):
        w.publish()
    monkeypatch.undo()
    w.feature_names = ["a", "c"]
    w.publish()
    manifest = read_manifest(open_storage(path))
    assert manifest.features is not None
    assert read_names(open_storage(path), manifest.features, 2).tolist() == ["a", "c"]
    assert [entry.name for entry in (path / "features").iterdir()] == [manifest.features.id]


def test_a_version_is_not_published_by_a_second_try_after_the_disk_failed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fails(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().match("X/indices/c/0"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    writer = create(path)
    writer.append(np.eye(4))
    monkeypatch.setattr(os, "fsync", fails)
    for _ in range(2):
        with pytest.raises(OSError, match="X/indices/c/0"):
            writer.publish()
        monkeypatch.setattr(os, "fsync", real)
    writer.abort()
    assert not path.exists()
