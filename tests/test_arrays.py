"""Arrays on disk: zarr-python is the oracle of what is written, and every damaged byte is told."""

from __future__ import annotations

import shutil
import sys
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc
from numpy.typing import NDArray
from trust.interrupts import interrupted, places

from sparsestore import arrays, parallel
from sparsestore.arrays import ArrayReader, ArrayWriter
from sparsestore.checksum import PIECE, crc32c
from sparsestore.errors import CorruptStoreError
from sparsestore.format import ObjectEntry
from sparsestore.kernels import checks, frames
from sparsestore.storage import LocalStorage
from sparsestore.zarr_format import ArraySpec, Codec

Array = NDArray[Any]
RAW = Codec()
LZ4 = Codec("blosc", "lz4", 5, "shuffle")
BITS = Codec("blosc", "lz4", 5, "bitshuffle")
ZSTD = Codec("zstd", clevel=3)
# 8,192 elements of 2 bytes are one piece of checksums: a raw array of several chunks must be cut at pieces
PIECE_ELEMENTS = PIECE // 2


class Written:
    """An array on disk with what its segment would know of it."""

    def __init__(
        self, folder: Path, values: Array, dtype: str, codec: Codec, chunk: int, shard: int, cuts: list[int]
    ) -> None:
        self.storage = LocalStorage(folder)
        self.values = values
        writer = ArrayWriter(
            self.storage, "a", dtype, values.shape[1:], codec, chunk, shard, "" if dtype == "string" else 0
        )
        for part in np.split(values, cuts):
            writer.append(part)
        self.checks = writer.checks  # as the segment writer does: after finish, to have the last chunk's
        self.spec = writer.finish({"note": 1})
        self.checks = writer.checks
        self.entries = {entry.key: entry for entry in writer.objects}

    def reader(self, check: str = "first", **changes: Any) -> ArrayReader:
        return ArrayReader(
            self.storage,
            "a",
            changes.get("spec", self.spec),
            changes.get("entries", self.entries),
            changes.get("checks", lambda: self.checks),
            check,
            lambda first, last: f"rows {first} to {last}",
            changes.get("n_features"),
            changes.get("mmap", True),
        )

    def shard(self, number: int) -> Path:
        return self.storage.path(f"a/{self.spec.shard_key(number)}")

    @property
    def shard_keys(self) -> list[str]:
        return [key for key in self.entries if not key.endswith("zarr.json")]


def some_values(n: int, dtype: str, tail: tuple[int, ...] = ()) -> Array:
    rng = np.random.default_rng(n)
    if dtype == "string":
        return np.array([("" if i % 3 == 0 else "größe" * (i % 5)) + str(i) * (i % 2) for i in range(n)], object)
    if dtype == "bool":
        return rng.random((n, *tail)) < 0.5
    return rng.integers(0, 100, (n, *tail)).astype(dtype)


KINDS = {
    "raw": ("uint16", (), RAW),
    "lz4": ("int64", (), LZ4),
    "zstd": ("float32", (), ZSTD),
    "bits, 2-D": ("float32", (3,), BITS),
    "zstd, 2-D": ("uint8", (5,), ZSTD),
    "bool": ("bool", (), BITS),
    "strings": ("string", (), ZSTD),
    "float16": ("float16", (), LZ4),
}


@pytest.mark.parametrize(("dtype", "tail", "codec"), KINDS.values(), ids=KINDS)
@given(
    n=st.integers(0, 70),
    cuts=st.lists(st.integers(0, 70), max_size=6),
    chunk_bits=st.integers(0, 4),
    shard_bits=st.integers(0, 3),
)
@settings(max_examples=20, deadline=None)
def test_whatever_is_appended_zarr_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    tail: tuple[int, ...],
    codec: Codec,
    n: int,
    cuts: list[int],
    chunk_bits: int,
    shard_bits: int,
) -> None:
    values = some_values(n, dtype, tail)
    cuts = sorted(min(cut, n) for cut in cuts)
    folder = tmp_path_factory.mktemp("array")
    written = Written(folder, values, dtype, codec, 1 << chunk_bits, 1 << chunk_bits + shard_bits, cuts)
    found = zarr.open_array(folder / "a", mode="r")
    assert found.shape == values.shape
    assert found.attrs.asdict() == {"note": 1}
    assert np.asarray(found[...]).tolist() == values.tolist()

    reader = written.reader("never" if codec.name == "none" else "always")
    np.testing.assert_array_equal(reader.read_all(), values)
    rows = np.random.default_rng(n).integers(0, n, 20) if n else np.empty(0, np.int64)
    for order in (rows, np.sort(rows)):
        np.testing.assert_array_equal(reader.take(order), values[order])
    numbers = np.arange(written.spec.n_chunks)[::2]
    found_chunks = reader.chunks(numbers)
    for slot, number in enumerate(numbers):
        part = values[number * written.spec.chunk : (number + 1) * written.spec.chunk]
        np.testing.assert_array_equal(found_chunks[slot * written.spec.chunk :][: len(part)], part)


