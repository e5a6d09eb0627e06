"""The loops that check mapped bytes agree with the C library, with their twins, and with the polynomial itself."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_checksum import RFC_3720, plain_crc32c

import sparsestore as ss
from sparsestore import checksum
from sparsestore.errors import CorruptStoreError
from sparsestore.kernels import checks, crc32c, native
from sparsestore.kernels.crc32c import FOLDED, LANE, PIECE, STEPS, WORDS
from sparsestore.kernels.native import Kernel
from sparsestore.manifest import read_manifest
from sparsestore.reader import Reader
from sparsestore.segment import Segment
from sparsestore.storage import open_storage

ROOT = Path(__file__).parents[1]
Array = NDArray[Any]
NONE = np.empty(0, np.uint32)
SHIFTS = crc32c.shifts()


def has_instruction() -> bool:
    try:
        crc32c.instructions()
    except crc32c.LackingInstructionError:
        return False
    return True


needs_instruction = pytest.mark.skipif(not has_instruction(), reason="this processor has no crc32c")


def lacking() -> dict[str, Any]:
    raise crc32c.LackingInstructionError("tried")


@pytest.fixture(params=["instruction", "C library"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """On a processor with the instruction, and on one without."""
    if request.param == "instruction" and not has_instruction():
        pytest.skip("this processor has no crc32c")
    if request.param == "C library":
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))  # where no machine code is kept
        monkeypatch.setattr(checks, "scan", Kernel(checks.scan.function, needs=lacking))
    return str(request.param)


def test_a_piece_is_what_it_is_on_disk() -> None:
    assert PIECE == checksum.PIECE == 8 * WORDS == 8 * (FOLDED + 3 * LANE)
    assert FOLDED == 8 * (1 + STEPS)
    assert 0 <= WORDS // 8 - checks.FETCHED * STEPS < STEPS


def words_crc32c(words: Array) -> int:
    crc = np.uint64(0xFFFFFFFF)
    for i in range(len(words)):
        crc = crc32_of_eight(crc, words[np.uint64(i)])  # type: ignore[name-defined]  # noqa: F821
    return np.int64(crc ^ np.uint64(0xFFFFFFFF))  # type: ignore[return-value]


@needs_instruction
@pytest.mark.parametrize(("payload", "expected"), [case for case in RFC_3720.values() if len(case[0]) % 8 == 0])
def test_the_instruction_gives_the_values_of_rfc_3720(payload: bytes, expected: int) -> None:
    kernel = Kernel(words_crc32c, needs=crc32c.instructions)  # type: ignore[call-arg]
    assert kernel(np.frombuffer(payload, np.uint64).copy()) == expected


def test_sums_are_folded_by_powers_of_x() -> None:
    """An instruction of 64 bits multiplies reversed factors, which leaves the product one bit short."""
    for factor, power in zip(crc32c._FACTORS, (512 + 32, 512 - 32), strict=True):
        remainder = 1
        for _ in range(power):
            remainder <<= 1
            if remainder >> 32:
                remainder ^= 0x1_1EDC6F41  # RFC 3720, appendix B.4
        assert factor == int(f"{remainder:032b}"[::-1], 2) << 1


@pytest.mark.parametrize(("table", "words"), [(i, (3 - i) * LANE) for i in range(3)])
@pytest.mark.parametrize(("payload", "expected"), RFC_3720.values(), ids=RFC_3720)
def test_the_tables_append_zeros(payload: bytes, expected: int, table: int, words: int) -> None:
    crc = expected ^ 0xFFFFFFFF
    moved = 0
    for k in range(4):
        moved ^= int(SHIFTS[table, k, crc >> 8 * k & 255])
    assert moved ^ 0xFFFFFFFF == plain_crc32c(payload + bytes(8 * words))


def pieces_of(seed: int, n: int, dtype: str = "uint16", high: int = 1000) -> tuple[Array, Array]:
    """Numbers that fill n pieces, and the crc32c of each."""
    values = np.random.default_rng(seed).integers(0, high, n * PIECE // np.dtype(dtype).itemsize).astype(dtype)
    return values, checksum.piece_crc32c(values.view(np.uint8))


def test_a_piece_is_checked_by_the_polynomial_of_rfc_3720(way: str) -> None:
    values, _ = pieces_of(3, 2)
    stored = values.view(np.uint8)
    expected = np.array([plain_crc32c(stored[:PIECE].tobytes()), plain_crc32c(stored[PIECE:].tobytes())], np.uint32)
    assert checks.first_fault(stored, NONE, np.arange(2), expected, 0) == -1
    assert checks.first_fault(stored, NONE, np.arange(2), expected[::-1].copy(), 0) == 0


@pytest.mark.parametrize("word", [*range(16), *(FOLDED + i * LANE + j for i in range(3) for j in (-1, 0)), WORDS - 1])
def test_every_part_of_a_piece_counts(way: str, word: int) -> None:
    values, expected = pieces_of(0, 3)
    stored, words = values.view(np.uint8), values.view(np.uint64)
    for bit in range(64):
        words[WORDS + word] ^= np.uint64(1 << bit)
        assert checks.first_fault(stored, NONE, np.arange(3), expected, 0) == 1
        words[WORDS + word] ^= np.uint64(1 << bit)
    assert checks.first_fault(stored, NONE, np.arange(3), expected, 0) == -1


@needs_instruction
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
@given(
    seed=st.integers(0, 3),
    n=st.integers(1, 5),
    picked=st.lists(st.integers(0, 4), max_size=6),
    damaged=st.lists(st.integers(0, 5 * PIECE - 1), max_size=2),
    wrong=st.lists(st.integers(0, 5 * PIECE - 1), max_size=2),
    padding=st.integers(0, 3000),
    crc=st.booleans(),
    bounded=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_scan(
    dtype: str,
    seed: int,
    n: int,
    picked: list[int],
    damaged: list[int],
    wrong: list[int],
    padding: int,
    crc: bool,
    bounded: bool,
) -> None:
    values, _ = pieces_of(seed, n, dtype)
    for at in wrong:
        values[at % len(values)] = 1000 + at % 7
    stored = values.view(np.uint8)
    written, expected = stored.copy(), checksum.piece_crc32c(stored)
    for at in damaged:
        stored[at % len(stored)] ^= 1
    pieces = np.array([piece for piece in picked if piece < n], np.int64)
    numbers = values[: max(len(values) - padding, 0)] if bounded else NONE
    checked = expected[pieces] if crc else NONE

    def is_bad(piece: int) -> bool:
        at, size = slice(piece * PIECE, (piece + 1) * PIECE), PIECE // values.itemsize
        changed = crc and not np.array_equal(stored[at], written[at])
        return changed or bool((numbers[piece * size : (piece + 1) * size] >= 1000).any())

    first = next((i for i, piece in enumerate(pieces.tolist()) if is_bad(piece)), -1)
    assert checks.scan(stored.view(np.uint64), numbers, pieces, checked, SHIFTS, 1000, np.zeros(1, np.uint64)) == first
    assert checks.scan_numpy(stored, numbers, pieces, checked, 1000) == first


@pytest.mark.parametrize("short", [0, 1, 7, 8, 100, PIECE - 1])
def test_the_last_piece_may_be_short(way: str, short: int) -> None:
    values, _ = pieces_of(1, 3)
    stored = values.view(np.uint8)[: 2 * PIECE + short]
    n = 3 if short else 2
    expected = checksum.piece_crc32c(stored)
    assert checks.first_fault(stored, NONE, np.arange(n), expected, 0) == -1
    assert checks.first_fault(stored, values[: len(stored) // 2], np.arange(n), expected, 1000) == -1
    for at in (0, PIECE, len(stored) - 1):
        stored[at] ^= 128
        assert checks.first_fault(stored, NONE, np.arange(n), expected, 0) == at // PIECE
        stored[at] ^= 128
    if short > 1:
        numbers = values[: len(stored) // 2]
        numbers[-1] = 1000
        assert checks.first_fault(stored, numbers, np.arange(n), NONE, 1000) == 2
        assert checks.first_fault(stored, numbers, np.arange(n), NONE, 1001) == -1
        assert checks.first_fault(stored, numbers, np.array([2]), expected, 1001) == 0


@pytest.mark.parametrize("gaps", [False, True])
def test_pieces_past_the_first_strip_are_checked(way: str, gaps: bool) -> None:
    n = checks.STRIP + 9
    values, expected = pieces_of(0, n)
    pieces = np.delete(np.arange(n), [1, 6, 300]) if gaps else np.arange(n)
    stored = values.view(np.uint8)
    assert checks.first_fault(stored, values, pieces, expected[pieces], 1000) == -1
    for i in (len(pieces) - 1, checks.STRIP, checks.STRIP - 1):
        stored[pieces[i] * PIECE + 9] ^= 64
        assert checks.first_fault(stored, NONE, pieces, expected[pieces], 0) == i
        assert checks.first_fault(stored, values, pieces, NONE, 1000) == i


def test_nothing_to_check_is_sound(way: str) -> None:
    stored = np.zeros(100, np.uint8)
    assert checks.first_fault(stored, NONE, np.empty(0, np.int64), NONE, 0) == -1
    assert checks.first_fault(stored[:0], NONE, np.empty(0, np.int64), NONE, 0) == -1


def test_read_only_bytes_are_checked(way: str) -> None:
    values, expected = pieces_of(0, 2)
    stored = values.view(np.uint8)
    stored.flags.writeable = values.flags.writeable = False
    assert checks.first_fault(stored, values, np.arange(2), expected, 1000) == -1
    assert checks.first_fault(stored, values, np.arange(2), expected, 500) == 0


@needs_instruction
def test_numba_and_machine_code_from_a_file_agree() -> None:
    values, expected = pieces_of(0, 3)
    words = values.view(np.uint64)
    for wrong in (-1, 0, 2):
        checked = expected.copy()
        if wrong >= 0:
            checked[wrong] ^= 1
        for scan in (checks.scan, checks.scan.compiled):
            assert scan(words, values, np.arange(3), checked, SHIFTS, 1000, np.zeros(1, np.uint64)) == wrong


@needs_instruction
@pytest.mark.skipif((sys.platform, platform.machine()) not in native.PLATFORMS, reason="numba does it all here")
def test_machine_code_is_kept_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    values, expected = pieces_of(0, 1)
    scan = Kernel(checks.scan.function, needs=checks._with_fetch)  # type: ignore[call-arg]
    touched = Kernel(checks.touched.function)
    assert scan(values.view(np.uint64), values, np.arange(1), expected, SHIFTS, 1000, np.zeros(1, np.uint64)) == -1
    assert touched(np.zeros(1, np.uint64), np.ones(1, np.int64), 1, 4, np.zeros(1, bool), np.zeros(2, np.int64)) == 1
    assert len(list(tmp_path.glob("checks.*.code"))) == 2


WISHES = """
import numpy as np
from sparsestore.checksum import piece_crc32c
from sparsestore.kernels import checks
stored = np.arange(4096, dtype=np.uint64).view(np.uint8)
expected = piece_crc32c(stored)
assert checks.first_fault(stored, stored.view(np.uint64), np.arange(2), expected, 4096) == -1
assert checks.first_fault(stored, stored.view(np.uint64), np.arange(2), expected, 4095) == 1
expected[0] ^= 1
assert checks.first_fault(stored, stored.view(np.uint64), np.arange(2), expected, 4096) == 0
"""


@pytest.mark.parametrize(
    ("name", "setting"), [("NUMBA_CPU_NAME", "generic"), ("NUMBA_CPU_FEATURES", "-sse4.2"), ("NUMBA_DISABLE_JIT", "1")]
)
def test_numba_may_be_told_to_do_without_the_instruction(name: str, setting: str, tmp_path: Path) -> None:
    # LLVM would end the process; numba reads its settings when it is imported
    environment = {**os.environ, name: setting, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", WISHES], check=True, env=environment)


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8, 12, 3 * PIECE])
@given(st.data())
@settings(max_examples=80, deadline=None)
def test_touched(itemsize: int, data: st.DataObject) -> None:
    n = data.draw(st.sampled_from([1, 100, 20_000]))
    lengths = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 50, 3000]), max_size=30))
    if data.draw(st.booleans()):  # rows that follow each other
        starts = np.cumsum([0, *lengths])[:-1] + data.draw(st.integers(0, n))
    else:
        starts = np.array(data.draw(st.lists(st.integers(0, n), min_size=len(lengths), max_size=len(lengths))))
    if data.draw(st.booleans()):
        starts.sort()
    starts, sizes = starts.astype(np.uint64), np.array(lengths, np.int64)
    seen = np.random.default_rng(n).random(-(-n * itemsize // PIECE)) < data.draw(st.sampled_from([0, 0.5, 1]))
    room = 2 * len(starts) + int(sizes.sum()) * itemsize // PIECE
    found, expected = np.empty(room, np.int64), np.empty(room, np.int64)
    past = any(int(start) + size > n for start, size in zip(starts, lengths, strict=True))
    count = checks.touched(starts, sizes, n, itemsize, seen, found)
    if past:
        assert count == -1
        assert checks.touched_numpy(starts, sizes, n, itemsize, seen, expected) == -1
        return
    distinct = checks.touched_numpy(starts, sizes, n, itemsize, seen, expected)
    assert np.unique(found[:count]).tolist() == expected[:distinct].tolist()
    if (np.diff(starts.astype(np.int64)) >= 0).all():
        assert found[:count].tolist() == expected[:distinct].tolist()
    entries = {int(start) + i for start, size in zip(starts, lengths, strict=True) for i in range(size)}
    if itemsize < PIECE:
        bytes_of = {at * itemsize // PIECE for at in entries} | {
            (at * itemsize + itemsize - 1) // PIECE for at in entries
        }
        assert set(expected[:distinct].tolist()) == {piece for piece in bytes_of if not seen[piece]}


def test_touched_far_into_a_large_array() -> None:
    n = 2**40
    starts, lengths = np.array([0, 2**39, n - 1], np.uint64), np.array([1, 4097, 1])
    found = np.empty(8, np.int64)
    seen = np.broadcast_to(np.zeros(1, bool), (n * 4 // PIECE,))
    assert checks.touched.compiled(starts, lengths, n, 4, seen, found) == 4
    assert found[:4].tolist() == [0, 2**27, 2**27 + 1, 2**28 - 1]


# ---- through the reader: a feature number out of range never reaches what comes after it

N_FEATURES = 70_000  # as many as need int32; half of the tests' stores have uint16


@pytest.fixture(scope="module", params=["raw", "compact"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three segments of 400 rows; only row 700 has the feature 60,000, and its checksum is right."""
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 50_000, (1200, 40))
    columns[700, 7] = 60_000
    x = sp.csr_array((rng.integers(1, 9, 48_000), columns.ravel(), np.arange(0, 48_001, 40)), (1200, N_FEATURES))
    x.sum_duplicates()
    for start in range(0, 1200, 400):
        rows = x[start : start + 400]
        if start:
            ss.open(path).append(rows)
        else:
            ss.convert(rows, path, profile=request.param)
    return path


