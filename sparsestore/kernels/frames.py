"""Blosc frames of LZ4 blocks, unpacked many at a time: what the compressed arrays of a store are made of.

The formats are those of c-blosc 1 (README_CHUNK_FORMAT.rst, and blosc.c for what that leaves out) and of LZ4
(lz4_Block_format.md). numcodecs decodes the same frames, one a call. Here all frames of a window are one call, which
keeps the GIL released, spends nothing on a frame beside its bytes, undoes a bit-shuffle at the speed of memory, and
needs no library to be loaded.

Whatever a frame says is checked against what is left of it and of its target before it is used: no frame makes these
loops read or write elsewhere.
"""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from sparsestore.kernels.crc32c import LackingInstructionError, instructions, shift_table
from sparsestore.kernels.native import Kernel

__all__ = ["first_damaged", "first_damaged_numpy", "unpack", "unpack_numpy"]

Array = NDArray[Any]
_U = np.uint64
_LANE = 128  # words of eight bytes


@functools.cache
def _shifts() -> NDArray[np.uint32]:
    """Tables that join three lanes."""
    return np.stack([shift_table(_LANE), shift_table(2 * _LANE)])


_spare: list[Array] = []  # memory of earlier calls: fresh memory would cost as much as what is done with it
_KEPT = 2 << 20
_SLACK = 128  # bytes that copies may write behind the end of a block, and read behind it where the source goes on


def unpack(source: Array, starts: Array, lengths: Array, size: int, out: Array) -> int:
    """Unpack frames of `size` bytes each, end to end; gives how many there were before the first that it can not.

    That one is damaged, or of a kind that is left to numcodecs: of another compressor, or of odd sizes.

    Parameters
    ----------
    source : (n,) uint8 array
    starts, lengths : (m,) int64 array
        Where the frames lie in `source`; inside of it, which is not checked.
    size : int
        Bytes of each frame, unpacked.
    out : (m * size,) uint8 array
    """
    try:
        scratch = _spare.pop()
    except IndexError:
        scratch = np.empty(0, np.uint8)
    if len(scratch) < 2 * size + _SLACK:  # for the planes of a block, and for the same with its bits put back
        scratch = np.empty(2 * size + _SLACK, np.uint8)
    addresses = [array.ctypes.data for array in (source, starts, lengths, out, scratch)]
    done = _unpack(*addresses, len(source), len(starts), size)
    if len(scratch) <= _KEPT and len(_spare) < 8:
        _spare.append(scratch)
    return int(done)


def first_damaged(source: Array, starts: Array, lengths: Array, expected: Array) -> int:
    """Number of the first frame whose crc32c is another one than expected, or -1.

    Parameters
    ----------
    source : (n,) uint8 array
    starts, lengths : (m,) int64 array
        As for `unpack`.
    expected : (m,) uint32 array
    """
    shifts = _shifts()
    addresses = [array.ctypes.data for array in (source, starts, lengths, expected, shifts)]
    try:
        return int(_damaged(*addresses, len(starts)))
    except LackingInstructionError:
        return first_damaged_numpy(source, starts, lengths, expected)


# ---- the kernels and their parts. Numbers alone pass between them, addresses among these: numba counts references to
# arrays that are passed on or left in several ways. The first six are instructions, which numba is told to make.


def _get1(base: Any, at: Any) -> Any:
    """The byte at address base + at, as a number."""
    raise NotImplementedError


_get4 = _get8 = _get1  # 4 and 8 bytes, wherever they are


def _put1(base: Any, at: Any, number: Any) -> None:
    """Set the byte at address base + at."""
    raise NotImplementedError


_put2 = _put4 = _put8 = _put1


def _copy32(to: Any, i: Any, base: Any, j: Any) -> None:
    """Copy 32 bytes from address base + j to to + i."""
    raise NotImplementedError


