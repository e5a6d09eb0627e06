"""Blosc frames unpacked by a compiled loop: c-blosc, by way of numcodecs, is the oracle, and no frame does harm."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc
from numpy.typing import NDArray

from sparsestore.checksum import crc32c
from sparsestore.kernels import crc32c as by_instruction
from sparsestore.kernels import frames

Array = NDArray[Any]
Unpack = Callable[[Array, Array, Array, int, Array], int]

GUARD = 256


def packed(
    values: Array, cname: str = "lz4", clevel: int = 5, shuffle: int = blosc.SHUFFLE, blocksize: int = 0
) -> bytes:
    return bytes(blosc.compress(values, cname.encode(), clevel, shuffle, blocksize))


def unpacked(payloads: list[bytes], size: int, unpack: Unpack = frames.unpack) -> tuple[int, Array]:
    """How many frames were unpacked, and what they gave; nothing beside it may be touched."""
    lengths = np.array([len(payload) for payload in payloads], np.int64)
    source = np.frombuffer(b"".join(payloads), np.uint8)
    around = np.full(2 * GUARD + size * len(payloads), 0xA5, np.uint8)
    done = unpack(source, np.cumsum(lengths) - lengths, lengths, size, around[GUARD:-GUARD])
    assert (around[:GUARD] == 0xA5).all()
    assert (around[-GUARD:] == 0xA5).all()
    return done, around[GUARD:-GUARD]


def values_of(kind: str, n: int, dtype: str) -> Array:
    rng = np.random.default_rng(n)
    found = {
        "noise": rng.integers(0, 2**62, n),
        "small": rng.geometric(0.6, n),
        "ascending": np.sort(rng.integers(0, 1 << 20, n)),
        "rows": np.sort(rng.integers(0, 1 << 18, (-(-n // 40), 40)), axis=1).ravel()[:n],
        "zeros": np.zeros(n),
        "steps": np.repeat(rng.integers(0, 3, -(-n // 9)), 9)[:n],
        "pattern": np.resize(rng.integers(0, 250, rng.integers(1, 40)), n),
    }[kind]
    return np.ascontiguousarray(found).astype(dtype)


KINDS = ("noise", "small", "ascending", "rows", "zeros", "steps", "pattern")
SHUFFLES = {"none": blosc.NOSHUFFLE, "bytes": blosc.SHUFFLE, "bits": blosc.BITSHUFFLE}


@pytest.mark.parametrize("shuffle", SHUFFLES.values(), ids=SHUFFLES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "float32", "float64"])
@given(
    kind=st.sampled_from(KINDS),
    n=st.sampled_from([8, 64, 120, 128, 1000, 1024, 4096, 16_384, 65_536]),
    cname=st.sampled_from(["lz4", "lz4hc"]),
    clevel=st.sampled_from([0, 1, 5, 9]),
    blocksize=st.sampled_from([0, 0, 256, 5000, 1 << 14]),
)
@settings(max_examples=40, deadline=None)
def test_frames_hold_what_was_packed(
    shuffle: int, dtype: str, kind: str, n: int, cname: str, clevel: int, blocksize: int
) -> None:
    parts = [values_of(kind, n, dtype), values_of("small", n, dtype)]
    payloads = [packed(part, cname, clevel, shuffle, blocksize) for part in parts]
    expected = np.concatenate(parts).view(np.uint8)
    done, found = unpacked(payloads, parts[0].nbytes)
    for slot in range(2):  # what the loop leaves to c-blosc are sizes that no store has
        if slot >= done:
            assert shuffle == blosc.BITSHUFFLE
            assert blocksize or n % 8
            found[slot * parts[0].nbytes :][: parts[0].nbytes] = np.frombuffer(
                blosc.decompress(payloads[slot]), np.uint8
            )
    np.testing.assert_array_equal(found, expected)
    if done == 2 and n <= 1024:
        assert unpacked(payloads, parts[0].nbytes, frames.unpack_numpy)[0] == 2
        np.testing.assert_array_equal(unpacked(payloads, parts[0].nbytes, frames.unpack_numpy)[1], expected)


@pytest.mark.parametrize("period", [*range(1, 40), 255, 256, 4096, 65_535, 65_536])
def test_matches_of_any_distance_are_copied(period: int) -> None:
    values = np.resize(np.random.default_rng(period).integers(0, 256, period).astype(np.uint8), 1 << 18)
    values[100_000] ^= 1
    for clevel in (1, 9):
        done, found = unpacked([packed(values, "lz4hc", clevel)], values.nbytes)
        assert done == 1
        np.testing.assert_array_equal(found, values)


def frame(block: bytes, size: int, shuffled: int = 0) -> bytes:
    """A frame of one block of one stream of bytes."""
    length = 16 + 4 + 4 + len(block)
    words = np.array([size, size, length, 20, len(block)], "<u4")
    return bytes([2, 1, 0x30 | shuffled, 1]) + words.tobytes() + block


def test_a_frame_may_be_written_by_hand() -> None:
    block = bytes([0x35]) + b"abc" + bytes([3, 0]) + bytes([0x40]) + b"wxyz"
    assert unpacked([frame(block, 16)], 16)[1].tobytes() == b"abcabcabcabcwxyz"


HOSTILE = {
    "a match before the beginning": bytes([0x14]) + b"a" + bytes([2, 0]) + bytes([0x70]) + b"1234567",
    "a match at distance 0": bytes([0x14]) + b"a" + bytes([0, 0]) + bytes([0x70]) + b"1234567",
    "literals beyond the block": bytes([0xF0, 255, 255, 0]) + b"abc",
    "literals beyond the target": bytes([0xF0, 2]) + b"abcdefghijklmnopq",
    "a match beyond the target": bytes([0x1F]) + b"a" + bytes([1, 0, 255, 255, 255, 0, 0]),
    "a length without end": bytes([0x1F]) + b"a" + bytes([1, 0]) + bytes([255] * 40),
    "half a distance": bytes([0x10]) + b"a" + bytes([1]),
    "less than was declared": bytes([0x10]) + b"a",
    "nothing": b"",
    "no last literals": bytes([0x1B]) + b"a" + bytes([1, 0]),
}


@pytest.mark.parametrize("block", HOSTILE.values(), ids=HOSTILE)
def test_a_block_that_lies_is_refused(block: bytes) -> None:
    sound = packed(np.arange(2, dtype=np.int64))
    done, found = unpacked([sound, frame(block, 16), sound], 16)
    assert done == 1
    np.testing.assert_array_equal(found[:16].view(np.int64), [0, 1])


HEADS = {
    "too short": lambda head: head[:12],
    "another format": lambda head: b"\x03" + head[1:],
    "another LZ4": lambda head: head[:1] + b"\x02" + head[2:],
    "another compressor": lambda head: head[:2] + bytes([head[2] & 31 | 4 << 5]) + head[3:],
    "items of no bytes": lambda head: head[:3] + b"\x00" + head[4:],
    "items of 3 bytes": lambda head: head[:3] + b"\x03" + head[4:],
    "items of 9 bytes": lambda head: head[:3] + b"\x09" + head[4:],
    "items of 64 bytes": lambda head: head[:3] + b"\x40" + head[4:],
    "another size": lambda head: head[:4] + (1 << 30).to_bytes(4, "little") + head[8:],
    "blocks of no bytes": lambda head: head[:8] + bytes(4) + head[12:],
    "blocks of more than all": lambda head: head[:8] + (1 << 31).to_bytes(4, "little") + head[12:],
    "blocks of one byte": lambda head: head[:8] + (1).to_bytes(4, "little") + head[12:],
    "another length": lambda head: head[:12] + (1 << 20).to_bytes(4, "little") + head[16:],
    "a block outside": lambda head: head[:16] + (1 << 31).to_bytes(4, "little") + head[20:],
    "a block at the end": lambda head: head[:16] + len(head).to_bytes(4, "little") + head[20:],
    "plain bytes of another length": lambda head: head[:2] + bytes([head[2] | 2]) + head[3:],
}


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
def test_a_head_that_lies_is_refused(change: Callable[[bytes], bytes]) -> None:
    values = values_of("rows", 4096, "int32")
    assert unpacked([change(packed(values))], values.nbytes)[0] == 0


@given(
    kind=st.sampled_from(KINDS),
    shuffle=st.sampled_from(list(SHUFFLES.values())),
    dtype=st.sampled_from(["uint8", "uint16", "int32", "int64"]),
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 60),
)
@settings(max_examples=400, deadline=None)
def test_no_damaged_frame_does_harm(
    kind: str, shuffle: int, dtype: str, changes: list[tuple[int, int]], cut: int
) -> None:
    """Anything may come out, but nothing is read or written elsewhere, and nothing crashes."""
    values = values_of(kind, 2048, dtype)
    payload = bytearray(packed(values, "lz4hc", 9, shuffle, 4096))
    for at, byte in changes:
        payload[16 + at % (len(payload) - 16)] = byte  # its head is damaged by the test before
    if cut:
        payload = payload[:-cut]
        payload[12:16] = len(payload).to_bytes(4, "little")
    assert unpacked([bytes(payload)], values.nbytes)[0] in (0, 1)


@given(
    lengths=st.lists(st.integers(0, 40) | st.sampled_from([3071, 3072, 3073, 6144, 10_000]), min_size=1, max_size=6),
    gap=st.integers(0, 9),
    bad=st.sets(st.integers(0, 5)),
)
def test_the_first_damaged_frame_is_found(lengths: list[int], gap: int, bad: set[int]) -> None:
    rng = np.random.default_rng(gap)
    sizes = np.array(lengths, np.int64)
    starts = np.cumsum(sizes + gap) - sizes
    source = rng.integers(0, 256, int((sizes + gap).sum())).astype(np.uint8)
    expected = np.array([crc32c(source[at : at + n]) for at, n in zip(starts, sizes, strict=True)], np.uint32)
    for frame in bad:
        if frame < len(sizes):
            expected[frame] ^= np.uint32(1 << rng.integers(0, 32))
    first = min((frame for frame in bad if frame < len(sizes)), default=-1)
    assert frames.first_damaged(source, starts, sizes, expected) == first
    assert frames.first_damaged_numpy(source, starts, sizes, expected) == first


def test_checksums_need_no_instruction_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: int) -> int:
        raise by_instruction.LackingInstructionError

    monkeypatch.setattr(frames, "_damaged", lacking)
    source = np.arange(100, dtype=np.uint8)
    place = np.zeros(1, np.int64), np.array([100])
    assert frames.first_damaged(source, *place, np.array([crc32c(source)], np.uint32)) == -1
    assert frames.first_damaged(source, *place, np.array([1], np.uint32)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
def test_nothing_is_read_behind_the_end_of_the_source() -> None:
    """The frame ends where a page begins that ends the process when it is touched."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    room = 1 << 20
    pages = np.frombuffer(mmap.mmap(-1, room + mmap.PAGESIZE), np.uint8)
    assert libc.mprotect(pages.ctypes.data + room, mmap.PAGESIZE, 0) == 0
    for kind in KINDS:
        for shuffle in SHUFFLES.values():
            values = values_of(kind, 4096, "int32")
            for cut in (0, 1, 7, 40):
                payload = bytearray(packed(values, "lz4hc", 9, shuffle))
                payload = payload[: len(payload) - cut]
                payload[12:16] = len(payload).to_bytes(4, "little")
                source = pages[room - len(payload) : room]
                source[:] = payload
                out = np.empty(values.nbytes, np.uint8)
                done = frames.unpack(source, np.zeros(1, np.int64), np.array([len(payload)]), values.nbytes, out)
                assert done == (not cut)
                if done:
                    np.testing.assert_array_equal(out, values.view(np.uint8))
