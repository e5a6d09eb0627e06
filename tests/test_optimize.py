"""Merging segments: the same rows in fewer files, whatever others do meanwhile, wherever it is interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peak import peak_of
from scipy import sparse

import sparsestore as ss
from sparsestore import maintain, writer
from sparsestore.checksum import crc32c
from sparsestore.convert import append_source
from sparsestore.documents import dump, seal
from sparsestore.format import INLINE_SEGMENTS, ObjectEntry, PageEntry, SegmentLine, manifest_key
from sparsestore.maintain import gc, mergeable, optimize
from sparsestore.storage import LocalStorage

conversion = sys.modules["sparsestore.convert"]  # the package's own name is that of the function


def matrix(n: int, seed: int = 0) -> sparse.csr_array:
    x = sparse.random_array((n, 40), density=0.2, rng=np.random.default_rng(seed), format="csr", dtype=np.float32)
    x.data = np.round(x.data * 100) + 1
    return x


def columns(n: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "y": rng.integers(0, 3, n),
        "two": rng.random((n, 2)).astype(np.float32),
        "name": np.array([f"row {i}" for i in range(n)], object),
        "age": np.ma.MaskedArray(rng.integers(0, 99, n), rng.random(n) < 0.3),
    }


def filled(path: Path, n: int = 100, a_segment: int = 10) -> ss.Store:
    """A store that was appended to, a segment for each few rows."""
    x, beside = matrix(n), columns(n)
    for start in range(0, n, a_segment):
        part = slice(start, start + a_segment)
        cut = {name: values[part] for name, values in beside.items()}
        if start:
            ss.open(path).append(x[part], **cut)
        else:
            names = [f"feature {i}" for i in range(40)]
            ss.convert(x[part], path, columns=cut, progress=False, feature_names=names)
    return ss.open(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten segments of ten rows."""
    filled(tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def same(found: ss.Store, expected: ss.Store, order: Any = slice(None)) -> None:
    """Rows, columns, masks, numbers of rows, names and attrs are equal."""
    assert found.verify(progress=False) == []
    assert found.shape == expected.shape
    assert found.nnz == expected.nnz
    assert found.dtype == expected.dtype
    assert found.attrs == expected.attrs
    assert found._reader.manifest.columns == expected._reader.manifest.columns
    np.testing.assert_array_equal(found.feature_names, expected.feature_names)
    np.testing.assert_array_equal(found[:].toarray(), expected[order].toarray())
    for name in (*expected.columns, "row_id"):
        a, b = found.column(name)[:], expected.column(name)[order]
        np.testing.assert_array_equal(np.ma.getmaskarray(a), np.ma.getmaskarray(b))
        np.testing.assert_array_equal(np.ma.getdata(a), np.ma.getdata(b))


def segments(path: Path) -> int:
    return len(ss.open(path)._reader.lines)


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def parts_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of at most so many rows of `matrix`, about."""
    monkeypatch.setattr(writer, "PART_BYTES", rows * 150)


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Do something once, when all rows have been written and nothing is published."""
    real, done = writer.Writer.publish, list[bool]()

    def publish(self: writer.Writer) -> int:
        if not done and self._mode == "rewrite":
            done.append(True)
            act()
        return real(self)

    monkeypatch.setattr(writer.Writer, "publish", publish)


def interrupted(monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException, **options: Any) -> None:
    """Optimize, and raise in the writer when it has so many rows."""
    real = writer.Writer.write

    def write(self: writer.Writer, x: Any, columns: Any, **named: Any) -> None:
        if self._mode == "rewrite" and self.n_rows >= rows:
            raise error
        real(self, x, columns, **named)

    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "write", write)
        with pytest.raises(type(error)):
            optimize(progress=False, **options)


# ------------------------------------------------------------------------------------------------------- which ones


def lines(n: int, shuffled: tuple[int, ...] = ()) -> list[SegmentLine]:
    return [SegmentLine(str(i), 1, 1, 0, i in shuffled) for i in range(n)]


