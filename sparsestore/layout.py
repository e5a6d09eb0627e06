"""Decides how arrays lie on disk: chunk and shard lengths, codecs, the smallest exact dtypes. No I/O."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.format import PROFILES
from sparsestore.zarr_format import Codec

__all__ = [
    "CHUNK",
    "CHUNK_BYTES",
    "COLUMN_CHUNK",
    "PACKED_CHUNK",
    "PROFILES",
    "SHARD",
    "ValueRange",
    "chunk_and_shard",
    "codec_for",
    "indices_dtype",
    "parse_bytes",
    "rows_of_chunk",
]

CHUNK = 1 << 16
"""Elements of an inner chunk of a matrix array."""
PACKED_CHUNK = 1 << 14
"""The same where it is compressed: a block of rows begins and ends inside of chunks, which are decoded whole."""
COLUMN_CHUNK = 1 << 12
"""Rows of an inner chunk of a column: a shuffled window reads blocks of at most this many rows."""
CHUNK_BYTES = 1 << 21
"""Bytes of an inner chunk of a column of many numbers a row: it is held whole by writers, readers and `verify`."""
SHARD = 1 << 24
"""Elements of a shard."""

_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, letter in enumerate("kmgt", start=1)
    for prefix, suffix, base in ((letter, "b", 1000), (letter, "ib", 1024), (letter, "", 1024))
}


def parse_bytes(size: int | str, name: str = "max_bytes") -> int:
    """Number of bytes in ``"1GiB"``, ``"512 MB"`` or an int.

    Raises
    ------
    ValueError
        Where it is neither, or not positive.

    Examples
    --------
    >>> parse_bytes("1.5GiB")
    1610612736
    """
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool):
        number = int(size)
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", size if isinstance(size, str) else "")
        unit = match and _UNITS.get(match[2].lower())
        if not match or not unit:
            raise ValueError(f"{name} is {size!r}, expected bytes: an int, or a string such as '512MiB' or '1GB'")
        number = int(float(match[1]) * unit)
    if number <= 0:
        raise ValueError(f"{name} is {size!r}, expected a positive number of bytes")
    return number


def chunk_and_shard(n: int, chunk: int = CHUNK, shard: int = SHARD) -> tuple[int, int]:
    """Lengths for an array of n elements: powers of two, no longer than it needs, at most `chunk` and `shard`."""
    needed = 1 << max(n - 1, 0).bit_length()
    return min(chunk, needed), min(shard, needed)


def rows_of_chunk(most: int, row_bytes: int) -> int:
    """Length of an inner chunk of at most so many rows and `CHUNK_BYTES`: a power of two, and one row at least.

    Examples
    --------
    >>> rows_of_chunk(4096, 8), rows_of_chunk(4096, 3000)
    (4096, 512)
    """
    fitting = CHUNK_BYTES // max(row_bytes, 1)
    return min(most, 1 << max(fitting.bit_length() - 1, 0))


def indices_dtype(n_features: int) -> str:
    """Smallest stored dtype that holds every feature number."""
    if n_features <= 1 << 16:
        return "uint16"
    return "int32" if n_features <= 1 << 31 else "int64"


def codec_for(role: str, profile: str) -> Codec:
    """Codec of an array by its role: "indices", "data", "indptr", "column", "string" or "plain".

    Chosen for the rate at which they are decoded (docs/decisions/0006): the more thorough search of lz4hc finds fewer
    and longer matches, and values with their bits sorted by significance are mostly runs of zeros and noise.
    """
    if role == "plain" or (role in ("indices", "data") and profile == "raw"):
        return Codec()
    if role == "string":
        return Codec("zstd", clevel=3)
    if role == "indices":
        return Codec("blosc", "lz4hc", 9, "shuffle")
    if role == "data":
        return Codec("blosc", "lz4hc", 4, "bitshuffle")
    return Codec("blosc", "lz4", 5, "shuffle" if role == "indptr" else "bitshuffle")


@dataclass(frozen=True, slots=True)
class ValueRange:
    """What is known of a set of values: enough to choose the smallest dtype that is exact for all of them.

    Attributes
    ----------
    dtype : str
        The widest dtype they came in.
    whole : bool
        All are whole numbers without a negative zero, so an integer dtype is exact.
    low, high : int or float
        Smallest and largest; meaningless without values.
    count : int
    """

    dtype: str
    whole: bool = True
    low: float | int = 0
    high: float | int = 0
    count: int = 0

    def to_json(self) -> list[Any]:
        """All of it, exactly: floats in hexadecimal, which NaN and infinities have too."""
        ends = [x.hex() if isinstance(x, float) else str(x) for x in (self.low, self.high)]
        return [self.dtype, self.whole, *ends, self.count]

    @classmethod
    def from_json(cls, value: list[Any]) -> ValueRange:
        """Back from `to_json`."""
        dtype, whole, *ends, count = value
        low, high = (int(x) if x.lstrip("-").isdigit() else float.fromhex(x) for x in ends)
        return cls(dtype, whole, low, high, count)

    @classmethod
    def of(cls, values: NDArray[Any]) -> ValueRange:
        """The range of an array. NaN and infinities are no whole numbers."""
        dtype = values.dtype.name
        if not len(values):
            return cls(dtype)
        if values.dtype.kind == "b":
            return cls(dtype, True, int(values.min()), int(values.max()), len(values))
        if values.dtype.kind in "iu":
            return cls(dtype, True, int(values.min()), int(values.max()), len(values))
        low, high, whole = math.inf, -math.inf, True
        for start in range(0, len(values), CHUNK):  # pieces that stay in the processor's cache
            part = values[start : start + CHUNK]
            # numpy's minimum, unlike Python's, keeps NaN
            low, high = float(np.minimum(low, part.min())), float(np.maximum(high, part.max()))
            if whole:
                whole = bool((np.rint(part) == part).all()) and not bool((np.signbit(part) & (part == 0)).any())
        if math.isnan(low) or math.isnan(high) or math.isinf(low) or math.isinf(high):
            whole = False
        return cls(dtype, whole, low, high, len(values))

    def union(self, other: ValueRange) -> ValueRange:
        """The range of both sets together."""
        dtype = np.result_type(self.dtype, other.dtype).name
        if not self.count or not other.count:
            filled = self if self.count else other
            return ValueRange(dtype, filled.whole, filled.low, filled.high, filled.count)
        # min and max of NaN depend on the order of their arguments: NaN must survive
        pair = (self.low, other.low, self.high, other.high)
        nan = any(value != value for value in pair)
        low, high = (math.nan, math.nan) if nan else (min(pair[:2]), max(pair[2:]))
        return ValueRange(dtype, self.whole and other.whole, low, high, self.count + other.count)

    @property
    def constant(self) -> bool:
        """Whether all values are the same and a fill value can stand for them."""
        if not self.count or self.low != self.high or self.low in (math.inf, -math.inf):
            return False
        return self.low != 0 or self.whole  # 0.0 == -0.0: equal is not the same

    def stored_dtype(self) -> str:
        """Smallest dtype that gives every value back exactly; the dtype they came in where no smaller one does.

        Values that came in several dtypes are taken as in numpy's common one. It is never bool, which is an integer,
        nor float16, which compiled loops do not know.
        """
        given = np.dtype({"bool": "uint8", "float16": "float32"}.get(self.dtype, self.dtype))
        if self.whole and self.count:
            low, high = int(self.low), int(self.high)
            for bits in (8, 16, 32, 64):
                kind = "uint" if low >= 0 else "int"
                info = np.iinfo(f"{kind}{bits}")
                if info.min <= low and high <= info.max:
                    return f"{kind}{bits}" if bits // 8 < given.itemsize else given.name
        return given.name

    def fits(self, dtype: str, constant: float | int | None) -> bool:
        """Whether a segment that stores `dtype` (or one constant value) can take these values too."""
        if not self.count:
            return True
        if constant is not None:
            return self.constant and self.low == constant
        stored = np.dtype(dtype)
        if stored.kind in "iu":
            info = np.iinfo(stored)
            return self.whole and info.min <= self.low and self.high <= info.max
        return bool(np.can_cast(self.dtype, stored, "safe") or np.can_cast(self.stored_dtype(), stored, "safe"))