def _lz4(source: Any, at: Any, stop: Any, limit: Any, out: Any, end: Any) -> Any:
    """Unpack the LZ4 block from `at` to `stop` of the source into `out`, up to its `end`; whether it is sound.

    Reads nothing from `limit` of the source on, and writes up to 63 bytes behind `end`.
    """
    to = _U(0)
    while at < stop:
        token = _get1(source, at)
        at += _U(1)
        n = token >> _U(4)
        if at == stop:
            return n == _U(0) and to == end
        long = _U(1) if n == _U(15) else _U(0)
        more = _get1(source, at) & (_U(0) - long)
        at += long
        n += more
        while more == _U(255) and at < stop:
            more = _get1(source, at)
            at += _U(1)
            n += more
        if at > stop:
            return False
        if n > stop - at or n > end - to:
            return False
        done = to + n
        if n + _U(63) < limit - at:
            i, j = to, at
            while True:
                _copy32(out, i, source, j)
                _copy32(out, i + _U(32), source, j + _U(32))
                i += _U(64)
                j += _U(64)
                if i >= done:
                    break
        else:
            for k in range(n):
                _put1(out, to + _U(k), _get1(source, at + _U(k)))
        to = done
        at += n
        if at == stop:
            return to == end
        if stop - at < _U(2):
            return False
        back = _get1(source, at) | (_get1(source, at + _U(1)) << _U(8))
        at += _U(2)
        if at == stop:
            return False
        n = token & _U(15)
        long = _U(1) if n == _U(15) else _U(0)
        more = _get1(source, at) & (_U(0) - long)
        at += long
        n += more
        while more == _U(255) and at < stop:
            more = _get1(source, at)
            at += _U(1)
            n += more
        if at > stop:
            return False
        n += _U(4)
        if back == _U(0) or back > to or n > end - to:
            return False
        done = to + n
        i, j = to, to - back
        if back >= _U(32):
            while True:
                _copy32(out, i, out, j)
                i += _U(32)
                j += _U(32)
                if i >= done:
                    break
        elif back >= _U(8):
            while True:
                _put8(out, i, _get8(out, j))
                _put8(out, i + _U(8), _get8(out, j + _U(8)))
                i += _U(16)
                j += _U(16)
                if i >= done:
                    break
        else:  # a pattern of 1 to 7 bytes, repeated until it fills eight
            bits = back << _U(3)
            x = _get8(out, j) & ((_U(1) << bits) - _U(1))
            x |= x << bits
            if back < _U(4):
                x |= x << (bits + bits)
            if back == _U(1):
                x |= x << _U(32)
            if back & (back - _U(1)) == _U(0):
                while True:
                    _put8(out, i, x)
                    _put8(out, i + _U(8), x)
                    _put8(out, i + _U(16), x)
                    _put8(out, i + _U(24), x)
                    i += _U(32)
                    if i >= done:
                        break
            else:
                step = _U(6) if back == _U(3) else back  # whole patterns
                while True:
                    _put8(out, i, x)
                    i += step
                    if i >= done:
                        break
        to = done
    return False


def _planes(source: Any, at: Any, stop: Any, limit: Any, out: Any, n: Any, parts: Any) -> Any:
    """Unpack a block: `parts` streams, each its length and an LZ4 block or plain bytes; whether it is sound."""
    part = n // parts
    for p in range(parts):
        if stop - at < _U(4):
            return False
        packed = _get4(source, at)
        at += _U(4)
        if packed > stop - at:
            return False
        if packed == part:
            for k in range(part):
                _put1(out, _U(p) * part + _U(k), _get1(source, at + _U(k)))
        elif not _lz4(source, at, at + packed, limit, out + _U(p) * part, part):
            return False
        at += packed
    return True


