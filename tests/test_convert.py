from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from peak import peak_of

from sparsestore import csr
from sparsestore.convert import append_source, convert
from sparsestore.errors import ResourceError
from sparsestore.manifest import read_manifest
from sparsestore.plan import shuffle
from sparsestore.reader import Reader
from sparsestore.sources.base import Block, Triples
from sparsestore.storage import open_storage

SMALL = 24 << 20


@dataclass
class FakeRows:
    """A source of rows that records the sizes it is asked for and may tell little, or fail, on the way."""

    x: sp.csr_array
    columns_given: dict[str, Any] = field(default_factory=dict)
    block_rows: int = 100
    knows_length: bool = True
    fails: BaseException | None = None
    name: str = "fake rows"
    dtype: np.dtype[Any] | None = None
    unit: str = "rows"
    sorted_rows: bool = True
    asked: list[int] = field(default_factory=list)

    @property
    def n_rows(self) -> int | None:
        return self.x.shape[0] if self.knows_length else None

    @property
    def n_features(self) -> int | None:
        return self.x.shape[1] if self.knows_length else None

    @property
    def size(self) -> int | None:
        return self.n_rows

    @property
    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (values.dtype.name, values.shape[1:]) for name, values in self.columns_given.items()}

    def provenance(self) -> dict[str, Any]:
        return {"path": "fake"}

    def blocks(self, max_bytes: int) -> Iterator[Any]:
        self.asked.append(max_bytes)
        rows = csr.from_scipy(self.x)
        for start in range(0, len(rows), self.block_rows):
            stop = min(start + self.block_rows, len(rows))
            yield Block(rows.slice(start, stop), {k: v[start:stop] for k, v in self.columns_given.items()}, stop)
        if self.fails is not None:
            raise self.fails


class FakeTriples(FakeRows):
    def blocks(self, max_bytes: int) -> Iterator[Any]:
        self.asked.append(max_bytes)
        coo = self.x.tocoo()
        order = np.random.default_rng(0).permutation(coo.nnz)
        rows, features = coo.coords[0].astype(np.int64)[order], coo.coords[1].astype(np.int64)[order]
        step = 50_000
        for start in range(0, coo.nnz, step):
            cut = slice(start, start + step)
            stop = min(start + step, coo.nnz) * self.x.shape[0] // max(1, coo.nnz)
            yield Triples(rows[cut], features[cut], coo.data[order][cut], stop)
        if self.fails is not None:
            raise self.fails


def triples_of(x: sp.csr_array, **options: Any) -> FakeTriples:
    return FakeTriples(x, sorted_rows=False, dtype=x.dtype, **options)


def matrix(n_rows: int, n_features: int = 50, density: float = 0.2) -> sp.csr_array:
    rng = np.random.default_rng(7)
    x = sp.random_array((n_rows, n_features), density=density, rng=rng, dtype=np.float32).tocsr()
    x.sort_indices()
    return x


class Opened:
    """All of a store in memory, by way of the reader."""

    def __init__(self, path: Path) -> None:
        self.manifest = read_manifest(open_storage(path))
        reader = Reader(open_storage(path), self.manifest)
        try:
            self.x = reader.read(0, reader.shape[0]).to_scipy()
            self.columns = {name: np.asarray(reader.column(name)) for name in reader.columns}
        finally:
            reader.close()


def order_of(n_rows: int, seed: int) -> Any:
    assert n_rows <= 65_536
    return np.argsort(shuffle.words(seed, 4, 0, 0, n_rows), kind="stable")


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


MAKERS: list[Any] = [pytest.param(FakeRows, id="rows"), pytest.param(triples_of, id="triples")]