@pytest.mark.parametrize(
    ("sizes", "shuffled", "changed", "expected"),
    [
        pytest.param([10] * 5, (), None, [range(5)], id="all"),
        pytest.param([10], (), None, [], id="one-alone"),
        pytest.param([], (), None, [], id="none"),
        pytest.param([10, 60, 10], (), None, [], id="a-large-one-between"),
        pytest.param([49] * 4, (), None, [range(2), range(2, 4)], id="cut-at-the-limit"),
        pytest.param([60, 10, 10, 60, 10, 10], (), None, [range(1, 3), range(4, 6)], id="two-runs"),
        pytest.param([10] * 5, (2,), None, [range(2), range(3, 5)], id="shuffled-ones-stay"),
        pytest.param([10, 60, 10], (2,), [False, True, True], [range(1, 2), range(2, 3)], id="another-profile"),
    ],
)
def test_small_neighbours_are_merged(
    sizes: list[int], shuffled: tuple[int, ...], changed: list[bool] | None, expected: list[range]
) -> None:
    assert mergeable(lines(len(sizes), shuffled), sizes, 100, changed) == expected


@given(st.lists(st.integers(1, 120), max_size=40), st.integers(1, 100))
def test_merging_twice_finds_nothing_the_second_time(sizes: list[int], limit: int) -> None:
    groups = mergeable(lines(len(sizes)), sizes, limit)
    after, at = list[int](), 0
    for group in groups:
        after += [*sizes[at : group.start], sum(sizes[group.start : group.stop])]
        at = group.stop
    after += sizes[at:]
    assert sum(after) == sum(sizes)
    assert mergeable(lines(len(after)), after, limit) == []


# ------------------------------------------------------------------------------------------------------ the same rows


def test_small_segments_become_one_and_nothing_else_changes(path: Path) -> None:
    before = ss.open(path)
    store = before.optimize(progress=False)
    assert (segments(path), store.version) == (1, before.version + 1)
    same(store, before)
    assert store._reader.manifest.parent == before.version


def test_who_has_it_open_reads_on_and_gc_removes_the_rest(path: Path) -> None:
    before = ss.open(path)
    rows = before[:].toarray()
    after = before.optimize(progress=False)
    np.testing.assert_array_equal(ss.open(path, version=before.version)[:].toarray(), rows)
    before[:5]
    gc(path, older_than="0s")
    np.testing.assert_array_equal(before[:].toarray(), rows)  # mapped already
    assert len(list((path / "segments").iterdir())) == 1
    assert after.verify(progress=False) == []


