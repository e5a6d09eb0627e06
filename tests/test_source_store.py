"""Another store as a source: rows, columns, row numbers and order arrive as they were, in bounded memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import sparsestore as ss
from sparsestore import writer
from sparsestore.convert import append_source
from sparsestore.maintain import gc
from sparsestore.sources.registry import open_source

N = 700


def matrix(seed: int = 0, dtype: str = "float32") -> sparse.csr_array:
    x = sparse.random_array((N, 40), density=0.1, rng=np.random.default_rng(seed), format="csr")
    x.data = np.round(x.data * 100) + 1
    return x.astype(dtype)


def columns() -> dict[str, object]:
    rng = np.random.default_rng(1)
    return {
        "y": rng.integers(0, 3, N),
        "two": rng.random((N, 2)).astype(np.float32),
        "name": np.array([f"row {i}" for i in range(N)], object),
        "age": np.ma.MaskedArray(rng.integers(0, 99, N), rng.random(N) < 0.3),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two segments."""
    given_ = columns()
    store = ss.convert(matrix()[:500], tmp_path / "a.zarr", columns={k: v[:500] for k, v in given_.items()})  # type: ignore[index]
    store.append(matrix()[500:], **{k: v[500:] for k, v in given_.items()})  # type: ignore[index]
    return tmp_path / "a.zarr"


def same(found: ss.Store, expected: ss.View) -> None:
    """Rows and all columns are equal."""
    np.testing.assert_array_equal(found[:].toarray(), expected[:].toarray())
    assert dict(found.columns) == dict(expected.columns)
    assert found.dtype == expected.dtype
    for name in expected.columns:
        a, b = found.column(name)[:], expected.column(name)[:]
        np.testing.assert_array_equal(np.ma.getdata(a), np.ma.getdata(b))
        np.testing.assert_array_equal(np.ma.getmaskarray(a), np.ma.getmaskarray(b))


def test_a_store_is_a_source(path: Path) -> None:
    source = open_source(path)
    check_source(source, matrix(), {name: values for name, values in columns().items() if name in ("y", "two")})
    assert source.provenance()["version"] == 2
    check_source(open_source(path, store_version=1), matrix()[:500])


@pytest.mark.parametrize("profile", ["raw", "compact"])
def test_a_copy_is_equal_in_either_profile(path: Path, tmp_path: Path, profile: str) -> None:
    store = ss.convert(path, tmp_path / "b.zarr", profile=profile)
    same(store, ss.open(path))
    assert store.verify() == []
    assert store.attrs["source"]["origin"]["source"] == "scipy csr_array in memory"


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", "float64"])
def test_dtypes_stay(tmp_path: Path, dtype: str) -> None:
    x = matrix().toarray()
    ss.convert((x > 50 if dtype == "bool" else x).astype(dtype), tmp_path / "a.zarr")
    store = ss.convert(ss.open(tmp_path / "a.zarr"), tmp_path / "b.zarr")
    assert store.dtype == dtype
    same(store, ss.open(tmp_path / "a.zarr"))


def test_another_dtype_must_hold_the_values(tmp_path: Path) -> None:
    ss.convert(np.array([[300, 0]], np.int16), tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="value 300 does not fit int8: give a wider dtype="):
        ss.convert(tmp_path / "a.zarr", tmp_path / "b.zarr", dtype="int8")
    assert not (tmp_path / "b.zarr").exists()
    assert ss.convert(tmp_path / "a.zarr", tmp_path / "b.zarr", dtype="float64").dtype == "float64"


def test_rows_and_features_are_chosen(path: Path, tmp_path: Path) -> None:
    store = ss.open(path)
    for rows, select, expected in (
        ("10:20", None, store.select(rows=slice(10, 20))),
        (slice(None, None, 3), "3,7-9", store.select(rows=slice(None, None, 3), features=[3, 7, 8, 9])),
        ("-5:", [9, 0, 4], store.select(rows=slice(-5, None), features=[9, 0, 4])),
        ("::-1", None, store.select(rows=slice(None, None, -1))),
    ):
        found = ss.convert(path, tmp_path / "b.zarr", rows=rows, select=select, overwrite=True)
        same(found, expected)