@pytest.mark.parametrize("make", MAKERS)
def test_row_i_of_the_store_is_row_i_of_the_source(tmp_path: Path, make: Callable[..., FakeRows]) -> None:
    x = matrix(1000)
    x.data[np.isin(np.repeat(np.arange(1000), np.diff(x.indptr)), [0, 500, 999])] = 0
    x.eliminate_zeros()  # rows without entries, at both ends too
    dst = tmp_path / "a.zarr"
    assert convert(make(x), dst, columns={"y": list(range(1000)), "z": np.ones((1000, 2), np.float32)}) == 1
    found = Opened(dst)
    assert found.x.shape == x.shape
    assert (found.x != x).nnz == 0
    assert found.columns["y"].tolist() == list(range(1000))
    assert found.columns["z"].shape == (1000, 2)
    assert set(found.columns) == {"y", "z"}
    assert found.manifest.shuffled is None
    assert found.manifest.attrs["source"] == {"path": "fake", "columns": ["y", "z"]}
    assert left_in(tmp_path)[0] == "a.zarr"
    assert not [name for name in left_in(tmp_path) if ".tmp" in name]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("max_bytes", [SMALL, "1GiB"], ids=["files", "memory"])
@pytest.mark.parametrize("knows_length", [True, False])
def test_a_shuffle_is_the_same_for_every_budget(
    tmp_path: Path, make: Callable[..., FakeRows], max_bytes: int | str, knows_length: bool
) -> None:
    x = matrix(60_000)  # 600,000 entries: more than a sort holds of 24 MiB
    dst = tmp_path / "a.zarr"
    y = np.arange(60_000)
    source = make(x, block_rows=3000, knows_length=knows_length)  # triples that know it need no second pass
    convert(source, dst, columns={"y": y}, shuffle=True, seed=5, max_bytes=max_bytes)
    found, order = Opened(dst), order_of(60_000, 5)
    np.testing.assert_array_equal(found.columns["row_id"], order)
    np.testing.assert_array_equal(found.columns["y"], order)
    assert (found.x != x[order]).nnz == 0
    assert found.manifest.shuffled == {"method": "exact", "seed": 5}


