"""The loops of `verify` agree with their twins, with the C library, and with the definition of a checksum."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import value
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_checks import lacking

from sparsestore.checksum import PIECE
from sparsestore.kernels import survey
from sparsestore.kernels.native import Kernel

Array = NDArray[Any]


def memory(n_bytes: int, seed: int = 0) -> Array:
    """Bytes of noise that begin at a multiple of 64."""
    raw = np.empty(n_bytes + 64, np.uint8)
    found = raw[-raw.ctypes.data % 64 :][:n_bytes]
    found[:] = np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8)
    return found


def outputs(stored: Array, values: Array) -> tuple[Array, Array, Array]:
    n = -(-values.nbytes // PIECE)
    return np.zeros(-(-len(stored) // PIECE), np.uint32), np.zeros(n, values.dtype), np.zeros(n, values.dtype)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("n_bytes", [8, PIECE - 8, PIECE, PIECE + 8, 5 * PIECE, 5 * PIECE + 16])
@pytest.mark.parametrize("instruction", [True, False])
def test_pieces_are_looked_at_as_by_the_twin(
    dtype: Any, n_bytes: int, instruction: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    if not instruction:
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(survey, "survey", Kernel(survey.survey.function, needs=lacking))
    stored = memory(n_bytes)
    for values in (
        stored.view(dtype),
        np.arange(n_bytes // np.dtype(dtype).itemsize).astype(dtype),
        stored[:0].view(dtype),
    ):
        found, expected = outputs(stored, values), outputs(stored, values)
        survey.look(stored, values, *found)
        survey.survey_numpy(stored, values, *expected)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert found[0].tolist() == [value(stored[at : at + PIECE].tobytes()) for at in range(0, n_bytes, PIECE)]


def test_as_many_turns_as_a_piece_has_numbers_are_counted() -> None:
    values = np.arange(PIECE, 0, -1).astype(np.uint16)  # two pieces
    found = outputs(np.empty(0, np.uint8), values)
    survey.look(np.empty(0, np.uint8), values, *found)
    assert found[2].tolist() == [PIECE // 2 - 1, PIECE // 2]


NO_WORDS = """
import ctypes, mmap
import numpy as np
from sparsestore.kernels import survey

pages = np.frombuffer(mmap.mmap(-1, 2 * mmap.PAGESIZE), np.uint8)
address = pages.ctypes.data + mmap.PAGESIZE
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
nothing = pages[mmap.PAGESIZE : mmap.PAGESIZE]
largest, turns = np.zeros((2, 5), np.uint32)
survey.look(nothing, np.arange(5 * 4096, dtype=np.uint32), np.empty(0, np.uint32), largest, turns)
print(largest.tolist())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guards a page as Linux does")
def test_numbers_of_which_no_bytes_are_given_are_looked_at_alone() -> None:
    """A page that can not be read stands where the bytes would be."""
    done = subprocess.run([sys.executable, "-c", NO_WORDS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{list(range(4095, 5 * 4096, 4096))}\n"), done.stderr


@given(lengths=st.lists(st.integers(0, 3 * PIECE), max_size=8), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_checksum_of_a_whole_follows_from_those_of_its_parts(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.bytes(n) for n in lengths]
    crcs, sizes = np.array([value(part) for part in parts], np.uint32), np.array(lengths, np.int64)
    whole = value(b"".join(parts))
    assert survey.combined(crcs, sizes) == whole
    assert survey.combine_numpy(crcs, sizes, survey._powers()) == whole


def test_parts_may_be_longer_than_memory() -> None:
    """Zeros that are appended in two steps, or in one."""
    crc, zeros = np.uint32(value(b"x")), np.uint32(0)
    for n in (2**31 - 1, 2**40 + 12345):
        # what zeros add to a checksum is linear: their own crc32c is left out on both sides
        steps = survey.combined(np.array([crc, zeros, zeros]), np.array([1, n, 2 * n]))
        assert steps == survey.combined(np.array([crc, zeros]), np.array([1, 3 * n]))


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    seed=st.integers(0, 2**32),
    cut=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
@settings(deadline=None)
def test_turns_at_rows_are_counted_as_by_the_twin(lengths: list[int], seed: int, cut: tuple[int, int]) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = np.random.default_rng(seed).integers(0, 4, int(offsets[-1])).astype(np.uint16)
    first, last = sorted(min(at, len(values)) for at in cut)
    expected = sum(bool(values[at] <= values[at - 1]) for at in sorted({*offsets.tolist()}) if first < at < last)
    part = values[first:last]
    for count in (survey.row_turns, survey.row_turns_numpy):
        seen = np.zeros(3, np.int64)
        for some in np.array_split(np.arange(len(offsets)), 3):  # blocks, one after the other
            if len(some):
                block = np.diff(offsets[some]).astype(np.uint8)
                count(part, block, int(offsets[some[0]]) - first, seen)
        assert seen[0] == expected
        if first < last:
            assert seen[1] == (first in offsets)


@settings(deadline=None)
@given(offsets=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300), max_size=40))
def test_lengths_of_rows_are_those_of_the_twin(offsets: list[int]) -> None:
    given_ = np.array(sorted(offsets) if len(offsets) % 2 else offsets, np.int64)
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        lengths, expected = np.empty((2, max(len(given_) - 1, 0)), dtype)
        assert survey.row_lengths(given_, lengths) == survey.row_lengths_numpy(given_, expected)
        assert lengths.tolist() == expected.tolist()


@given(
    dtype=st.sampled_from(["u2", "u4", "u8"]),
    n_bytes=st.integers(1, 5 * PIECE),
    start=st.integers(0, 100),
    padding=st.integers(0, 40),
    rows=st.lists(st.integers(0, 2 * PIECE), max_size=30),
    begin=st.integers(-PIECE, 100),
    room=st.sampled_from([PIECE, 2 * PIECE, 8 * PIECE + 100]),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_parts_of_files_are_seen_as_by_the_twin(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    n_bytes: int,
    start: int,
    padding: int,
    rows: list[int],
    begin: int,
    room: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 50, start // 8 + n_bytes // np.dtype(dtype).itemsize + 9).astype(dtype)
    path = tmp_path_factory.getbasetemp() / "part"
    path.write_bytes(bytes(start) + numbers.tobytes()[:n_bytes])
    n = max(n_bytes // numbers.itemsize - padding, 0)
    lengths, block = np.array(rows, np.uint32), memory(room)
    with path.open("rb") as file:
        found = survey.swept(file.fileno(), start, n_bytes, block, dtype, n, lengths, begin)
        if found is None:
            pytest.skip("this machine has no instruction for crc32c")
        seen = np.zeros(6, np.uint64)
        crcs, done = survey.sweep_numpy(file.fileno(), start, n_bytes, dtype, n, lengths, begin, seen)
        assert done == n_bytes
        tail = [value(path.read_bytes()[start + len(crcs) * PIECE :])] if n_bytes % PIECE else []
        assert found[0].tolist() == crcs + tail
        assert found[1].tolist() == seen.tolist()
        assert survey.swept(file.fileno(), start, n_bytes + 1, block, dtype, n, lengths, begin) is None


def test_what_can_not_be_read_is_not_seen(tmp_path: Path) -> None:
    room = np.empty(PIECE, np.uint8)
    with (tmp_path / "file").open("wb") as file:  # for writing alone
        assert survey.swept(file.fileno(), 0, 8, room, "u4", 2, np.empty(0, np.uint32), 0) is None