def test_a_view_is_a_source(path: Path, tmp_path: Path) -> None:
    train, val = ss.open(path).split(0.8, seed=0)
    same(ss.convert(train, tmp_path / "train.zarr"), train)
    same(ss.convert(val.select(features=[5, 2]), tmp_path / "val.zarr"), val.select(features=[5, 2]))
    some = ss.open(path).select(rows=[600, 3, 3, 77])
    same(ss.convert(some, tmp_path / "some.zarr"), some)
    check_source(open_source(train), train[:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "10"}, "rows='10', expected start:stop"),
        ({"rows": "a:b"}, "rows='a:b', expected start:stop"),
        ({"rows": "0:5:0"}, "rows='0:5:0', expected start:stop"),
        ({"rows": slice(0, 5, 0)}, r"rows=slice\(0, 5, 0\), expected start:stop"),
        ({"select": "3,x"}, "select='3,x': found 'x', expected a feature number, such as 3,7-9"),
        ({"select": "9-3"}, "'9-3', expected ascending numbers up to 39"),
        ({"select": "40"}, "'40', expected ascending numbers up to 39"),
        ({"select": [40]}, "select: index 40 is out of bounds"),
        ({"store_version": 7}, "there is no version 7, there are 1 to 2"),
        ({"n_features": 5}, "has 40 features, expected at most n_features=5"),
        ({"zero_based": True}, "zero_based: no option of format sparsestore"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(
    path: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ss.convert(path, tmp_path / "b.zarr", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "b.zarr").exists()


def test_a_version_is_not_for_a_store_that_is_open(path: Path) -> None:
    with pytest.raises(ValueError, match="store_version=1 is for a path"):
        open_source(ss.open(path), store_version=1)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such store"):
        ss.convert(tmp_path / "none.zarr", tmp_path / "b.zarr")
    (tmp_path / "folder.zarr").mkdir()
    with pytest.raises(FileNotFoundError, match="is no sparsestore"):
        ss.convert(tmp_path / "folder.zarr", tmp_path / "b.zarr")


def test_row_numbers_and_the_order_stay_known(path: Path, tmp_path: Path) -> None:
    shuffled = ss.convert(path, tmp_path / "b.zarr", shuffle=True, seed=5)
    order = shuffled.column("row_id")[:]
    assert sorted(order) == list(range(N))
    copy = ss.convert(shuffled, tmp_path / "c.zarr", profile="compact")
    np.testing.assert_array_equal(copy.column("row_id")[:], order)
    assert copy._reader.manifest.shuffled == {"method": "exact", "seed": 5}
    again = ss.convert(copy, tmp_path / "d.zarr", shuffle=True, seed=6)
    numbers = again.column("row_id")[:]
    assert sorted(numbers) == list(range(N))
    assert not np.array_equal(numbers, order)
    np.testing.assert_array_equal(again[:].toarray(), matrix()[numbers].toarray())
    assert again.verify() == []
    backwards = ss.convert(shuffled, tmp_path / "e.zarr", rows="::-1")
    assert backwards._reader.manifest.shuffled is None
    np.testing.assert_array_equal(backwards.column("row_id")[:], order[::-1])


def test_a_store_can_be_shuffled_into_itself(path: Path) -> None:
    before = ss.open(path)
    after = ss.convert(path, path, shuffle=True, seed=1, overwrite=True)
    assert after.version == 3
    same(before, ss.open(path, version=2))  # who has it open reads on
    np.testing.assert_array_equal(after[:].toarray(), matrix()[after.column("row_id")[:]].toarray())
    gc(path, older_than="0s")
    assert ss.open(path).verify() == []


def test_a_store_is_appended_to_another(path: Path, tmp_path: Path) -> None:
    store = ss.convert(path, tmp_path / "b.zarr")
    append_source(ss.open(path).select(rows=slice(5)), tmp_path / "b.zarr")
    store = ss.open(tmp_path / "b.zarr")
    assert store.shape == (N + 5, 40)
    np.testing.assert_array_equal(store[N:].toarray(), matrix()[:5].toarray())


def test_an_interrupted_copy_goes_on_and_another_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversion = sys.modules["sparsestore.convert"]  # the name is that of a function too
    monkeypatch.setattr(writer, "PART_BYTES", 1)
    monkeypatch.setattr(conversion, "WRITER_BYTES", 2_000)
    monkeypatch.setattr(conversion, "BLOCK_BYTES", 1 << 14)
    plain, calls = writer.Writer.write, []

    def write(self: writer.Writer, *arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        plain(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "write", write)
        with pytest.raises(KeyboardInterrupt):
            ss.convert(path, tmp_path / "b.zarr", max_bytes="24MiB")
    with pytest.raises(FileExistsError, match="an unfinished conversion is there"):
        ss.convert(path, tmp_path / "b.zarr", rows=":600", max_bytes="24MiB")
    same(ss.convert(path, tmp_path / "b.zarr", max_bytes="24MiB"), ss.open(path))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), max_bytes=st.sampled_from([1000, 50_000, 1 << 22]))
def test_any_selection_is_read_as_the_view_reads_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, max_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "selected.zarr"
    if not path.exists():
        ss.convert(matrix()[:300], path).append(matrix()[300:350])
    store = ss.open(path)
    rows = data.draw(
        st.lists(st.integers(0, 349), max_size=60)
        | st.slices(350)
        | st.lists(st.booleans(), min_size=350, max_size=350)
    )
    features = data.draw(st.none() | st.lists(st.integers(0, 39), min_size=1, max_size=8))
    view = store.select(rows=rows, features=features)
    found, _ = read(open_source(view), max_bytes)
    np.testing.assert_array_equal(found.toarray(), view[:].toarray())


def test_memory_is_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = sparse.random_array((200_000, 1000), density=0.02, rng=rng, format="csr", dtype=np.float32)
    ss.convert(x, tmp_path / "a.zarr", columns={"y": np.arange(200_000)})
    ss.convert(x[:10], tmp_path / "warm.zarr", columns={"y": np.arange(10)})
    code = """
    import sys
    from sparsestore.sources.registry import open_source
    max_bytes = 4 << 20
    source, warm = open_source(sys.argv[1]), open_source(sys.argv[2])
    """
    assert peak_of_reading(code, tmp_path / "a.zarr", tmp_path / "warm.zarr") <= (4 << 20) + (8 << 20)


def test_the_command_copies_a_store(path: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from sparsestore.cli import app

    found = CliRunner().invoke(
        app,
        ["convert", str(path), str(tmp_path / "b.zarr"), "--rows", "5:15", "--select", "0-9", "--store-version", "1"],
    )
    assert found.exit_code == 0, found.output
    same(ss.open(tmp_path / "b.zarr"), ss.open(path).select(rows=slice(5, 15), features=range(10)))