@pytest.mark.parametrize("codec", [RAW, LZ4, ZSTD], ids=lambda codec: codec.name)
def test_every_inner_chunk_is_there_though_it_equals_the_fill_value(tmp_path: Path, codec: Codec) -> None:
    written = Written(tmp_path, np.zeros(70, np.int32), "int32", codec, 4, 16, [])
    for number in range(written.spec.n_shards):
        payload = written.shard(number).read_bytes()
        index = np.frombuffer(payload[-(4 * 16 + 4) : -4], "<u8").reshape(4, 2)
        in_bounds = min(4, written.spec.n_chunks - 4 * number)
        assert (index[:in_bounds] != 2**64 - 1).all()
        assert (index[in_bounds:] == 2**64 - 1).all()
        assert crc32c(payload[-68:-4]) == int.from_bytes(payload[-4:], "little")


@pytest.mark.parametrize(
    ("n", "chunk", "shard"), [(0, 1, 1), (1, 1, 1), (5, 8, 8), (8, 8, 8), (9, 8, 16), (64, 8, 32), (65, 8, 32)]
)
def test_a_short_array_gets_short_chunks_and_shards(tmp_path: Path, n: int, chunk: int, shard: int) -> None:
    spec = Written(tmp_path, np.arange(n), "int64", LZ4, 8, 32, []).spec
    assert (spec.chunk, spec.shard) == (chunk, shard)


def test_appended_values_may_change_afterwards(tmp_path: Path) -> None:
    writer = ArrayWriter(LocalStorage(tmp_path), "a", "int64", codec=LZ4, chunk=8, shard=16)
    values = np.arange(5)
    writer.append(values)
    values[:] = -1
    writer.finish()
    assert zarr.open_array(tmp_path / "a", mode="r")[...].tolist() == [0, 1, 2, 3, 4]


def test_objects_are_told_with_their_lengths_and_checksums(tmp_path: Path) -> None:
    written = Written(tmp_path, np.arange(100), "int64", LZ4, 8, 32, [])
    assert sorted(written.entries) == ["a/c/0", "a/c/1", "a/c/2", "a/c/3", "a/zarr.json"]
    for entry in written.entries.values():
        payload = written.storage.read(entry.key)
        assert (len(payload), crc32c(payload)) == (entry.length, entry.crc32c)


def test_text_too_long_to_be_read_again_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_STRING_CHUNK_BYTES", 100)
    writer = ArrayWriter(LocalStorage(tmp_path), "a", "string", (), ZSTD, 2, 2, "")
    with pytest.raises(ValueError, match="2 strings take 112 bytes, expected at most 100"):
        writer.append(np.array(["x" * 50, "y" * 50], object))
    writer.discard()


# ------------------------------------------------------------------------------------------------- uncompressed


