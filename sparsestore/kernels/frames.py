"""Blosc frames of LZ4 blocks, unpacked many at a time: what the compressed arrays of a store are made of.

The formats are those of c-blosc 1 (README_CHUNK_FORMAT.rst, and blosc.c for what that leaves out) and of LZ4
(lz4_Block_format.md). numcodecs decodes the same frames, one a call. Here all frames of a window are one call, which
keeps the GIL released, spends nothing on a frame beside its bytes, undoes a bit-shuffle at the speed of memory, and
needs no library to be loaded.

Whatever a frame says is checked against what is left of it and of its target before it is used: no frame makes these
loops read or write elsewhere.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.kernels.native import Kernel

__all__ = ["unpack", "unpack_numpy"]

Array = NDArray[Any]
_U = np.uint64

_spare: list[Array] = []  # memory of earlier calls: fresh memory would cost as much as what is done with it
_KEPT = 2 << 20
_SLACK = 64  # bytes that copies may write behind the end of a block, and read behind it where the source goes on


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
    if size % 8 or out.ctypes.data % 8:
        return 0
    try:
        scratch = _spare.pop()
    except IndexError:
        scratch = np.empty(0, np.uint8)
    if len(scratch) < 2 * size + _SLACK:  # for the planes of a block, and for the same with its bits put back
        scratch = np.empty(2 * size + _SLACK, np.uint8)
    words = scratch[: 2 * size].view(np.uint64)
    outs = (out, out.view(np.uint16), out.view(np.uint32), out.view(np.uint64))
    begin = source.ctypes.data
    done = _unpack(begin, begin + len(source), starts, lengths, size, *outs, scratch, words, scratch.ctypes.data)
    if len(scratch) <= _KEPT and len(_spare) < 8:
        _spare.append(scratch)
    return int(done)


# ---- parts of the kernel, which numba puts into it; numbers alone pass between them, addresses among these


def _transposed(x: Any) -> Any:
    """A matrix of 8 x 8 bits, transposed (Warren, "Hacker's Delight", 7-3)."""
    t = (x ^ (x >> _U(7))) & _U(0x00AA00AA00AA00AA)
    x = x ^ t ^ (t << _U(7))
    t = (x ^ (x >> _U(14))) & _U(0x0000CCCC0000CCCC)
    x = x ^ t ^ (t << _U(14))
    t = (x ^ (x >> _U(28))) & _U(0x00000000F0F0F0F0)
    return x ^ t ^ (t << _U(28))


def _lz4(at: Any, stop: Any, limit: Any, out: Any, end: Any) -> Any:
    """Unpack the LZ4 block from `at` to `stop` to between `out` and `end`; whether it is sound.

    Reads nothing from `limit` on, and writes up to 31 bytes behind `end`.
    """
    first = out
    while at < stop:
        token = _load1(at)
        at += _U(1)
        n = token >> _U(4)
        if n == _U(15):
            while at < stop:
                more = _load1(at)
                at += _U(1)
                n += more
                if more != _U(255):
                    break
        if n > stop - at or n > end - out:
            return False
        done = out + n
        if n + _U(31) < limit - at:
            source = at
            while True:
                _copy32(out, source)
                out += _U(32)
                source += _U(32)
                if out >= done:
                    break
        else:
            for k in range(n):
                _store1(out + _U(k), _load1(at + _U(k)))
        out = done
        at += n
        if at == stop:
            return out == end
        if stop - at < _U(2):
            return False
        back = _load1(at) | (_load1(at + _U(1)) << _U(8))
        at += _U(2)
        n = token & _U(15)
        if n == _U(15):
            while at < stop:
                more = _load1(at)
                at += _U(1)
                n += more
                if more != _U(255):
                    break
        n += _U(4)
        if back == _U(0) or back > out - first or n > end - out:
            return False
        done = out + n
        source = out - back
        if back >= _U(32):
            while True:
                _copy32(out, source)
                out += _U(32)
                source += _U(32)
                if out >= done:
                    break
        elif back >= _U(8):
            while True:
                _store8(out, _load8(source))
                _store8(out + _U(8), _load8(source + _U(8)))
                out += _U(16)
                source += _U(16)
                if out >= done:
                    break
        else:  # a pattern of 1 to 7 bytes, repeated until it fills eight
            bits = back << _U(3)
            x = _load8(source) & ((_U(1) << bits) - _U(1))
            x |= x << bits
            if back < _U(4):
                x |= x << (bits + bits)
            if back == _U(1):
                x |= x << _U(32)
            if back & (back - _U(1)) == _U(0):
                while True:
                    _store8(out, x)
                    _store8(out + _U(8), x)
                    _store8(out + _U(16), x)
                    _store8(out + _U(24), x)
                    out += _U(32)
                    if out >= done:
                        break
            else:
                step = _U(6) if back == _U(3) else back  # whole patterns
                while True:
                    _store8(out, x)
                    out += step
                    if out >= done:
                        break
        out = done
    return False


def _copy(to: Any, at: Any, n: Any) -> None:
    """Copy n bytes, and nothing beyond."""
    stop = at + n
    while stop - at >= _U(32):
        _copy32(to, at)
        to += _U(32)
        at += _U(32)
    while at < stop:
        _store1(to, _load1(at))
        to += _U(1)
        at += _U(1)


def _known(at: Any, length: Any, total: Any) -> Any:
    """Whether a frame is one of LZ4 that holds `total` bytes, and its table of blocks is all there."""
    if length < _U(16) or _load1(at) != _U(2) or _load1(at + _U(1)) != _U(1) or _load1(at + _U(2)) >> _U(5) != _U(1):
        return False
    item, block = _load1(at + _U(3)), _load4(at + _U(8))
    if item > _U(8) or not (_U(0b100010110) >> item) & _U(1) or block == _U(0) or block % item:  # 1, 2, 4 or 8
        return False
    if _load4(at + _U(4)) != total or block > total or _load4(at + _U(12)) != length:
        return False
    if _load1(at + _U(2)) & _U(2):
        return length == total + _U(16)
    return length >= _U(16) + _U(4) * ((total + block - _U(1)) // block)


def _planes(at: Any, stop: Any, limit: Any, out: Any, n: Any, parts: Any) -> Any:
    """Unpack a block: `parts` streams, each its length and an LZ4 block or plain bytes; whether it is sound."""
    part = n // parts
    for _ in range(parts):
        if stop - at < _U(4):
            return False
        packed = _load4(at)
        at += _U(4)
        if packed > stop - at:
            return False
        if packed == part:
            _copy(out, at, part)
        elif not _lz4(at, at + packed, limit, out, out + part):
            return False
        at += packed
        out += part
    return True


def _parts() -> dict[str, Any]:
    """The parts, and the instructions that move bytes at any address: numba has no others that are as wide."""
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    byte, four, word = ir.IntType(8), ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(byte, 32)

    def loading(kind: Any) -> Any:
        @intrinsic
        def load(typing: Any, at: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                found = builder.load(builder.inttoptr(arguments[0], kind.as_pointer()), align=1)
                return found if kind is word else builder.zext(found, word)

            return types.uint64(types.uint64), generate

        return load

    def storing(kind: Any) -> Any:
        @intrinsic
        def store(typing: Any, to: Any, number: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                to, number = arguments
                number = number if kind is word else builder.trunc(number, kind)
                builder.store(number, builder.inttoptr(to, kind.as_pointer()), align=1)
                return context.get_dummy_value()

            return types.void(types.uint64, types.uint64), generate

        return store

    @intrinsic
    def copy32(typing: Any, to: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            to, at = (builder.inttoptr(address, vector.as_pointer()) for address in arguments)
            builder.store(builder.load(at, align=1), to, align=1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), generate

    names = {"_load1": loading(byte), "_load4": loading(four), "_load8": loading(word)}
    names |= {"_store1": storing(byte), "_store8": storing(word), "_copy32": copy32}
    for part in (_transposed, _known, _copy, _lz4, _planes):
        complete = FunctionType(part.__code__, {**globals(), **names}, part.__name__)
        names[part.__name__] = njit(forceinline=True)(complete)
    return names


@Kernel(needs=_parts)
def _unpack(
    source: int,
    source_end: int,
    starts: Array,
    lengths: Array,
    size: int,
    out8: Array,
    out16: Array,
    out32: Array,
    out64: Array,
    out_scratch: Array,
    out_words: Array,
    scratch: int,
) -> int:
    """See `unpack`. The first four outputs are one and the same memory; the others are at the address `scratch`."""
    # loops end by their condition alone: numba counts references to arrays where there are several ways out
    total, frame, count = _U(size), _U(0), _U(len(starts))
    while frame < count:
        begin, length, to = _U(source) + _U(starts[frame]), _U(lengths[frame]), frame * total
        flags, item, block, b, blocks = _U(0), _U(1), total, _U(0), _U(0)
        sound = _known(begin, length, total)
        if sound:
            flags, item, block = _load1(begin + _U(2)), _load1(begin + _U(3)), _load4(begin + _U(8))
            if flags & _U(2):
                for k in range(total):
                    out8[to + _U(k)] = np.uint8(_load1(begin + _U(16) + _U(k)))
            else:
                blocks = (total + block - _U(1)) // block
        while b < blocks:
            at = _load4(begin + _U(16) + _U(4) * b)
            n = min(block, total - b * block)
            rows = n // item
            # bytes of the same significance are packed on their own, but not in small blocks nor in a short last one
            parts = item if (not flags & _U(16) and n == block and rows >= _U(128)) else _U(1)
            sound = at <= length and not (flags & _U(4) and rows & _U(7))
            sound = sound and _planes(begin + at, begin + length, _U(source_end), _U(scratch), n, parts)
            first = _U(0)
            if not sound:
                rows = n = _U(0)
            elif flags & _U(4):  # bits of the same significance lie together: bring those of an element together
                first = total
                for p in range(item):
                    for k in range(rows >> _U(3)):
                        i, eighth = _U(p) * rows + _U(k), rows >> _U(3)
                        x = _U(out_scratch[i]) | (_U(out_scratch[i + eighth]) << _U(8))
                        x |= _U(out_scratch[i + eighth * _U(2)]) << _U(16)
                        x |= _U(out_scratch[i + eighth * _U(3)]) << _U(24)
                        x |= _U(out_scratch[i + eighth * _U(4)]) << _U(32)
                        x |= _U(out_scratch[i + eighth * _U(5)]) << _U(40)
                        x |= _U(out_scratch[i + eighth * _U(6)]) << _U(48)
                        x |= _U(out_scratch[i + eighth * _U(7)]) << _U(56)
                        out_words[((first + _U(p) * rows) >> _U(3)) + _U(k)] = _transposed(x)
            if item == _U(1) or not flags & _U(5):
                for k in range(n):
                    out8[to + _U(k)] = out_scratch[first + _U(k)]
            elif item == _U(2):
                for k in range(rows):
                    i = first + _U(k)
                    out16[(to >> _U(1)) + _U(k)] = np.uint16(out_scratch[i]) | (
                        np.uint16(out_scratch[i + rows]) << np.uint16(8)
                    )
            elif item == _U(4):
                for k in range(rows):
                    i = first + _U(k)
                    out32[(to >> _U(2)) + _U(k)] = (
                        np.uint32(out_scratch[i])
                        | (np.uint32(out_scratch[i + rows]) << np.uint32(8))
                        | (np.uint32(out_scratch[i + rows * _U(2)]) << np.uint32(16))
                        | (np.uint32(out_scratch[i + rows * _U(3)]) << np.uint32(24))
                    )
            else:
                for k in range(rows):
                    i = first + _U(k)
                    x = _U(out_scratch[i]) | (_U(out_scratch[i + rows]) << _U(8))
                    x |= (_U(out_scratch[i + rows * _U(2)]) << _U(16)) | (_U(out_scratch[i + rows * _U(3)]) << _U(24))
                    x |= (_U(out_scratch[i + rows * _U(4)]) << _U(32)) | (_U(out_scratch[i + rows * _U(5)]) << _U(40))
                    x |= (_U(out_scratch[i + rows * _U(6)]) << _U(48)) | (_U(out_scratch[i + rows * _U(7)]) << _U(56))
                    out64[(to >> _U(3)) + _U(k)] = x
            to += n
            b += _U(1)
            if not sound:
                blocks = _U(0)
        if sound:
            frame += _U(1)
        else:
            count = frame
    return np.int64(frame)


def unpack_numpy(source: Array, starts: Array, lengths: Array, size: int, out: Array) -> int:
    """Twin of `unpack`, for sound frames."""
    for frame, (begin, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        payload = source[begin : begin + length]
        words = payload[4:16].view("<u4").tolist() if length >= 16 else [0, 0, 0]
        flags, item, block = int(payload[2]), int(payload[3]), words[1]
        if words[0] != size or flags >> 5 != 1 or item not in (1, 2, 4, 8):
            return frame
        if flags & 2:
            out[frame * size : (frame + 1) * size] = payload[16:]
            continue
        for b, at in enumerate(payload[16 : 16 + 4 * -(-size // block)].view("<u4").tolist()):
            n = min(block, size - b * block)
            planes = b""
            for _ in range(item if not flags & 16 and n == block and n // item >= 128 else 1):
                packed, at = int(payload[at : at + 4].view("<u4")[0]), at + 4
                part = payload[at : at + packed].tobytes()
                planes += part if packed == n or (packed * item == n and not flags & 16 and n == block) else _lz4_plain(part)
                at += packed
            plain = np.frombuffer(planes, np.uint8)
            if flags & 4:
                bits = np.unpackbits(plain.reshape(item, 8, -1), axis=2, bitorder="little")
                plain = np.packbits(bits.transpose(2, 0, 1), axis=2, bitorder="little").ravel()
            elif flags & 1:
                plain = plain.reshape(item, -1).T.ravel()
            out[frame * size + b * block :][:n] = plain
    return len(starts)


def _lz4_plain(block: bytes) -> bytes:
    """One LZ4 block unpacked, byte by byte."""
    out, at = bytearray(), 0

    def length(n: int) -> int:
        nonlocal at
        while n >= 15 and (n - 15) % 255 == 0:
            n += block[at]
            at += 1
            if block[at - 1] != 255:
                break
        return n

    while True:
        token = block[at]
        at += 1
        n = length(token >> 4)
        out += block[at : at + n]
        at += n
        if at == len(block):
            return bytes(out)
        back = int.from_bytes(block[at : at + 2], "little")
        at += 2
        for _ in range(length(token & 15) + 4):
            out.append(out[-back])