def narrow(path: Path, n_features: int, check: str, mmap: bool) -> Reader:
    """A reader of a store whose manifest promises fewer features than its rows have."""
    storage = open_storage(path)
    return Reader(storage, replace(read_manifest(storage), n_features=n_features), check=check, mmap=mmap)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("check", ["first", "always", "never"])
def test_no_row_is_located_that_has_a_feature_number_out_of_range(
    store: Path, check: str, mmap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # segment.json, which says the true number, would be refused first
    monkeypatch.setattr(Segment, "_check_facts", lambda *_: None)
    reader = narrow(store, 60_000, check, mmap)
    message = (
        r"X/indices/c/0, bytes \d+ to \d+ \(version 3, rows 700 to 701\): feature number 60000, expected 0 to 59999"
    )
    for rows in ([700], [1100, 3, 700, 5], range(1200)):
        for _ in range(2):
            with pytest.raises(CorruptStoreError, match=message):
                reader.locate(np.array(rows))
    assert reader.locate(np.arange(400)).nnz == reader.locate(np.arange(399, -1, -1)).nnz
    with pytest.raises(CorruptStoreError, match=message):
        reader.read(690, 710)
    assert narrow(store, 60_001, check, mmap).read(0, 1200).indices.max() == 60_000


@pytest.mark.parametrize("mmap", [True, False])
def test_unchecked_damage_is_a_negative_feature_number_at_worst_and_told(
    store: Path, mmap: bool, tmp_path: Path
) -> None:
    manifest = read_manifest(open_storage(store))
    if manifest.profile != "raw":
        pytest.skip("what is compressed has no byte of a number")
    shutil.copytree(store, tmp_path / "s.zarr")
    (folder,) = (tmp_path / "s.zarr" / "segments").glob(f"{manifest.segments[2].id}/X/indices/c")
    payload = bytearray((folder / "0").read_bytes())
    payload[4 * 40 * 30 + 3] = 255  # the sign of a number in row 30
    (folder / "0").write_bytes(payload)
    reader = narrow(tmp_path / "s.zarr", N_FEATURES, "never", mmap)
    with pytest.raises(CorruptStoreError, match=r"rows 8\d\d to 8\d\d\): feature number -\d+, expected 0 to 69999"):
        reader.locate(np.array([830]))