def test_a_store_without_small_segments_stays(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ss.open(path).optimize(progress=False)
    there = files(path)
    with caplog.at_level("INFO"):
        assert optimize(path, progress=False) == store.version
    assert "nothing to merge: 1 segment" in caplog.text
    assert files(path) == there


def test_an_empty_store_stays(tmp_path: Path) -> None:
    with ss.create(tmp_path / "s.zarr", n_features=3):
        pass
    assert optimize(tmp_path / "s.zarr") == 1
    assert optimize(tmp_path / "s.zarr", reshuffle=True) == 1


def test_segments_are_cut_where_they_are_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts_of(30, monkeypatch)
    before = ss.open(path)
    same(before.optimize(progress=False), before)
    n = segments(path)
    assert 2 < n < 10
    assert optimize(path) == before.version + 1  # to merge again finds nothing
    before = ss.open(path)
    store = before.append(matrix(10), **columns(10))
    same(store.optimize(progress=False), store)


@pytest.mark.slow
def test_many_segments_stand_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintain, "_OPEN_SEGMENTS", 7)
    store = filled(tmp_path / "s.zarr", n=270, a_segment=1)
    assert store._reader.manifest.pages
    same(store.optimize(progress=False), store)
    assert segments(tmp_path / "s.zarr") == 1


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_segments_become_the_same_rows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("any") / "s.zarr"
    values = {
        "ones": st.just(1.0),
        "counts": st.integers(0, 300).map(float),
        "negative": st.integers(-3, 3).map(float),
        "floats": st.floats(width=32),
    }
    dtype = data.draw(st.sampled_from(["float32", "float64", "float16", "int64"]))
    kinds = ["ones", "counts", "negative"] + ["floats"] * (dtype in ("float32", "float64"))
    store = None
    for _ in range(data.draw(st.integers(1, 8))):
        n = data.draw(st.integers(1, 5))
        x = np.zeros((n, 6), np.float64)
        cells = st.tuples(st.integers(0, n - 1), st.integers(0, 5))
        for cell in data.draw(st.lists(cells, max_size=8)):
            x[cell] = data.draw(values[data.draw(st.sampled_from(kinds))])
        with np.errstate(over="ignore"):
            rows = sparse.csr_array(x).astype(np.float32 if dtype == "float16" else dtype)
        y = np.ma.MaskedArray(np.arange(n), data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        if store is None:
            options = {"dtype": dtype} if dtype != "float16" else {}
            store = ss.convert(rows, path, columns={"y": y}, progress=False, **options)  # type: ignore[arg-type]
        else:
            append_source(rows, path, columns={"y": y}, shuffle=data.draw(st.booleans()), progress=False)
            store = ss.open(path)
    assert store is not None
    shuffled = [line.shuffled for line in store._reader.lines]
    after = store.optimize(progress=False)
    same(after, store)
    found = [line.shuffled for line in after._reader.lines]
    assert sum(found) == sum(shuffled)
    assert not any(a is b is False for a, b in pairwise(found))  # neighbours that could be one
    assert optimize(path) == after.version
    again = after.optimize(reshuffle=True, seed=data.draw(st.integers(0, 5)), progress=False)
    order = np.searchsorted(np.sort(store.column("row_id")[:]), again.column("row_id")[:])
    same(again, store, np.argsort(store.column("row_id")[:])[order])


# ------------------------------------------------------------------------------------------------ shuffled, profiles


def test_shuffled_segments_stay_as_they_are(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        append_source(matrix(50), path, columns=columns(50), shuffle=True, seed=3, progress=False)
    before = ss.open(path)
    after = before.optimize(progress=False)
    same(after, before)
    assert [line.shuffled for line in after._reader.lines] == [False, True, True]
    assert [a.id for a in after._reader.lines[1:]] == [b.id for b in before._reader.lines[-2:]]
    with caplog.at_level("INFO"):
        optimize(path)
    assert "2 of 3 segments are shuffled, each in an order of its own: reshuffle=True" in caplog.text


def test_all_rows_are_shuffled_and_keep_their_numbers(path: Path) -> None:
    append_source(matrix(50), path, columns=columns(50), shuffle=True, seed=3, progress=False)
    before = ss.open(path)
    after = before.optimize(reshuffle=True, seed=7, progress=False)
    numbers = after.column("row_id")[:]
    assert sorted(numbers) == list(range(150))
    by_number = np.argsort(before.column("row_id")[:])
    same(after, before, by_number[numbers])
    assert not np.array_equal(numbers, before.column("row_id")[:])
    assert after._reader.manifest.shuffled == {"method": "exact", "seed": 7}
    assert segments(path) == 1
    again = ss.open(path).optimize(reshuffle=True, seed=7, progress=False)
    assert sorted(again.column("row_id")[:]) == list(range(150))


@pytest.mark.parametrize("n", [0, 3], ids=["an empty store", "segments that have it"])
def test_another_profile_is_that_of_segments_to_come_where_none_is_to_be_written(tmp_path: Path, n: int) -> None:
    path = tmp_path / "s.zarr"
    ss.convert(np.empty((0, 40), np.float32), path, progress=False)
    if n:
        with writer.append_to(path, profile="compact") as w:
            w.append(matrix(n))
    before = ss.open(path)
    after = before.optimize(profile="compact", progress=False)
    same(after, before)
    assert [line.id for line in after._reader.lines] == [line.id for line in before._reader.lines]
    assert after.version == before.version + 1
    assert after._reader.manifest.profile == "compact"
    assert optimize(path, profile="compact") == after.version
    appended = after.append(matrix(5))
    assert appended._reader.segment(n and 1).document.profile == "compact"


@pytest.mark.parametrize("first", [0, 1], ids=["in later rows", "in earlier rows"])
def test_rows_of_which_only_some_segments_have_missing_values_are_shuffled(tmp_path: Path, first: int) -> None:
    n = 70_000  # more than a block
    x = sparse.csr_array((np.ones(n), np.arange(n) % 4, np.arange(n + 1)), shape=(n, 4))
    parts = [(x, np.arange(n)), (x[:4], np.ma.MaskedArray([1, 2, 3, 4], [0, 1, 0, 0]))]
    (x, y), (more, later) = parts[first], parts[1 - first]
    before = ss.convert(x, tmp_path / "s.zarr", columns={"y": y}, progress=False).append(more, y=later)
    after = before.optimize(reshuffle=True, seed=0, progress=False)
    numbers = after.column("row_id")[:]
    found, given = after.column("y")[:], before.column("y")[:][numbers]
    np.testing.assert_array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(given))
    np.testing.assert_array_equal(found.filled(-1), given.filled(-1))
    assert (after[:] != before[numbers]).nnz == 0
    assert after.verify() == []


def test_another_profile_is_written_without_merging_what_stays(path: Path) -> None:
    before = ss.open(path)
    after = before.optimize(profile="compact", progress=False)
    same(after, before)
    assert after._reader.manifest.profile == "compact"
    assert after._reader.segment(0).document.profile == "compact"
    assert optimize(path, profile="compact") == after.version
    append_source(matrix(50), path, columns=columns(50), shuffle=True, progress=False)
    before = ss.open(path)
    after = before.optimize(profile="raw", progress=False)
    same(after, before)
    assert [line.shuffled for line in after._reader.lines] == [False, True]
    assert {after._reader.segment(i).document.profile for i in range(2)} == {"raw"}


# ---------------------------------------------------------------------------------------------- others at the same time


@pytest.mark.parametrize("reshuffle", [False, True])
def test_rows_that_are_appended_meanwhile_stay(path: Path, monkeypatch: pytest.MonkeyPatch, reshuffle: bool) -> None:
    before = ss.open(path)
    meanwhile(monkeypatch, lambda: before.append(matrix(5, seed=9), **columns(5)))
    after = before.optimize(reshuffle=reshuffle, progress=False)
    assert after.shape == (105, 40)
    assert after.verify(progress=False) == []
    assert segments(path) == 2
    np.testing.assert_array_equal(after[100:].toarray(), matrix(5, seed=9).toarray())
    np.testing.assert_array_equal(after.column("row_id")[100:], np.arange(100, 105))
    np.testing.assert_array_equal(after[:100].toarray(), before[after.column("row_id")[:100]].toarray())
    assert after._reader.manifest.shuffled is None


def test_wider_rows_and_dtypes_that_are_appended_meanwhile_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ss.convert(matrix(5), tmp_path / "s.zarr").append(matrix(5))
    wide = sparse.csr_array(np.full((2, 50), 0.1))
    meanwhile(monkeypatch, lambda: store.append(wide, grow_features=True))
    after = store.optimize(progress=False)
    assert (after.shape, after.dtype, segments(tmp_path / "s.zarr")) == ((12, 50), np.float64, 2)
    np.testing.assert_array_equal(after[10:].toarray(), wide.toarray())
    assert after.verify(progress=False) == []


@pytest.mark.parametrize("how", ["overwrite", "optimize"])
def test_rows_that_are_replaced_meanwhile_are_not_brought_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def act() -> None:
        if how == "overwrite":
            ss.convert(matrix(3), path, overwrite=True, progress=False)
        else:
            optimize(path, progress=False)

    meanwhile(monkeypatch, act)
    with pytest.raises(FileExistsError, match="version 11, published meanwhile, has other segments in place of"):
        optimize(path, progress=False)
    store = ss.open(path)
    assert store.version == 11
    assert store.verify(progress=False) == []
    assert len(list((path / "segments").iterdir())) == 10 + 1
    assert list((path / "writers").iterdir()) == []


# --------------------------------------------------------------------------------------------------------- interrupted


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows a block, some blocks a segment."""
    parts_of(30, monkeypatch)
    monkeypatch.setattr(conversion, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(conversion, "WRITER_BYTES", 2_000)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_one_harms_nothing_and_is_gone_on_with(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before = ss.open(path)
    interrupted(monkeypatch, 60, error(), path=path)
    assert ss.open(path).version == before.version
    same(ss.open(path), before)
    made = {segment.name for segment in (path / "segments").iterdir()} - {line.id for line in before._reader.lines}
    assert made
    store = before.append(matrix(5), **columns(5))  # nobody is in its way
    after = store.optimize(progress=False)
    same(after, store)
    assert made <= {line.id for line in after._reader.lines}
    assert list((path / "writers").iterdir()) == []


@pytest.mark.usefixtures("small_steps")
def test_one_that_can_not_be_gone_on_with_is_begun_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = ss.open(path)
    interrupted(monkeypatch, 60, KeyboardInterrupt(), path=path)
    with caplog.at_level("INFO"):
        after = before.optimize(profile="compact", progress=False)
    assert "beginning again" in caplog.text
    same(after, before)
    gc(path, older_than="0s")
    assert len(list((path / "segments").iterdir())) == segments(path)


@pytest.mark.usefixtures("small_steps")
def test_an_unfinished_append_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = ss.open(path), writer.Writer.write

    def write(self: writer.Writer, x: Any, columns: Any, **named: Any) -> None:
        if self._mode == "append" and self.n_rows >= 250:
            raise KeyboardInterrupt
        real(self, x, columns, **named)

    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "write", write)
        with pytest.raises(KeyboardInterrupt):
            append_source(matrix(400), path, columns=columns(400), max_bytes="24MiB", progress=False)
    kept = list((path / "writers").iterdir())
    assert kept
    same(before.optimize(progress=False), before)
    assert list((path / "writers").iterdir()) == kept
    append_source(matrix(400), path, columns=columns(400), max_bytes="24MiB", progress=False)
    assert ss.open(path).shape == (500, 40)
    assert ss.open(path).verify(progress=False) == []


def test_an_error_of_the_rows_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = files(path)
    interrupted(monkeypatch, 0, ValueError("bad"), path=path)
    assert files(path) == there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 3}, "seed is 3 but reshuffle is False"),
        ({"profile": "tight"}, "profile is 'tight', expected one of raw, compact"),
        ({"max_bytes": 1000}, "max_bytes is 1000, expected at least"),
    ],
)
def test_bad_arguments_are_refused(path: Path, options: dict[str, Any], message: str) -> None:
    there = files(path)
    with pytest.raises((ValueError, ss.errors.ResourceError), match=message):
        optimize(path, **options)
    assert files(path) == there


def test_there_must_be_a_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such store"):
        optimize(tmp_path / "none.zarr")


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("n_segments", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_memory_does_not_depend_on_the_number_of_segments(tmp_path: Path, n_segments: int) -> None:
    rng = np.random.default_rng(0)
    x = sparse.random_array((10, 1000), density=0.1, rng=rng, format="csr", dtype=np.float32)
    for name, n in (("warm", 3), ("s", n_segments)):
        store = ss.convert(x, tmp_path / name, columns={"y": np.arange(10)}, progress=False)
        (line,) = store._reader.lines
        again = [replace(line, row_id_start=10 * i) for i in range(n)]  # the same rows, many times over
        pages, storage = list[PageEntry](), LocalStorage(tmp_path / name)
        while len(again) > INLINE_SEGMENTS:
            page = {"format": 1, "segments": [each.to_json() for each in again[:INLINE_SEGMENTS]]}
            written = storage.put(f"versions/pages/{len(pages)}.json", dump(page))
            entry = ObjectEntry(written.key, written.length, written.crc32c)
            pages.append(PageEntry(entry, INLINE_SEGMENTS))
            again = again[INLINE_SEGMENTS:]
        changed = replace(
            store._reader.manifest,
            version=2,
            parent=1,
            rows=10 * n,
            nnz=line.nnz * n,
            segments=tuple(again),
            pages=tuple(pages),
        )
        storage.put(manifest_key(2), seal(changed.to_document(), crc32c))
    code = """
    import sys
    from sparsestore.maintain import optimize
    def work(path=None):
        optimize(path or sys.argv[1], max_bytes="24MiB", progress=False)
    work(sys.argv[2])
    """
    assert peak_of(code, tmp_path / "s", tmp_path / "warm") <= (24 << 20) + (2 << 20) + (16 << 20) + 512 * n_segments


# -------------------------------------------------------------------------------------------------------- command line


def run(*arguments: object, status: int = 0) -> str:
    command = [sys.executable, "-m", "sparsestore", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_the_command_merges_and_says_so(path: Path) -> None:
    found = json.loads(run("optimize", path, "--json"))
    assert (found["segments_before"], found["segments"], found["version"]) == (10, 1, 11)
    assert "nothing to merge" in run("optimize", path)
    assert "shuffled once, seed 4" in run("optimize", path, "--reshuffle", "--seed", 4)
    assert "seed is 4 but reshuffle is False" in run("optimize", path, "--seed", 4, status=1)
