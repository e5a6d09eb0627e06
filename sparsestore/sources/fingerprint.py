"""What a source is known by when it comes again: enough to see that it has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.checksum import crc32c, extend_crc32c
from sparsestore.sources.base import Source
from sparsestore.sources.memory import MemorySource
from sparsestore.sources.store import StoreSource

__all__ = ["of_array", "of_file", "of_memory"]

_ENDS = 1 << 20
_STEP = 1 << 24


def of_file(source: Source) -> dict[str, Any] | None:
    """Length, time of change, and crc32c of the first and the last MiB of a source's file; None where it has none."""
    facts = source.provenance()
    if "mtime_ns" not in facts or not Path(str(facts.get("source"))).is_file():
        return None
    with Path(facts["source"]).open("rb") as file:
        first = crc32c(file.read(_ENDS))
        status = os.fstat(file.fileno())
        file.seek(max(status.st_size - _ENDS, 0))
        last = crc32c(file.read(_ENDS))
    return {
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "first MiB": f"{first:08x}",
        "last MiB": f"{last:08x}",
    }


def of_memory(source: Source) -> dict[str, Any] | None:
    """Shape and crc32c of all arrays of a matrix in memory; what a store says of itself; None of any other source."""
    if isinstance(source, StoreSource):
        return source.fingerprint()
    if not isinstance(source, MemorySource):
        return None
    data = source.data
    names = [name for name in ("indptr", "indices", "row", "col", "offsets", "data") if hasattr(data, name)]
    arrays = {"values": data} if isinstance(data, np.ndarray) else {name: getattr(data, name) for name in names}
    if not all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values()):
        return None
    return {"shape": list(data.shape), **{name: of_array(array) for name, array in arrays.items()}}


def of_array(array: NDArray[Any]) -> str:
    """Dtype and crc32c of all elements."""
    crc = 0
    parts = [np.ma.getdata(array), np.ma.getmaskarray(array)] if isinstance(array, np.ma.MaskedArray) else [array]
    for part in parts:
        rows = max(1, _STEP // max(1, part.nbytes // max(1, len(part))))
        for at in range(0, len(part), rows):
            piece = part[at : at + rows]
            if piece.dtype.kind in "OT":  # text
                crc = extend_crc32c(crc, repr(piece.tolist()).encode(errors="surrogatepass"))
            else:
                crc = extend_crc32c(crc, np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
    return f"{array.dtype} {array.shape} {crc:08x}"
