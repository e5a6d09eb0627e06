"""Row offsets in a byte a row, and arithmetic beyond 32 bits, without files of that size."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sparsestore as ss
from sparsestore import segment as segments
from sparsestore import segment_writer
from sparsestore.arrays import ArrayWriter
from sparsestore.buffers import Buffers
from sparsestore.errors import CorruptStoreError
from sparsestore.kernels import offsets
from sparsestore.reader import Located, _Part
from sparsestore.segment import RowOffsets
from sparsestore.storage import LocalStorage

Array = NDArray[Any]


class FakeIndptr:
    """An array reader over memory that records which chunks are decoded."""

    def __init__(self, indptr: Array, chunk: int) -> None:
        self.indptr = indptr
        self.spec = SimpleNamespace(chunk=chunk, n_chunks=-(-len(indptr) // chunk), dtype="int64")
        self.storage = SimpleNamespace(name="store")
        self.prefix = "segments/s/X/indptr"
        self.decoded: list[int] = []

    def each_chunk(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, Array]]:
        chunk = self.spec.chunk
        padded = np.concatenate([self.indptr, np.zeros(-len(self.indptr) % chunk, self.indptr.dtype)])
        for number in numbers.tolist():
            self.decoded.append(number)
            yield number, padded[number * chunk : (number + 1) * chunk]


def offsets_of(lengths: Array, chunk: int = 4096) -> tuple[RowOffsets, Array]:
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    fake: Any = FakeIndptr(indptr, chunk)
    return RowOffsets(fake, len(lengths), int(lengths.max(initial=0)), int(indptr[-1])), indptr


def check(offsets: RowOffsets, indptr: Array, rows: Array) -> None:
    starts, lengths = offsets.locate(rows)
    assert starts.dtype == np.uint64
    np.testing.assert_array_equal(starts, indptr[rows].astype(np.uint64))
    np.testing.assert_array_equal(lengths, np.diff(indptr)[rows])


WIDTHS = {"uint8": 255, "uint16": 65_535, "uint32": 2**32 - 1, "uint64": 2**40}


@pytest.mark.parametrize(("dtype", "longest"), WIDTHS.items(), ids=WIDTHS)
def test_lengths_are_held_in_the_narrowest_dtype(dtype: str, longest: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, longest, 5000, endpoint=True)
    lengths[[0, 1023, 1024, 4999]] = longest
    offsets, indptr = offsets_of(lengths)
    for rows in (np.arange(5000), rng.permutation(5000), rng.integers(0, 5000, 300), np.array([4999])):
        check(offsets, indptr, rows)
    assert offsets.lengths.dtype == dtype


def test_entry_numbers_beyond_two_to_the_33rd_are_exact() -> None:
    lengths = np.full(200_000, 50_000)  # 10**10 entries
    offsets, indptr = offsets_of(lengths, chunk=65_536)
    assert indptr[-1] > 2**33
    rows = np.concatenate([np.arange(171_790, 171_810), [0, 199_999, 42_949, 42_950, 85_899, 85_900]])
    check(offsets, indptr, rows)
    starts, _ = offsets.locate(np.array([199_999]))
    assert int(starts[0]) == 9_999_950_000


def test_a_row_costs_about_a_byte() -> None:
    offsets, indptr = offsets_of(np.arange(100_000) % 200)
    check(offsets, indptr, np.arange(100_000))
    assert offsets.lengths.nbytes + offsets.anchors.nbytes < 1.01 * 100_000


@given(
    lengths=st.lists(st.sampled_from([0, 0, 1, 3, 300]), min_size=1, max_size=40),
    chunk=st.sampled_from([1024, 2048]) | st.integers(1, 512) | st.sampled_from([1000, 1500]),
    repeats=st.sampled_from([1, 60, 110]),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_rows_in_any_order_are_found(lengths: list[int], chunk: int, repeats: int, data: st.DataObject) -> None:
    offsets, indptr = offsets_of(np.array(lengths * repeats), chunk)
    n = len(lengths) * repeats
    near = [row for row in (0, 1023, 1024, 2047, 2048, n - 1) if row < n]
    for _ in range(3):
        rows = data.draw(st.lists(st.sampled_from(near) | st.integers(0, n - 1), min_size=1, max_size=12))
        check(offsets, indptr, np.array(rows, np.int64))


def test_each_chunk_is_decoded_when_first_needed_and_kept() -> None:
    offsets, indptr = offsets_of(np.arange(10_000) % 7, chunk=1024)
    fake: Any = offsets._indptr
    check(offsets, indptr, np.array([2000]))
    assert fake.decoded == [1]
    check(offsets, indptr, np.array([1500, 2047]))
    assert fake.decoded == [1, 2]  # the next one tells where the last row ends
    check(offsets, indptr, np.array([8191]))
    check(offsets, indptr, np.arange(10_000))
    assert sorted(fake.decoded) == list(range(10))


@pytest.mark.parametrize("chunk", [1, 3, 16, 256, 1500])
def test_lengths_between_an_anchor_and_a_row_are_loaded_with_it(chunk: int) -> None:
    lengths = np.arange(5000) % 7
    for row in (300, 1023, 1024, 2900, 4999):
        offsets, indptr = offsets_of(lengths, chunk)
        check(offsets, indptr, np.array([row]))
        fake: Any = offsets._indptr
        first, last = row // 1024 * 1024 // chunk, (row + 1) // chunk
        assert fake.decoded == list(range(first, last + 1))


def test_rows_that_fill_their_last_chunk_end_where_the_next_one_says() -> None:
    for n in (1023, 1024, 1025, 2047, 2048):
        offsets, indptr = offsets_of(np.arange(n) % 5, chunk=1024)
        check(offsets, indptr, np.array([n - 1]))
        check(offsets, indptr, np.arange(n))


SOUND = np.cumsum(np.concatenate([[0], np.ones(5000, np.int64)]))


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 1), (5000, 4999), (2500, 2400), (2500, 2600), (2048, -5), (2500, 2**62), (2500, -(2**63)), (3000, 5001)],
)
def test_offsets_that_are_no_ascending_sequence_are_damage(at: int, value: int) -> None:
    indptr = SOUND.copy()
    indptr[at] = value
    fake: Any = FakeIndptr(indptr, 1024)
    offsets = RowOffsets(fake, 5000, 1, 5000)
    with pytest.raises(
        CorruptStoreError,
        match=r"segments/s/X/indptr, elements .*: the offsets are no ascending sequence from 0 to 5000",
    ):
        offsets.locate(np.arange(5000))


def test_differences_that_wrap_around_are_damage() -> None:
    indptr = np.array([0, 2**63 - 1, -(2**63), 0], np.int64)  # each step but the first looks like +1
    fake: Any = FakeIndptr(indptr, 1024)
    with pytest.raises(CorruptStoreError, match="no ascending sequence"):
        RowOffsets(fake, 3, 2**63 - 1, 0).locate(np.arange(3))


def test_a_later_chunk_may_not_start_below_zero_or_past_the_end() -> None:
    for shift in (-(2**40), 2**40):
        indptr = SOUND.copy()
        indptr[1024:4096] += shift
        fake: Any = FakeIndptr(indptr, 1024)
        with pytest.raises(CorruptStoreError, match="no ascending sequence"):
            RowOffsets(fake, 5000, 1, 5000).locate(np.array([2000]))


@given(
    steps=st.lists(st.integers(0, 300), min_size=1, max_size=40),
    changes=st.lists(st.tuples(st.integers(0, 40), st.integers(-(2**63), 2**63 - 1)), max_size=2),
    first=st.sampled_from([0, 7, 2**40]),
    longest=st.sampled_from([255, 300, 65_535, 2**40]),
)
def test_lengths_are_narrowed_as_their_twin_does(
    steps: list[int], changes: list[tuple[int, int]], first: int, longest: int
) -> None:
    indptr = np.cumsum([first, *steps])
    total = int(indptr[-1])
    for at, value in changes:
        indptr[at % len(indptr)] = value
    dtype = next(d for d in ("uint8", "uint16", "uint64") if longest <= np.iinfo(d).max)
    found, expected = np.zeros((2, len(steps)), dtype)
    sound = offsets.narrow_numpy(indptr, longest, total, expected)
    assert offsets.narrow(indptr, longest, total, found) == sound
    if sound:
        np.testing.assert_array_equal(found, expected)


@given(
    lengths=st.lists(st.sampled_from([0, 0, 1, 2, 5, 30]), min_size=1, max_size=12),
    rows=st.lists(st.integers(0, 11), max_size=15),
    ascending=st.booleans(),
    unit=st.sampled_from([1, 3, 4, 16]),
    short=st.booleans(),
)
@settings(deadline=None)
def test_rows_are_placed_as_their_twin_does(
    lengths: list[int], rows: list[int], ascending: bool, unit: int, short: bool
) -> None:
    all_lengths = np.array(lengths)
    ends = np.cumsum(all_lengths)
    picked = np.array(sorted(rows) if ascending else rows, np.int64) % len(lengths)
    picked = np.sort(picked) if ascending else picked
    starts, sizes = (ends - all_lengths)[picked].astype(np.uint64), all_lengths[picked]
    total = max(int(ends[-1]) - short, 0)
    results = []
    for function in (offsets.place, offsets.place_numpy):
        units, placed = np.full(-(-int(ends[-1]) // unit) + 1, -1), np.zeros(len(picked), np.uint64)
        n = function(starts, sizes, unit, total, units, placed)
        results.append((n, units[: max(n, 0)].tolist(), placed.tolist() if n >= 0 else None))
        assert units[-1] == -1
    if results[0][0] < 0:  # which of two faults is told is left open
        assert results[1][0] < 0
    else:
        assert results[0] == results[1]


def test_rows_in_any_order_are_loaded_from_a_compact_store(tmp_path: Path) -> None:
    x = scipy.sparse.random_array((3000, 50), density=0.3, format="csr", rng=np.random.default_rng(0))
    for profile in ("compact", "raw"):
        ss.convert(x, tmp_path / profile, profile=profile)
        store = ss.open(tmp_path / profile, mmap=False)
        for rows in (np.arange(3000), np.random.default_rng(1).permutation(3000), np.array([5, 5, 2, 2999, 0])):
            found = store[rows]
            assert (found != x[rows].astype(found.dtype)).nnz == 0


@pytest.mark.parametrize("profile", ["raw", "compact"])
@pytest.mark.parametrize("values", ["uint8", "float64"])
def test_rows_that_lie_apart_take_no_memory_for_what_is_read_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, values: str
) -> None:
    monkeypatch.setattr(segments, "_READ_BYTES", 1 << 18)
    n, rng = 60_000, np.random.default_rng(0)
    lengths = rng.integers(0, 60, n)
    lengths[30_000] = 70_000  # longer than what is read at once
    indptr = np.append(0, np.cumsum(lengths))
    features = np.arange(indptr[-1], dtype=np.int32) - np.repeat(indptr[:-1], lengths).astype(np.int32)
    x = scipy.sparse.csr_array((rng.integers(1, 200, indptr[-1]).astype(values), features, indptr), shape=(n, 80_000))
    ss.convert(x, tmp_path / "s", profile=profile)
    for buffers in (None, Buffers()):
        for rows in (
            np.arange(0, n, 300),
            rng.permutation(n)[:200],
            np.array([29_999, 30_000, 59_999, *range(0, n, 900)]),
        ):
            found = ss.open(tmp_path / "s", mmap=False)._reader.find(rows).load(buffers).take(dtype=values).to_scipy()
            assert (found != x[rows]).nnz == 0
    reader, rows = ss.open(tmp_path / "s", mmap=False, check="never")._reader, np.arange(0, n, 300)
    found = reader.find(rows)
    found.load()
    tracemalloc.start()
    try:
        found.load()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    entries = 70_000 + 200 * 60  # of 1,850,000
    assert peak < entries * (4 + np.dtype(values).itemsize) * 2 + (2 << 20)


@pytest.mark.parametrize("chunk", [1, 16, 256, 512])
def test_rows_are_right_where_chunks_of_offsets_are_short(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writer(storage: LocalStorage, prefix: str, *arguments: Any, **options: Any) -> ArrayWriter:
        shorter = {"chunk": chunk} if prefix.endswith("X/indptr") and "checksums" not in prefix else {}
        return ArrayWriter(storage, prefix, *arguments, **options | shorter)

    x = scipy.sparse.random_array((3000, 50), density=0.1, format="csr", rng=np.random.default_rng(0), dtype=np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(segment_writer, "ArrayWriter", writer)
        ss.convert(x, tmp_path / "s")
    assert ss.open(tmp_path / "s").verify() == []
    for mmap in (True, False):
        for rows in ([300], [2999, 1023], [1500, 1501, 7]):
            assert (ss.open(tmp_path / "s", mmap=mmap)[rows] != x[rows]).nnz == 0
        loader = ss.open(tmp_path / "s", mmap=mmap).loader(64, shuffle=True, seed=0, window_rows=512, block_rows=64)
        for batch in loader:
            assert (batch.x != x[batch.row_ids]).nnz == 0


@pytest.mark.parametrize("check", ["first", "always"])
def test_several_threads_may_read_one_compact_store(tmp_path: Path, check: str) -> None:
    rng = np.random.default_rng(0)
    x = scipy.sparse.random_array((40_000, 200), density=0.05, format="csr", rng=rng)
    ss.convert(x, tmp_path / "s", columns={"y": np.arange(40_000)}, profile="compact")
    store = ss.open(tmp_path / "s", check=check)
    wrong: list[int] = []

    def read(seed: int) -> None:
        starts = np.sort(np.random.default_rng(seed).choice(39, 8, replace=False)) * 1024
        rows = (starts[:, None] + np.arange(1024)).ravel()
        if (store[rows] != x[rows]).nnz or not np.array_equal(store.column("y")[rows], rows):
            wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_entries_beyond_two_to_the_32nd_are_copied_from_a_map(tmp_path: Path) -> None:
    """A file of 8 GiB and a few kB on disk: all but three pages of it are a hole."""
    storage = LocalStorage(tmp_path)
    n = (1 << 32) + 1000
    starts = np.array([5, (1 << 31) - 2, (1 << 32) + 3], np.uint64)
    with (tmp_path / "indices").open("wb") as file:
        file.truncate(n * 2)
        for i, start in enumerate(starts.tolist()):
            file.seek(start * 2)
            file.write(np.array([i + 1, 40_000 + i, 65_000 + i], "<u2").tobytes())
    if (tmp_path / "indices").stat().st_blocks * 512 > 1 << 20:
        pytest.skip("the file system has no holes")
    indices = storage.map([("indices", n * 2)]).view("<u2")
    lengths = np.full(3, 3)
    located = Located([_Part(indices, None, 7)], None, starts, lengths, 65_536)
    rows = located.take(np.array([2, 0, 1]))
    assert rows.indices.tolist() == [3, 40_002, 65_002, 1, 40_000, 65_000, 2, 40_001, 65_001]
    assert rows.data.tolist() == [7.0] * 9