def _join_bits(planes: Any, rows: Any, item: Any, out: Any) -> None:
    """Bring the bits of each byte together: those of the same significance lie in a row of `rows` / 8 bytes."""
    eighth = rows >> _U(3)
    for p in range(item):
        first = _U(p) * rows
        for k in range(eighth):
            at = first + _U(k)
            x = _get1(planes, at) | (_get1(planes, at + eighth) << _U(8))
            x |= _get1(planes, at + eighth * _U(2)) << _U(16)
            x |= _get1(planes, at + eighth * _U(3)) << _U(24)
            x |= _get1(planes, at + eighth * _U(4)) << _U(32)
            x |= _get1(planes, at + eighth * _U(5)) << _U(40)
            x |= _get1(planes, at + eighth * _U(6)) << _U(48)
            x |= _get1(planes, at + eighth * _U(7)) << _U(56)
            # 8 x 8 bits, transposed: Warren, "Hacker's Delight", 7-3
            t = (x ^ (x >> _U(7))) & _U(0x00AA00AA00AA00AA)
            x = x ^ t ^ (t << _U(7))
            t = (x ^ (x >> _U(14))) & _U(0x0000CCCC0000CCCC)
            x = x ^ t ^ (t << _U(14))
            t = (x ^ (x >> _U(28))) & _U(0x00000000F0F0F0F0)
            _put8(out, first + (_U(k) << _U(3)), x ^ t ^ (t << _U(28)))


def _join_bytes(planes: Any, rows: Any, item: Any, out: Any) -> None:
    """Bring the bytes of each element together: those of the same significance lie in a row."""
    if item == _U(1):
        for k in range(rows):
            _put1(out, _U(k), _get1(planes, _U(k)))
    elif item == _U(2):
        for k in range(rows):
            at = _U(k)
            _put2(out, at << _U(1), _get1(planes, at) | (_get1(planes, at + rows) << _U(8)))
    elif item == _U(4):
        for k in range(rows):
            at = _U(k)
            low = _get1(planes, at) | (_get1(planes, at + rows) << _U(8))
            high = _get1(planes, at + rows * _U(2)) | (_get1(planes, at + rows * _U(3)) << _U(8))
            _put4(out, at << _U(2), low | (high << _U(16)))
    else:
        for k in range(rows):
            at = _U(k)
            x = _get1(planes, at) | (_get1(planes, at + rows) << _U(8))
            x |= (_get1(planes, at + rows * _U(2)) << _U(16)) | (_get1(planes, at + rows * _U(3)) << _U(24))
            x |= (_get1(planes, at + rows * _U(4)) << _U(32)) | (_get1(planes, at + rows * _U(5)) << _U(40))
            x |= (_get1(planes, at + rows * _U(6)) << _U(48)) | (_get1(planes, at + rows * _U(7)) << _U(56))
            _put8(out, at << _U(3), x)


def _frame(source: Any, begin: Any, length: Any, limit: Any, out: Any, scratch: Any, size: Any) -> Any:
    """Unpack one frame; whether it is one of LZ4 that is sound."""
    if length < _U(16) or _get1(source, begin) != _U(2) or _get1(source, begin + _U(1)) != _U(1):
        return False
    flags, item = _get1(source, begin + _U(2)), _get1(source, begin + _U(3))
    if flags >> _U(5) != _U(1) or item > _U(8) or not (_U(0b100010110) >> item) & _U(1):  # LZ4; 1, 2, 4 or 8 bytes
        return False
    block = _get4(source, begin + _U(8))
    if _get4(source, begin + _U(4)) != size or _get4(source, begin + _U(12)) != length:
        return False
    if block == _U(0) or block > size or flags & _U(8):
        return False
    if flags & _U(2):  # plain bytes
        if length == size + _U(16):
            _join_bytes(source + begin + _U(16), size, _U(1), out)
        return length == size + _U(16)
    if block % item or size % item:
        return False
    blocks = (size + block - _U(1)) // block
    if length < _U(16) + _U(4) * blocks:
        return False
    for b in range(blocks):
        at, first = _get4(source, begin + _U(16) + _U(4) * _U(b)), _U(b) * block
        n = min(block, size - first)
        rows = n // item
        if at > length or (flags & _U(4) and rows & _U(7)):
            return False
        # bytes of the same significance are packed on their own, but not in small blocks nor in a short last one
        parts = item if (not flags & _U(16) and n == block and rows >= _U(128)) else _U(1)
        if not _planes(source, begin + at, begin + length, limit, scratch, n, parts):
            return False
        planes = scratch
        if flags & _U(4):
            planes = scratch + size
            _join_bits(scratch, rows, item, planes)
        if flags & _U(5):
            _join_bytes(planes, rows, item, out + first)
        else:
            _join_bytes(planes, n, _U(1), out + first)
    return True


