"""crc32c (Castagnoli) of whole objects and of pieces: what tells stored bytes from damaged ones.

The polynomial is that of RFC 3720, appendix B.4, computed by google-crc32c's C library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google_crc32c import extend, value
from numpy.typing import NDArray

__all__ = ["PIECE", "crc32c", "extend_crc32c", "piece_crc32c"]

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