@pytest.mark.parametrize("dense", [False, True], ids=["csr", "dense"])
def test_rows_of_a_matrix_in_memory_are_shuffled_where_they_stand(
    tmp_path: Path, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = matrix(30_000)
    given = x.toarray() if dense else x
    y, order = np.arange(30_000), order_of(30_000, 5)

    def no_files(*_: Any, **__: Any) -> Any:
        raise AssertionError("bucket files")

    monkeypatch.setattr(sys.modules[convert.__module__], "shuffled_blocks", no_files)
    calls: list[Any] = []
    dst = tmp_path / "a.zarr"
    convert(given, dst, columns={"y": y}, shuffle=True, seed=5, progress=lambda *call: calls.append(call))
    found = Opened(dst)
    np.testing.assert_array_equal(found.columns["row_id"], order)
    np.testing.assert_array_equal(found.columns["y"], order)
    assert (found.x != x[order]).nnz == 0
    assert found.manifest.shuffled == {"method": "exact", "seed": 5}
    assert calls[-1] == (30_000, 30_000, "rows")
    # the order takes 24 bytes a row, a quarter of what the writer leaves at the most: else there are files
    few = sp.csr_array((300_000, 2)) if not dense else np.zeros((300_000, 2), np.float32)
    with pytest.raises(AssertionError, match="bucket files"):
        convert(few, tmp_path / "b.zarr", shuffle=True, seed=5, max_bytes=SMALL)
    convert(few, tmp_path / "c.zarr", shuffle=True, seed=5)
    monkeypatch.undo()
    convert(few, tmp_path / "b.zarr", shuffle=True, seed=5, max_bytes=SMALL)
    by_files, taken = (Opened(tmp_path / name).columns["row_id"] for name in ("b.zarr", "c.zarr"))
    np.testing.assert_array_equal(by_files, taken)


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_triples_may_bring_columns_of_their_rows(tmp_path: Path, shuffle: bool) -> None:
    x = matrix(500)
    source = triples_of(x, columns_given={"y": np.arange(500.0)})
    source.beside = lambda rows: {"y": rows.astype(np.float64)}  # type: ignore[attr-defined]
    convert(source, tmp_path / "a.zarr", columns={"z": np.arange(500)}, shuffle=shuffle)
    found = Opened(tmp_path / "a.zarr")
    order = found.columns["row_id"] if shuffle else np.arange(500)
    np.testing.assert_array_equal(found.columns["y"], order)
    np.testing.assert_array_equal(found.columns["z"], order)
    assert (found.x != x[order]).nnz == 0


def test_an_error_of_a_shuffled_sort_names_the_row_of_the_source(tmp_path: Path) -> None:
    class Twice(FakeTriples):
        def blocks(self, max_bytes: int) -> Iterator[Any]:  # noqa: ARG002
            yield Triples(np.array([3, 77, 77]), np.array([1, 2, 2]), np.ones(3, np.float32), 100)

    source = Twice(matrix(100), sorted_rows=False)
    with pytest.raises(ValueError, match="row 77 has feature 2 more than once"):
        convert(source, tmp_path / "a.zarr", shuffle=True, duplicates="error")


def test_bucket_files_may_lie_in_another_folder(tmp_path: Path) -> None:
    seen: list[str] = []

    def look(*_: object) -> None:
        seen.extend(left_in(tmp_path / "scratch"))

    (tmp_path / "scratch").mkdir()
    source = FakeRows(matrix(60_000), block_rows=3000)
    convert(source, tmp_path / "a", shuffle=True, max_bytes=SMALL, scratch=tmp_path / "scratch", progress=look)
    assert any(name.endswith(".bin") for name in seen)
    assert left_in(tmp_path / "scratch") == []
    with pytest.raises(ValueError, match=r"scratch is '.*nowhere', expected a folder that is there"):
        convert(matrix(10), tmp_path / "b", scratch=tmp_path / "nowhere")


@pytest.mark.parametrize("n", [3, 30_000], ids=["in memory", "in bucket files"])
@pytest.mark.parametrize("kind", ["int64, uint64", "int64, float32", "masked", "texts"])
def test_columns_of_several_dtypes_come_through_a_shuffle_as_without_one(tmp_path: Path, n: int, kind: str) -> None:
    """Numpy's common dtype of whole numbers and others is float64, and text of fixed width is no object."""
    x = sp.csr_array(np.ones((n, 1), np.float32) * np.arange(20, dtype=np.float32))
    texts = [f"text number {i}" for i in range(n)]
    large = 2**60 + np.arange(n)
    pairs: dict[str, tuple[Any, Any]] = {
        "int64, uint64": (large, np.arange(n, dtype=np.uint64)),
        "int64, float32": (large, np.arange(n, dtype=np.float32)),
        "masked": (large, np.ma.array(np.full(n, np.nan, np.float32), mask=True)),
        "texts": (np.array(texts), np.array(texts, object)),
    }
    blocks = [(x, {"y": values}) for values in pairs[kind]] * (1 if n == 3 else 6)
    convert(blocks, tmp_path / "a", progress=False)
    convert(blocks, tmp_path / "b", shuffle=True, seed=0, max_bytes=SMALL, progress=False)
    one, other = Opened(tmp_path / "a"), Opened(tmp_path / "b")
    order = other.columns["row_id"]
    assert other.columns["y"].tolist() == one.columns["y"][order].tolist()
    assert (other.x != one.x[order]).nnz == 0


def test_a_seed_that_is_left_out_is_drawn_and_recorded(tmp_path: Path) -> None:
    x = matrix(300)
    seeds = []
    for name in "ab":
        convert(FakeRows(x), tmp_path / name, shuffle=True)
        found = Opened(tmp_path / name)
        shuffled = found.manifest.shuffled
        assert shuffled is not None
        np.testing.assert_array_equal(found.columns["row_id"], order_of(300, shuffled["seed"]))
        seeds.append(shuffled["seed"])
    assert seeds[0] != seeds[1]


def test_a_source_that_tells_its_shape_at_the_end_converts(tmp_path: Path) -> None:
    x = matrix(1000)
    convert(FakeRows(x, {"y": np.arange(1000.0)}, knows_length=False), tmp_path / "a", columns={"z": np.arange(1000)})
    found = Opened(tmp_path / "a")
    assert (found.x != x).nnz == 0
    assert set(found.columns) == {"y", "z"}


@pytest.mark.parametrize("make", MAKERS)
def test_a_source_without_rows_gives_an_empty_store(tmp_path: Path, make: Callable[..., FakeRows]) -> None:
    for shuffled in (False, True):
        convert(make(sp.csr_array((0, 7), dtype=np.float32)), tmp_path / "a", shuffle=shuffled, overwrite=True)
        assert Opened(tmp_path / "a").x.shape == (0, 7)


def test_appended_rows_follow_and_their_row_ids_go_on(tmp_path: Path) -> None:
    x, more = matrix(500), matrix(200)
    dst = tmp_path / "a"
    convert(FakeRows(x, {"y": np.arange(500)}), dst, shuffle=True, seed=1)
    assert append_source(FakeRows(more, {"y": np.arange(200)}), dst, shuffle=True, seed=2) == 2
    found = Opened(dst)
    order = order_of(200, 2)
    np.testing.assert_array_equal(found.columns["row_id"], np.concatenate([order_of(500, 1), 500 + order]))
    assert (found.x != sp.vstack([x[order_of(500, 1)], more[order]]).tocsr()).nnz == 0
    assert found.manifest.attrs["appended"] == {"path": "fake"}
    assert found.manifest.attrs["source"] == {"path": "fake"}


def test_a_failed_append_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    dst = tmp_path / "a"
    convert(FakeRows(matrix(500)), dst)
    before = left_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        append_source(FakeRows(matrix(500), fails=KeyboardInterrupt()), dst)
    assert left_in(tmp_path) == before
    with pytest.raises(
        ValueError,
        match=r"fake rows: has 60 features, expected at most 50 .*pass grow_features=True \(--grow-features\)",
    ):
        append_source(FakeRows(matrix(10, 60)), dst)
    append_source(FakeRows(matrix(10, 60)), dst, grow_features=True)
    assert Opened(dst).x.shape == (510, 60)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("error", [OSError("the disk fell out"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_nothing_stays_behind_after_an_error(
    tmp_path: Path, make: Callable[..., FakeRows], shuffled: bool, error: BaseException
) -> None:
    source = make(matrix(60_000), fails=error)
    with pytest.raises(type(error)):
        convert(source, tmp_path / "new" / "a.zarr", shuffle=shuffled, max_bytes=SMALL)
    assert left_in(tmp_path) == []


def test_an_error_while_writing_leaves_no_bucket_file(tmp_path: Path) -> None:
    def stop(position: int, total: int | None, unit: str) -> None:
        if unit == "rows" and total == 60_000 and list(tmp_path.glob("a.zarr/writers/*.scratch/*")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(triples_of(matrix(60_000)), tmp_path / "a.zarr", max_bytes=SMALL, progress=stop)
    assert left_in(tmp_path) == []


def test_progress_tells_how_far_each_pass_is(tmp_path: Path) -> None:
    calls: list[tuple[int, int | None, str]] = []
    convert(FakeRows(matrix(250)), tmp_path / "a", progress=lambda *call: calls.append(call))
    assert calls == [(100, 250, "rows"), (200, 250, "rows"), (250, 250, "rows")]
    calls.clear()
    convert(FakeRows(matrix(250)), tmp_path / "b", shuffle=True, progress=lambda *call: calls.append(call))
    assert calls == [(100, 250, "rows"), (200, 250, "rows"), (250, 250, "rows"), (250, 250, "rows")]


@pytest.mark.parametrize("knows_length", [True, False])
@pytest.mark.parametrize(
    ("n", "message"),
    [(999, "column 'y' has 999 values, .*(1000|more) rows"), (1001, "column 'y' has 1001 values, .* the 1000 rows")],
)
def test_columns_of_another_length_are_refused(tmp_path: Path, n: int, message: str, knows_length: bool) -> None:
    source = FakeRows(matrix(1000), knows_length=knows_length)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "a", columns={"y": np.zeros(n)})
    assert (source.asked == []) == knows_length
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_bytes": "1MiB"}, ResourceError, r"max_bytes is 1048576, expected at least 25165824 \(24 MiB\)"),
        ({"max_bytes": "lots"}, ValueError, "max_bytes is 'lots'"),
        ({"seed": 3}, ValueError, "seed is 3 but shuffle is False"),
        ({"seed": -1, "shuffle": True}, ValueError, "seed is -1, expected 0 <= seed"),
        ({"columns": {"z": np.zeros((10, 2, 2))}}, ValueError, r"column 'z' has shape \(10, 2, 2\), expected \(n,\)"),
        ({"columns": {"y": np.zeros(10)}}, ValueError, r"columns \['y'\] are given and are in fake rows too"),
        ({"duplicates": "last"}, ValueError, "duplicates='last' is for sources of triples; fake rows gives whole rows"),
    ],
    ids=["too little", "no size", "seed alone", "bad seed", "three dimensions", "given twice", "no triples"],
)
def test_bad_arguments_are_refused_before_anything_is_made(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        convert(FakeRows(matrix(10), {"y": np.zeros(10)}), tmp_path / "a", **options)
    assert left_in(tmp_path) == []


def test_an_existing_store_is_replaced_only_when_asked(tmp_path: Path) -> None:
    dst = tmp_path / "a"
    convert(FakeRows(matrix(10)), dst)
    with pytest.raises(FileExistsError):
        convert(FakeRows(matrix(20)), dst)
    assert convert(FakeRows(matrix(20)), dst, overwrite=True) == 2
    assert Opened(dst).x.shape == (20, 50)


def test_a_scipy_matrix_and_a_file_convert(tmp_path: Path) -> None:
    x = matrix(100)
    convert(x, tmp_path / "a", columns={"y": np.arange(100)})
    assert (Opened(tmp_path / "a").x != x).nnz == 0
    path = tmp_path / "tiny.svm"
    path.write_text("1 1:2.5 3:1\n0\n1 2:4\n", encoding="utf-8")
    convert(path, tmp_path / "b")
    found = Opened(tmp_path / "b")
    np.testing.assert_array_equal(found.x.toarray(), [[2.5, 0, 1], [0, 0, 0], [0, 4, 0]])
    assert found.columns["y"].tolist() == [1, 0, 1]
    path = tmp_path / "tiny.mtx"
    path.write_text("%%MatrixMarket matrix coordinate real general\n2 3 3\n2 1 4\n1 3 2.5\n2 1 1\n", encoding="utf-8")
    convert(path, tmp_path / "c", columns={"y": ["a", "b"]}, shuffle=True, seed=0, n_features=4)
    found = Opened(tmp_path / "c")
    order = order_of(2, 0)
    np.testing.assert_array_equal(found.x.toarray(), np.array([[0, 0, 2.5, 0], [5, 0, 0, 0]])[order])
    assert found.columns["y"].tolist() == np.array(["a", "b"])[order].tolist()


def test_rows_sorted_by_label_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    n = 80_000
    x = sp.csr_array((n, 3), dtype=np.float32)
    y = np.arange(n) // (n // 2)
    with caplog.at_level(logging.WARNING, "sparsestore"):
        convert(FakeRows(x, {"y": y}, block_rows=n), tmp_path / "sorted")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "--shuffle" in caplog.text
        caplog.clear()
        convert(FakeRows(x, {"y": y}, block_rows=n), tmp_path / "shuffled", shuffle=True, seed=0)
        convert(FakeRows(x, {"y": np.arange(n) % 2}, block_rows=n), tmp_path / "mixed")
        convert(FakeRows(x[:1000], {"y": y[:1000]}, block_rows=n), tmp_path / "small")
        assert caplog.text == ""


MEMORY = """
import sys
import numpy as np
from pathlib import Path
from sparsestore import csr
from sparsestore.convert import convert
from sparsestore.sources.base import Block

folder, shuffle, budget = Path(sys.argv[1]), sys.argv[2] == "True", int(sys.argv[3])

class Source:
    name, dtype, unit, sorted_rows, n_features = "made up", np.dtype(np.float32), "rows", True, 100_000
    columns = {"y": ("float64", ())}
    def __init__(self, n): self.n_rows = self.size = n
    def provenance(self): return {}
    def blocks(self, max_bytes):
        rng = np.random.default_rng(0)
        step = max_bytes // 200
        for start in range(0, self.n_rows, step):
            m = min(step, self.n_rows - start)
            indices = (np.arange(20, dtype=np.int32) * 5000 + rng.integers(0, 5000, (m, 20), np.int32)).ravel()
            x = csr.Rows(np.arange(0, 20 * m + 1, 20), indices, rng.random(20 * m, np.float32), self.n_features)
            yield Block(x, {"y": np.zeros(m)}, start + m)

def work(n=1_000_000, name="second"):
    convert(Source(n), folder / name, shuffle=shuffle, max_bytes=budget)

work(1000, "first")
"""


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_memory_stays_within_max_bytes(tmp_path: Path, shuffled: bool) -> None:
    budget = 64 << 20
    assert peak_of(MEMORY, tmp_path, shuffled, budget) <= budget + (2 << 20)


MATRIX = """
import sys
from pathlib import Path
import numpy as np
import scipy.sparse as sp
from sparsestore.convert import convert
folder, budget, n = Path(sys.argv[1]), int(sys.argv[2]), 400_000
indices = (np.arange(50, dtype=np.int32) * 2000 + np.arange(n, dtype=np.int32)[:, None] % 1999).ravel()
values = np.random.default_rng(0).random(50 * n, np.float32)
x = sp.csr_array((values, indices, np.arange(0, 50 * n + 1, 50, dtype=np.int32)), shape=(n, 100_000))
del indices, values

def work(x=x, name="second"):
    convert(x, folder / name, shuffle=True, max_bytes=budget)

work(x[:1000], "first")
"""


def test_memory_of_rows_that_are_shuffled_where_they_stand_is_within_max_bytes(tmp_path: Path) -> None:
    budget = 64 << 20
    assert peak_of(MATRIX, tmp_path, budget) <= budget + (2 << 20)


FLAT = """
import sys
from pathlib import Path
from sparsestore.convert import convert
folder, n_rows = Path(sys.argv[1]), int(sys.argv[2])
def work(n_rows=n_rows):
    path = folder / "rows.svm"
    lines = b"1 3:1.5 70:2.25\\n0 5:1 99:7\\n" * 50_000
    with path.open("wb") as file:
        for _ in range(n_rows // 100_000):
            file.write(lines)
    convert(path, folder / "store", overwrite=True, n_features=100, zero_based=True, max_bytes="64MiB")
work(100_000)
"""


@pytest.mark.slow
def test_memory_of_many_short_rows_is_that_of_fewer(tmp_path: Path) -> None:
    """glibc kept more and more of what was freed, 1.3 bytes of each row."""
    few, many = peak_of(FLAT, tmp_path, 2_000_000), peak_of(FLAT, tmp_path, 32_000_000)
    assert many <= few + (12 << 20), (few, many)