def _parts() -> dict[str, Any]:
    """The parts, compiled into the kernel, and the instructions that they are made of."""
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    byte, word = ir.IntType(8), ir.IntType(64)
    vector = ir.VectorType(byte, 32)

    def pointer(builder: Any, base: Any, at: Any, kind: Any) -> Any:
        # not the address of a sum: that LLVM could not follow through a loop
        place = builder.gep(builder.inttoptr(base, byte.as_pointer()), (at,))
        return builder.bitcast(place, kind.as_pointer())

    def getting(size: int) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            base, at = arguments
            found = builder.load(pointer(builder, base, at, ir.IntType(8 * size)), align=1)
            return found if size == 8 else builder.zext(found, word)

        @intrinsic
        def get(_typing: Any, _base: Any, _at: Any) -> Any:
            return types.uint64(types.uint64, types.uint64), generate

        return get

    def putting(size: int) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            base, at, number = arguments
            kind = ir.IntType(8 * size)
            builder.store(
                number if size == 8 else builder.trunc(number, kind), pointer(builder, base, at, kind), align=1
            )
            return context.get_dummy_value()

        @intrinsic
        def put(_typing: Any, _base: Any, _at: Any, _number: Any) -> Any:
            return types.void(types.uint64, types.uint64, types.uint64), generate

        return put

    def copy(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, i, base, j = arguments
        moved = builder.load(pointer(builder, base, j, vector), align=1)
        builder.store(moved, pointer(builder, to, i, vector), align=1)
        return context.get_dummy_value()

    @intrinsic
    def copy32(_typing: Any, _to: Any, _i: Any, _base: Any, _j: Any) -> Any:
        return types.void(types.uint64, types.uint64, types.uint64, types.uint64), copy

    names: dict[str, Any] = {"_copy32": copy32}
    names |= {f"_get{size}": getting(size) for size in (1, 4, 8)}
    names |= {f"_put{size}": putting(size) for size in (1, 2, 4, 8)}
    for part in (_lz4, _planes, _join_bits, _join_bytes, _frame):
        complete = FunctionType(part.__code__, {**globals(), **names}, part.__name__)
        names[part.__name__] = njit(forceinline=True)(complete)
    return names


@Kernel(needs=_parts)  # type: ignore[call-arg]
def _unpack(source: int, starts: int, lengths: int, out: int, scratch: int, limit: int, count: int, size: int) -> int:
    """See `unpack`: the first five are addresses."""
    for frame in range(_U(count)):
        begin, length = _get8(_U(starts), _U(frame) << _U(3)), _get8(_U(lengths), _U(frame) << _U(3))
        target = _U(out) + _U(frame) * _U(size)
        if not _frame(_U(source), begin, length, _U(limit), target, _U(scratch), _U(size)):
            return np.int64(frame)  # type: ignore[return-value]
    return np.int64(count)  # type: ignore[return-value]


def _crc_parts() -> dict[str, Any]:
    return {**instructions(), **_parts()}


@Kernel(needs=_crc_parts)  # type: ignore[call-arg]
def _damaged(source: int, starts: int, lengths: int, expected: int, shifts: int, count: int) -> int:
    """See `first_damaged`: all but the last are addresses."""
    bytes_, tables, lane = _U(source), _U(shifts), _U(8 * _LANE)
    for frame in range(_U(count)):
        at, left = _get8(_U(starts), _U(frame) << _U(3)), _get8(_U(lengths), _U(frame) << _U(3))
        crc = _U(0xFFFFFFFF)
        while left >= _U(3) * lane:  # three side by side: see `crc32c`
            b, c = _U(0), _U(0)
            for _ in range(_LANE):
                crc = crc32_of_eight(crc, _get8(bytes_, at))  # type: ignore[name-defined]  # noqa: F821
                b = crc32_of_eight(b, _get8(bytes_, at + lane))  # type: ignore[name-defined]  # noqa: F821
                c = crc32_of_eight(c, _get8(bytes_, at + _U(2) * lane))  # type: ignore[name-defined]  # noqa: F821
                at += _U(8)
            for k in range(4):
                low = _U(k) << _U(3)
                c ^= _get4(tables, (_U(k) << _U(10)) + (((b >> low) & _U(255)) << _U(2)))
                c ^= _get4(tables, _U(4096) + (_U(k) << _U(10)) + (((crc >> low) & _U(255)) << _U(2)))
            crc = c
            at += _U(2) * lane
            left -= _U(3) * lane
        while left >= _U(8):
            crc = crc32_of_eight(crc, _get8(bytes_, at))  # type: ignore[name-defined]  # noqa: F821
            at += _U(8)
            left -= _U(8)
        while left:
            crc ^= _get1(bytes_, at)
            for _ in range(8):
                crc = (crc >> _U(1)) ^ (_U(0x82F63B78) if crc & _U(1) else _U(0))
            at += _U(1)
            left -= _U(1)
        if crc ^ _U(0xFFFFFFFF) != _get4(_U(expected), _U(frame) << _U(2)):
            return np.int64(frame)  # type: ignore[return-value]
    return -1


def first_damaged_numpy(source: Array, starts: Array, lengths: Array, expected: Array) -> int:
    """Twin of `first_damaged`, by way of the C library."""
    for frame, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        if crc32c(source[start : start + length]) != int(expected[frame]):
            return frame
    return -1


def unpack_numpy(source: Array, starts: Array, lengths: Array, size: int, out: Array) -> int:
    """Twin of `unpack`, for sound frames."""
    for frame, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        payload = source[start : start + length]
        declared, block, _ = payload[4:16].view("<u4").tolist()
        flags, item = int(payload[2]), int(payload[3])
        if declared != size or flags >> 5 != 1 or item not in (1, 2, 4, 8) or flags & 8 or not 0 < block <= size:
            return frame
        target = out[frame * size : (frame + 1) * size]
        if flags & 2:
            target[:] = payload[16:]
            continue
        for b, at in enumerate(payload[16 : 16 + 4 * -(-size // block)].view("<u4").tolist()):
            n = min(block, size - b * block)
            parts = item if not flags & 16 and n == block and n // item >= 128 else 1
            planes = b""
            for _ in range(parts):
                packed, at = int(payload[at : at + 4].view("<u4")[0]), at + 4
                part = payload[at : at + packed].tobytes()
                planes += part if packed == n // parts else _lz4_numpy(part)
                at += packed
            plain = np.frombuffer(planes, np.uint8)
            if flags & 4:
                bits = np.unpackbits(plain.reshape(item, 8, -1), axis=2, bitorder="little")
                plain = np.packbits(bits.transpose(2, 0, 1), axis=2, bitorder="little").ravel()
            elif flags & 1:
                plain = plain.reshape(item, -1).T.ravel()
            target[b * block :][:n] = plain
    return len(starts)


def _lz4_numpy(block: bytes) -> bytes:
    """One LZ4 block unpacked, byte by byte."""
    out, at = bytearray(), 0

    def length(n: int) -> int:
        nonlocal at
        more = 255 if n == 15 else 0
        while more == 255:
            more = block[at]
            n, at = n + more, at + 1
        return n

    while True:
        token, at = block[at], at + 1
        n = length(token >> 4)
        out += block[at : at + n]
        at += n
        if at == len(block):
            return bytes(out)
        back, at = int.from_bytes(block[at : at + 2], "little"), at + 2
        for _ in range(length(token & 15) + 4):
            out.append(out[-back])