@pytest.fixture
def raw(tmp_path: Path) -> Written:
    """Two full shards of two chunks of a piece each, and a third of one chunk and a half."""
    values = np.arange(PIECE_ELEMENTS * 5 + PIECE_ELEMENTS // 2, dtype=np.uint16)
    return Written(tmp_path, values, "uint16", RAW, PIECE_ELEMENTS, 2 * PIECE_ELEMENTS, [5, 20_000])


def ranges(*pairs: tuple[int, int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Starts and lengths of ranges given as (start, stop)."""
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0].astype(np.uint64), found[:, 1] - found[:, 0]


def test_the_map_of_several_shards_is_one_array(raw: Written) -> None:
    assert raw.spec.n_shards == 3
    elements = raw.reader().elements()
    np.testing.assert_array_equal(elements, raw.values)
    assert not elements.flags.writeable
    assert elements.flags.c_contiguous


def test_pieces_are_the_bytes_of_the_map(raw: Written) -> None:
    reader = raw.reader()
    everything = reader.mapped().tobytes()
    for units in ([], [0], [1, 2], [0, 3, 4, 5], [5]):
        found = reader.pieces(np.array(units, np.int64)).tobytes()
        expected = b"".join(everything[unit * PIECE : (unit + 1) * PIECE] for unit in units)
        assert found == expected, units


def test_read_all_and_take_read_raw_arrays_too(raw: Written) -> None:
    np.testing.assert_array_equal(raw.reader().read_all(), raw.values)
    rows = np.array([0, 40_000, 8192, 8191])
    np.testing.assert_array_equal(raw.reader().take(rows), raw.values[rows])


@pytest.mark.parametrize("check", ["first", "always"])
@pytest.mark.parametrize("at", [0, 8191, 8192, 16384, 3 * 8192 + 5, 5 * 8192])
def test_a_flipped_bit_of_a_map_is_told_with_key_bytes_and_rows(raw: Written, check: str, at: int) -> None:
    number, within = divmod(at * 2, 2 * PIECE)
    flip(raw.shard(number), within + 1)
    reader = raw.reader(check)
    piece = at // PIECE_ELEMENTS
    stop = min((piece + 1) * PIECE_ELEMENTS, len(raw.values))
    start_byte = within // PIECE * PIECE
    expected = (
        f"a/c/{number}, bytes {start_byte} to {start_byte + PIECE} (rows {piece * PIECE_ELEMENTS} to {stop}): "
        f"the bytes do not match their crc32c"
    )
    for read in (lambda: reader.verify(*ranges((at, at + 1))), lambda: reader.pieces(np.array([piece]))):
        for _ in range(2):  # nor is it forgotten the second time
            with pytest.raises(CorruptStoreError) as error:
                read()
            assert expected in str(error.value)
    other = (at + 8192) % 40_000
    reader.verify(*ranges((other, other + 1)))  # what lies elsewhere can be read


def test_the_padding_of_the_last_piece_is_checked_too(raw: Written) -> None:
    flip(raw.shard(2), 2 * PIECE - 1)
    with pytest.raises(CorruptStoreError, match=r"bytes 16384 to 32768 \(rows 40960 to 45056\)"):
        raw.reader().verify(*ranges((45_000, 45_056)))


@pytest.mark.parametrize("how", ["map", "pieces"])
@pytest.mark.parametrize(
    ("check", "n_features", "expected"),
    [
        ("never", None, [0, 0, 0]),
        ("never", 1 << 16, [0, 0, 0]),  # as much as the dtype can hold
        ("never", 50_000, [2, 0, 0]),
        ("first", None, [2, 0, 0]),
        ("first", 50_000, [2, 0, 0]),
        ("always", None, [2, 2, 2]),
        ("always", 50_000, [2, 2, 2]),
    ],
)
def test_pieces_are_checked_never_once_or_always(
    raw: Written, monkeypatch: pytest.MonkeyPatch, how: str, check: str, n_features: int | None, expected: list[int]
) -> None:
    reader = raw.reader(check, n_features=n_features)
    checked: list[int] = []
    whole = checks.first_fault
    monkeypatch.setattr(
        checks, "first_fault", lambda stored, *more: (checked.append(len(more[1])), whole(stored, *more))[1]
    )
    found = []
    for _ in range(3):
        checked.clear()
        if how == "map":
            reader.verify(*ranges((0, 1), (1, 8193), (8193, 8194)))
        else:
            reader.pieces(np.array([0, 1]))
        found.append(sum(checked))
    assert found == expected


@pytest.mark.parametrize("check", ["first", "always", "never"])
def test_what_changes_after_its_check_is_told_only_where_it_is_checked_always(raw: Written, check: str) -> None:
    reader = raw.reader(check, n_features=50_000)
    every = ranges((0, len(raw.values)))
    reader.verify(*every)
    with raw.shard(1).open("r+b") as file:
        file.write(b"\xff\xff")
    assert reader.elements()[2 * PIECE_ELEMENTS] == 65_535
    if check == "always":
        with pytest.raises(CorruptStoreError, match=r"a/c/1, bytes 0 to 16384 .*do not match their crc32c"):
            reader.verify(*every)
    else:
        reader.verify(*every)


def test_all_threads_together_tell_the_first_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "n_cores", lambda: 4)
    monkeypatch.setattr(arrays, "_LEAST_PIECES", 8)
    values = np.arange(40 * PIECE_ELEMENTS, dtype=np.uint16)
    written = Written(tmp_path, values, "uint16", RAW, PIECE_ELEMENTS, 64 * PIECE_ELEMENTS, [])
    sound = written.reader()
    sound.verify(*ranges((0, len(values))))
    assert sound._verified.all()
    for piece in (38, 17, 12):
        flip(written.shard(0), piece * PIECE)
        for reader in (written.reader(), written.reader("always")):
            with pytest.raises(CorruptStoreError, match=f"bytes {piece * PIECE} to {(piece + 1) * PIECE} "):
                reader.verify(*ranges((5, 9), (100, len(values))))


@given(
    pairs=st.lists(st.tuples(st.integers(0, 45_056), st.integers(0, 45_056)), max_size=6),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_just_the_pieces_that_are_touched_are_checked(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]], order: Any
) -> None:
    folder = tmp_path_factory.mktemp("array")
    values = np.arange(PIECE_ELEMENTS * 5 + PIECE_ELEMENTS // 2, dtype=np.uint16)
    written = Written(folder, values, "uint16", RAW, PIECE_ELEMENTS, 2 * PIECE_ELEMENTS, [])
    reader = written.reader()
    pairs = [(min(pair), max(pair)) for pair in pairs]
    order.shuffle(pairs)
    reader.verify(*ranges(*pairs))
    touched = {at // PIECE_ELEMENTS for start, stop in pairs for at in range(start, stop)}
    assert set(np.flatnonzero(reader._verified)) == touched
    reader.verify(*ranges((0, len(values))))
    assert reader._sound


def test_more_rows_than_are_looked_at_in_one_call(raw: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_ROWS", 3)
    reader = raw.reader()
    reader.verify(*ranges(*((at, at + 1) for at in range(0, 40_960, 5000))))
    assert reader._verified.tolist() == [True] * 5 + [False]
    flip(raw.shard(2), PIECE)
    with pytest.raises(CorruptStoreError, match=r"bytes 16384 to 32768 .*do not match their crc32c"):
        reader.verify(*ranges(*((at, at + 1) for at in range(0, 45_056, 5000)), (45_000, 45_001)))


def test_ranges_past_the_end_are_told(raw: Written) -> None:
    for start, stop in ((45_000, 45_057), (2**40, 2**40 + 1), (45_056, 45_057)):
        with pytest.raises(CorruptStoreError, match="a: rows end past its 45056 elements"):
            raw.reader().verify(*ranges((start, stop)))


# -- feature numbers


DTYPES = {"uint16": 65_535, "int32": -1, "int64": -1, "int32, 2**31 - 1": 2**31 - 1, "int64, 2**40": 2**40}


def store_with(folder: Path, bad: int, dtype: str, codec: Codec, at: int) -> Written:
    """Checksums are right: it is the writer who was wrong."""
    values = np.random.default_rng(0).integers(0, 1000, 3 * 8192 + 100).astype(dtype)
    values[-3] = 999
    if at >= 0:
        values[at] = bad
    return Written(folder, values, dtype, codec, 8192, 1 << 14, [])


@pytest.mark.parametrize("check", ["first", "always", "never"])
@pytest.mark.parametrize("path", ["map", "pieces", "chunks"])
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("at", [0, 8191, 8192, 20_000, 24_675])
def test_a_feature_number_out_of_range_is_told(tmp_path: Path, check: str, path: str, kind: str, at: int) -> None:
    dtype, bad = kind.partition(",")[0], DTYPES[kind]
    written = store_with(tmp_path, bad, dtype, LZ4 if path == "chunks" else RAW, at)
    reader = written.reader(check, n_features=1000)
    itemsize = np.dtype(dtype).itemsize
    per = 8192 if path == "chunks" else PIECE // itemsize

    def read(start: int, stop: int) -> None:
        units = np.arange(start // per, -(-stop // per))
        if path == "map":
            reader.verify(*ranges((start, stop)))
        elif path == "pieces":
            reader.pieces(units)
        else:
            reader.chunks(units)

    number, within = divmod(at * itemsize, (1 << 14) * itemsize)
    where = rf"bytes {within} to {within + itemsize}" if path != "chunks" else r"bytes \d+ to \d+"
    message = rf"a/c/{number}, {where} \(rows {at} to {at + 1}\): feature number {bad}, expected 0 to 999$"
    for _ in range(2):  # nor is it forgotten the second time
        with pytest.raises(CorruptStoreError, match=message):
            read(at, at + 1)
        with pytest.raises(CorruptStoreError, match=message):
            read(0, len(written.values))
    other = (at // per * per + per) % (3 * 8192)
    read(other, other + 1)  # what lies elsewhere can be read


@pytest.mark.parametrize("path", ["map", "pieces", "chunks"])
@pytest.mark.parametrize(
    ("dtype", "number", "n_features", "sound"),
    [
        ("uint16", 999, 1000, True),
        ("uint16", 65_535, 65_536, True),
        ("uint16", 65_535, 65_535, False),
        ("uint16", 65_535, 10**6, True),
        ("int32", 2**31 - 1, 2**31, True),
        ("int32", -5, 2**31, False),
        ("int32", -5, 2**40, False),  # not the large number that its bits would be without a sign
        ("int32", -(2**31), 2**32, False),
        ("int64", 2**62, 2**62 + 1, True),
        ("int64", -1, 2**63 - 1, False),
    ],
)
def test_the_bound_is_exact(tmp_path: Path, path: str, dtype: str, number: int, n_features: int, sound: bool) -> None:
    written = store_with(tmp_path, number, dtype, LZ4 if path == "chunks" else RAW, 9000)
    reader = written.reader("never", n_features=n_features)

    def read() -> None:
        if path == "map":
            reader.verify(*ranges((8000, 10_000)))
        elif path == "pieces":
            reader.pieces(np.array([9000 * np.dtype(dtype).itemsize // PIECE]))
        else:
            reader.chunks(np.arange(2))

    if sound:
        read()
        return
    with pytest.raises(CorruptStoreError, match=f"feature number {number}, expected 0 to {n_features - 1}"):
        read()


@pytest.mark.parametrize("path", ["map", "pieces", "chunks"])
def test_padding_is_no_feature_number(tmp_path: Path, path: str) -> None:
    values = np.arange(100, dtype=np.uint16)
    raw = path != "chunks"
    writer = ArrayWriter(LocalStorage(tmp_path), "a", "uint16", (), RAW if raw else LZ4, 8192, 8192, 65_535)
    writer.append(np.arange(8192, dtype=np.uint16) % 100)
    writer.append(values)
    spec = writer.finish()
    entries = {entry.key: entry for entry in writer.objects}
    reader = ArrayReader(
        LocalStorage(tmp_path), "a", spec, entries, lambda: writer.checks, "first", lambda *_: "rows", 100
    )
    if path == "map":
        reader.verify(*ranges((0, 8292)))
    elif path == "pieces":
        assert reader.pieces(np.array([1])).view(np.uint16)[100] == 65_535
    else:
        reader.chunks(np.array([0, 1]))


@pytest.mark.parametrize("check", ["first", "always", "never"])
def test_decoded_feature_numbers_are_compared_once_or_always(
    tmp_path: Path, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = store_with(tmp_path, 0, "int32", LZ4, -1).reader(check, n_features=1000)
    reader.chunks(np.arange(4))
    calls: list[int] = []
    monkeypatch.setattr(reader, "_check_features", lambda *_: calls.append(1))
    reader.chunks(np.arange(4))
    assert bool(calls) == (check == "always")


def test_feature_numbers_are_whole_numbers(tmp_path: Path) -> None:
    for dtype in ("float32", "bool"):
        written = Written(tmp_path / dtype, np.zeros(5, dtype), dtype, RAW, 8, 8, [])
        with pytest.raises(CorruptStoreError, match=f"a has {dtype}, expected feature numbers"):
            written.reader(n_features=3)


def test_never_means_that_damage_is_read(raw: Written) -> None:
    flip(raw.shard(0), 0)
    reader = raw.reader("never")
    reader.verify(*ranges((0, 1)))
    assert reader.elements()[0] == 1


def test_arrays_read_before_stay_valid_after_deletion(raw: Written) -> None:
    elements = raw.reader().elements()[100:]
    raw.storage.remove("a")
    np.testing.assert_array_equal(elements, raw.values[100:])


# --------------------------------------------------------------------------------------------------- compressed


@pytest.fixture(params=["lz4", "zstd", "strings", "bits, 2-D"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    dtype, tail, codec = KINDS[request.param]
    return Written(tmp_path, some_values(70, dtype, tail), dtype, codec, 8, 32, [])


def flip(path: Path, at: int) -> None:
    payload = bytearray(path.read_bytes())
    payload[at] ^= 1
    path.write_bytes(payload)


@pytest.mark.parametrize("check", ["first", "always"])
def test_every_flipped_byte_of_every_shard_is_told(packed: Written, check: str) -> None:
    for number in range(packed.spec.n_shards):
        path = packed.shard(number)
        whole = path.read_bytes()
        first, last = 32 * number, min(32 * number + 32, 70)
        for at in range(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            with pytest.raises(
                CorruptStoreError, match=rf"a/c/{number}(/0)?, bytes \d+ to \d+ \(rows \d+ to \d+\): "
            ) as error:
                packed.reader(check).read_all()
            rows = str(error.value).partition("(rows ")[2].partition(")")[0].split(" to ")
            assert first <= int(rows[0]) < int(rows[1]) <= last
        path.write_bytes(whole)
    np.testing.assert_array_equal(packed.reader(check).read_all(), packed.values)


def test_a_flipped_byte_of_one_chunk_leaves_the_others_readable(packed: Written) -> None:
    flip(packed.shard(0), 3)
    reader = packed.reader()
    with pytest.raises(CorruptStoreError, match=r"\(rows 0 to 8\): the bytes do not match their crc32c"):
        reader.take(np.array([5]))
    np.testing.assert_array_equal(reader.take(np.array([8, 69])), packed.values[[8, 69]])


def test_without_checks_no_flipped_byte_does_harm(packed: Written) -> None:
    """Values may be wrong then, but nothing crashes and no other exception comes out."""
    for number in range(packed.spec.n_shards):
        path = packed.shard(number)
        whole = path.read_bytes()
        for at in range(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 0x80 >> at % 8
            path.write_bytes(damaged)
            try:
                packed.reader("never").read_all()
            except CorruptStoreError as error:
                assert f"a/c/{number}" in str(error)  # noqa: PT017 - most are told, some can not be
        path.write_bytes(whole)


def test_checks_of_chunks_happen_never_once_or_always(packed: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    first_damaged = frames.first_damaged

    def counted(source: Array, starts: Array, lengths: Array, expected: Array) -> int:
        checked.append(len(starts))
        return first_damaged(source, starts, lengths, expected)

    monkeypatch.setattr(frames, "first_damaged", counted)
    counts = {}
    for check in ("never", "first", "always"):
        reader = packed.reader(check)
        checked.clear()
        for _ in range(3):
            reader.read_all()
        counts[check] = sum(checked)
    assert counts == {"never": 0, "first": packed.spec.n_chunks, "always": 3 * packed.spec.n_chunks}


@pytest.mark.parametrize("cut", [0, 1, 10, 60, -1])
def test_a_shard_cut_short_is_told(packed: Written, cut: int) -> None:
    whole = packed.shard(1).read_bytes()
    packed.shard(1).write_bytes(whole[:cut])
    with pytest.raises(CorruptStoreError, match=r"a/c/1(/0)?, bytes .* \(rows 32 to 64\): .*cut short"):
        packed.reader().read_all()


def test_a_missing_shard_is_told(packed: Written) -> None:
    reader, mapped = packed.reader(mmap=False), packed.reader()
    reader.take(np.array([40]))
    mapped.take(np.array([40]))
    packed.shard(1).unlink()
    for broken in (reader, packed.reader(), packed.reader(mmap=False)):
        with pytest.raises(CorruptStoreError, match=r"a/c/1(/0)?, bytes .* \(rows 32 to .*\): the object is missing"):
            broken.read_all()
    np.testing.assert_array_equal(mapped.take(np.array([40])), packed.values[[40]])  # a map outlives its file


def test_chunks_that_are_read_come_neighbours_in_one_read(packed: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = packed.reader(mmap=False)
    reader.read_all()
    reads: list[tuple[str, int, int]] = []
    read = packed.storage.read_range
    monkeypatch.setattr(packed.storage, "read_range", lambda *call: (reads.append(call), read(*call))[1])
    numbers = np.array([0, 1, 3, 4, 5, 6, 8])
    found = reader.chunks(numbers).reshape(len(numbers), 8, *packed.spec.shape[1:])
    for slot, number in enumerate(numbers.tolist()):
        part = packed.values[number * 8 : number * 8 + 8]
        np.testing.assert_array_equal(found[slot][: len(part)], part)
    assert len(reads) == 4  # 0 and 1; 3; 4 to 6 of the next shard; 8 of the last


def test_a_shard_that_the_segment_does_not_name_is_told(packed: Written) -> None:
    entries = {key: entry for key, entry in packed.entries.items() if "c/1" not in key}
    with pytest.raises(CorruptStoreError, match=r"a has no shard 1 in its segment\.json"):
        packed.reader(entries=entries)


def test_shards_that_changed_places_are_told(packed: Written) -> None:
    one, two = packed.shard(0).read_bytes(), packed.shard(1).read_bytes()
    packed.shard(0).write_bytes(two)
    packed.shard(1).write_bytes(one)
    entries = dict(packed.entries)
    keys = [f"a/{packed.spec.shard_key(number)}" for number in (0, 1)]
    for key, payload in zip(keys, (two, one), strict=True):  # even where their lengths are those expected
        entries[key] = ObjectEntry(key, len(payload), crc32c(payload))
    with pytest.raises(CorruptStoreError, match=r"\(rows 0 to 8\): the bytes do not match their crc32c"):
        packed.reader(entries=entries).read_all()


def rewrite_index(written: Written, change: Callable[[NDArray[np.uint64]], None]) -> None:
    """Tamper with the first shard's index, and make its checksum right again."""
    path = written.shard(0)
    payload = path.read_bytes()
    n = written.spec.shard // written.spec.chunk
    index = np.frombuffer(payload[-16 * n - 4 : -4], "<u8").reshape(n, 2).copy()
    change(index)
    path.write_bytes(payload[: -16 * n - 4] + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little"))


def swap(index: NDArray[np.uint64]) -> None:
    index[[0, 1]] = index[[1, 0]]


def absent(index: NDArray[np.uint64]) -> None:
    index[1] = 2**64 - 1


def outside(index: NDArray[np.uint64]) -> None:
    index[2, 1] = 10**6


def wraps(index: NDArray[np.uint64]) -> None:
    index[2] = (2**64 - 16, 32)


def twice(index: NDArray[np.uint64]) -> None:
    index[1] = index[0]


@pytest.mark.parametrize("change", [swap, absent, outside, wraps, twice])
@pytest.mark.parametrize("codec", [RAW, LZ4], ids=["raw", "lz4"])
def test_a_tampered_index_is_told(tmp_path: Path, codec: Codec, change: Callable[[NDArray[np.uint64]], None]) -> None:
    values = np.arange(4 * PIECE_ELEMENTS, dtype=np.uint16)
    written = Written(tmp_path, values, "uint16", codec, PIECE_ELEMENTS, 4 * PIECE_ELEMENTS, [])
    rewrite_index(written, change)
    with pytest.raises(CorruptStoreError, match=r"a/c/0, bytes .* \(rows .*\): "):
        written.reader().read_all()
    if codec is RAW:
        with pytest.raises(CorruptStoreError, match=r"uncompressed chunks do not lie end to end|outside the shard"):
            written.reader().mapped()


def test_checksums_of_another_array_are_told(packed: Written) -> None:
    with pytest.raises(CorruptStoreError, match="a has 3 checksums of uint32, expected 9 of uint32"):
        packed.reader(checks=lambda: np.zeros(3, np.uint32)).read_all()


def test_an_array_without_checksums_is_checked_by_its_objects(packed: Written) -> None:
    np.testing.assert_array_equal(packed.reader(checks=None).read_all(), packed.values)
    flip(packed.shard(1), 0)
    with pytest.raises(
        CorruptStoreError, match=r"a/c/1(/0)?, bytes 0 to \d+ \(rows 32 to 64\): the bytes do not match their crc32c"
    ):
        packed.reader(checks=None).read_all()
    packed.shard(1).unlink()
    with pytest.raises(CorruptStoreError, match="the object is missing"):
        packed.reader(checks=None).read_all()


# ------------------------------------------------------------------------------------------------------ in threads


@pytest.fixture(scope="module", params=["lz4", "bits", "lz4hc", "zstd", "blosc-zstd"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Chunks enough for several threads, in three shards; the last one has but a part of its elements."""
    codecs = {
        "lz4": LZ4,
        "bits": BITS,
        "lz4hc": Codec("blosc", "lz4hc", 9, "shuffle"),
        "zstd": ZSTD,
        "blosc-zstd": Codec("blosc", "zstd", 3, "shuffle"),
    }
    values = np.random.default_rng(0).geometric(0.01, 600_000).astype(np.int32)
    return Written(tmp_path_factory.mktemp("large"), values, "int32", codecs[request.param], 1 << 13, 1 << 18, [])


@pytest.mark.parametrize("check", ["first", "always", "never"])
@pytest.mark.parametrize("mmap", [True, False], ids=["map", "read"])
def test_several_threads_may_read_one_array(large: Written, check: str, mmap: bool) -> None:
    reader = large.reader(check, n_features=1 << 20, mmap=mmap)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(4):
            starts = np.sort(rng.choice(145, 20, replace=False)) * 4096
            rows = (starts[:, None] + np.arange(4096)).ravel()
            order = rows if seed % 2 else rng.permutation(rows)
            if not np.array_equal(reader.take(order), large.values[order]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_all_cores_decode_together(large: Written, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "n_cores", lambda: cores)
    out = np.full(74 << 13, -1, np.int32)
    found = large.reader().chunks(np.arange(74), out)
    assert found is out
    np.testing.assert_array_equal(out[:600_000], large.values)


@pytest.mark.parametrize("chunk", [0, 31, 32, 73])
def test_a_damaged_chunk_is_told_from_any_thread(
    large: Written, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "n_cores", lambda: 3)
    shutil.copytree(large.storage.path(""), tmp_path / "copy")
    monkeypatch.setattr(large, "storage", LocalStorage(tmp_path / "copy"))
    index = large.reader()._index(chunk // 32)[chunk % 32].tolist()
    flip(large.shard(chunk // 32), index[0] + index[1] // 2)
    rows = rf"\(rows {chunk << 13} to {min(chunk + 1 << 13, 600_000)}\)"
    place = rf"a/c/{chunk // 32}, bytes {index[0]} to {sum(index)} {rows}"
    reader = large.reader()
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match=f"{place}: the bytes do not match their crc32c"):
            reader.chunks(np.arange(74))
    others = np.delete(np.arange(74), chunk)
    np.testing.assert_array_equal(reader.take(others << 13), large.values[others << 13])


def test_decoding_takes_little_memory_beside_its_result(large: Written) -> None:
    reader, numbers = large.reader(), np.arange(74)
    reader.chunks(numbers)
    tracemalloc.start()
    try:
        out = reader.chunks(numbers)
        assert tracemalloc.get_traced_memory()[1] < out.nbytes + (1 << 18)
    finally:
        tracemalloc.stop()


def test_one_chunk_after_the_other_is_given_in_the_same_memory(large: Written) -> None:
    places = set()
    for number, values in large.reader().each_chunk(np.array([3, 4, 40, 73])):
        part = large.values[number << 13 : number + 1 << 13]
        np.testing.assert_array_equal(values[: len(part)], part)
        places.add(values.ctypes.data)
    assert len(places) == 1


@given(
    blocks=st.lists(st.integers(0, 146), min_size=1, max_size=12, unique=True),
    size=st.sampled_from([1, 7, 4096, 5000]),
    ascending=st.booleans(),
    holes=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_blocks_of_rows_are_taken(large: Written, blocks: list[int], size: int, ascending: bool, holes: bool) -> None:
    rows = np.concatenate([np.arange(b * 4096, b * 4096 + size) for b in (sorted(blocks) if ascending else blocks)])
    rows = rows[rows < 600_000]
    if holes:
        rows = rows[rows % 97 != 5]
    np.testing.assert_array_equal(large.reader("never").take(rows), large.values[rows])


@pytest.mark.parametrize("size", [1, 65, 300])
@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize(("dtype", "tail"), [("int64", (3,)), ("string", ()), ("bool", ())])
def test_rows_that_lie_apart_take_no_memory_for_all_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, ascending: bool, dtype: str, tail: tuple[int, ...]
) -> None:
    values = some_values(200_000, dtype, tail)
    written = Written(tmp_path, values, dtype, ZSTD, 1 << 10, 1 << 16, [])
    monkeypatch.setattr(arrays, "_TAKEN_BYTES", 1 << 16)
    starts = np.arange(0, 199_000, 1000)
    rows = ((starts if ascending else starts[::-1])[:, None] + np.arange(size)).ravel()
    reader = written.reader("never")
    reader.take(rows[:1])
    tracemalloc.start()
    try:
        found = reader.take(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, values[rows])
    if dtype == "int64":  # all chunks together take 4,800,000
        assert peak < 3 * found.nbytes + 8 * rows.nbytes + (1 << 19)


# -------------------------------------------------------------------------------------------------------- bombs


def blosc_bomb(size: int) -> bytes:
    from numcodecs import blosc

    return bytes(blosc.compress(np.zeros(size, np.uint8), b"lz4", 5, blosc.SHUFFLE, 0))


def zstd_bomb(size: int) -> bytes:
    from numcodecs import zstd

    return bytes(zstd.compress(np.zeros(size, np.uint8), 3))


def decode(payload: bytes, spec: ArraySpec) -> None:
    target = np.empty(spec.chunk, object if spec.dtype == "string" else spec.dtype)
    arrays._decode_into(np.frombuffer(payload, np.uint8), spec, target)


SIZE = 64 << 20


@pytest.mark.parametrize(
    ("make", "spec", "message"),
    [
        (blosc_bomb, ArraySpec((8,), "int64", 8, 8, LZ4), f"it declares {SIZE} bytes, expected 64"),
        (zstd_bomb, ArraySpec((8,), "int64", 8, 8, ZSTD), f"it declares {SIZE} bytes, expected at most 64"),
        (lambda _: b"", ArraySpec((8,), "int64", 8, 8, LZ4), "it declares 0 bytes, expected 64"),
        (lambda _: b"", ArraySpec((8,), "int64", 8, 8, ZSTD), "."),
        (lambda _: bytes(63), ArraySpec((8,), "int64", 8, 8, RAW), "it holds 63 bytes, expected 64"),
        (lambda _: zstd_bomb(63), ArraySpec((8,), "int64", 8, 8, ZSTD), "it holds 63 bytes, expected 64"),
        (lambda _: b"\xff" * 8, ArraySpec((8,), "string", 8, 8, RAW), "it holds 4294967295 strings, expected 8"),
    ],
    ids=["blosc", "zstd", "empty blosc", "empty zstd", "short", "short zstd", "strings"],
)
def test_a_chunk_of_another_size_is_refused_before_it_is_unpacked(
    make: Callable[[int], bytes], spec: ArraySpec, message: str
) -> None:
    import tracemalloc

    payload = make(SIZE)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            decode(payload, spec)
        assert tracemalloc.get_traced_memory()[1] < SIZE // 8
    finally:
        tracemalloc.stop()


def test_a_blosc_frame_that_lies_about_its_own_length_is_refused() -> None:
    payload = blosc_bomb(64)
    with pytest.raises(ValueError, match="its length is not the one that it declares"):
        decode(payload + b"\0", ArraySpec((8,), "int64", 8, 8, LZ4))


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="hears signals where CPython does")
def test_an_interrupt_while_a_chunk_is_compressed_leaves_no_lock_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numcodecs compresses under a lock of `multiprocessing`, which is taken by a function in Python."""
    monkeypatch.setattr(blosc, "use_threads", None)  # as where nobody imports zarr-python
    spec = ArraySpec((8,), "int64", 8, 8, LZ4)
    work = partial(arrays._encode, np.arange(8), spec)
    work()  # what is done but once
    lock = blosc.get_mutex() if hasattr(blosc, "get_mutex") else getattr(blosc, "mutex", None)
    heard = places(work)
    assert len(heard) > 4
    for place in heard:
        assert interrupted(work, place) == (True, False), place
        if lock is not None:
            assert lock.acquire(False), place
            lock.release()
        work()  # it would wait for ever
