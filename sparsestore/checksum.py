"""crc32c (Castagnoli) of whole objects and of pieces: what tells stored bytes from damaged ones.

The polynomial is that of RFC 3720, appendix B.4, computed by google-crc32c's C library.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from google_crc32c import extend, value
from numpy.typing import NDArray

__all__ = ["PIECE", "crc32c", "extend_crc32c", "follow_crc32c", "piece_crc32c"]

PIECE = 16384
"""Bytes of an uncompressed array that share one checksum."""


def crc32c(payload: bytes | NDArray[np.uint8]) -> int:
    """Checksum of bytes, or of a contiguous uint8 array without copying it.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    return int(value(payload))


def extend_crc32c(crc: int, payload: bytes | NDArray[np.uint8]) -> int:
    """Checksum of what `crc` covers followed by `payload`."""
    return int(extend(crc, payload))


def piece_crc32c(payload: NDArray[Any], piece: int = PIECE) -> NDArray[np.uint32]:
    """Checksum of each `piece` bytes of a contiguous uint8 array; the last piece may be short."""
    starts = range(0, len(payload), piece)
    return np.fromiter((value(payload[at : at + piece]) for at in starts), np.uint32, len(starts))


def follow_crc32c(crc: int, pieces: NDArray[np.uint32]) -> int:
    """Checksum of what `crc` covers followed by whole pieces of `PIECE` bytes, of which only the checksums are known.

    That of two parts is the second's, and what the first's becomes behind so many zeros, which is linear: as zlib's
    crc32_combine has it.

    Examples
    --------
    >>> zeros = bytes(PIECE)
    >>> follow_crc32c(crc32c(b"123456789"), np.array([crc32c(zeros)])) == crc32c(b"123456789" + zeros)
    True
    """
    if not len(pieces):
        return crc
    first, second, third, fourth = _behind_a_piece()
    for piece in pieces.tolist():
        crc = first[crc & 255] ^ second[crc >> 8 & 255] ^ third[crc >> 16 & 255] ^ fourth[crc >> 24] ^ piece
    return crc


@functools.cache
def _behind_a_piece() -> tuple[list[int], list[int], list[int], list[int]]:
    """What each byte of a checksum adds to that of the same bytes with `PIECE` zeros behind them."""
    zeros = bytes(PIECE)
    nothing = extend_crc32c(0, zeros)
    tables: tuple[list[int], ...] = tuple([0] for _ in range(4))
    for bit in range(32):
        table = tables[bit // 8]
        moved = extend_crc32c(1 << bit, zeros) ^ nothing
        table += [moved ^ other for other in table]
    return tables  # type: ignore[return-value]
