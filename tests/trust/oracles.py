"""What bytes mean, read by programs that share nothing with `sparsestore`: for the campaign `parsers`."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import re
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

Array = NDArray[Any]
Matrix = tuple[tuple[int, int], Array, Array, Array]
"""Shape, and row, column and value of each entry, in the order of the file."""

_FINITE = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPECIAL = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)


class Wrong(ValueError):  # noqa: N818
    """The bytes mean nothing; `line` is that of the offence, 0 where any may be named."""

    def __init__(self, line: int = 0) -> None:
        super().__init__(f"line {line}")
        self.line = line


def unpacked(data: bytes, suffix: str) -> bytes | None:
    """What Python's own modules, and zstandard's other reader, unpack; None where they do not.

    Zeros behind it are padding.
    """
    whole = _unpacked(data, suffix)
    return _unpacked(data.rstrip(b"\0"), suffix) if whole is None and data.endswith(b"\0") else whole


def _unpacked(data: bytes, suffix: str) -> bytes | None:
    try:
        if suffix == ".gz":
            return gzip.decompress(data)
        if suffix == ".bz2":
            return bz2.decompress(data)
        if suffix == ".xz":
            return lzma.decompress(data)
        with zstandard.ZstdDecompressor(max_window_size=128 << 20).stream_reader(
            data, read_across_frames=True
        ) as reader:
            return reader.read()
    except (OSError, EOFError, ValueError, lzma.LZMAError, zstandard.ZstdError, Exception):
        return None


def matrix_market(text: bytes, dtype: str, n_features: int | None) -> Matrix:
    """A Matrix Market file, line by line, by the rules of docs/limits.md."""
    lines = text.split(b"\n")
    words = lines[0].lower().split()
    if len(words) != 5 or words[:2] != [b"%%matrixmarket", b"matrix"]:
        raise Wrong(1)
    dense, field, symmetry = words[2] == b"array", words[3], words[4]
    fields = [b"real", b"integer"] if dense else [b"real", b"integer", b"pattern"]
    symmetries = [b"general"] if dense else [b"general", b"symmetric", b"skew-symmetric"]
    if words[2] not in (b"array", b"coordinate") or field not in fields or symmetry not in symmetries:
        raise Wrong(1)
    shape, n_entries, found = None, 0, list[tuple[int, int, float]]()
    for at, line in enumerate(lines[1:], 2):
        tokens = line.split()
        if not tokens or tokens[0].startswith(b"%"):
            continue
        if shape is None:
            if len(tokens) != (2 if dense else 3) or not all(re.fullmatch(rb"[0-9]{1,18}", token) for token in tokens):
                raise Wrong(at)
            sizes = [int(token) for token in tokens]
            shape = sizes[0], sizes[1]
            n_entries = sizes[0] * sizes[1] if dense else sizes[2]
            if (symmetry != b"general" and sizes[0] != sizes[1]) or sizes[0] > max(1 << 24, 1024 * n_entries):
                raise Wrong(at)
            continue
        if len(found) == n_entries:
            raise Wrong(at)
        place, value = _entry(tokens, at, dense, field)
        if dense:
            place = len(found) % shape[0], len(found) // shape[0]
        elif not (0 <= place[0] < shape[0] and 0 <= place[1] < shape[1]):
            raise Wrong(at)
        # told when all lines of a piece are read: another offence, further down, may be told first
        whole = abs(value) < 2**53 and value == math.floor(value) == round_to(value, dtype)
        if field == b"integer" and not whole:
            raise Wrong(0)
        if math.isinf(round_to(value, dtype)) and not math.isinf(value):
            raise Wrong(0)
        if symmetry == b"skew-symmetric" and place[0] == place[1] and value != 0:
            raise Wrong(0)
        found.append((*place, value))
    if shape is None or len(found) < n_entries:
        raise Wrong(0)
    if n_features is not None and n_features < shape[1]:
        raise Wrong(0)
    mirrored = [(j, i, -v if symmetry[:1] == b"s" and symmetry != b"symmetric" else v) for i, j, v in found if i != j]
    entries = found + (mirrored if symmetry != b"general" else [])
    rows, columns, values = (np.array(part) for part in zip(*entries, strict=True)) if entries else [np.empty(0)] * 3
    return (shape[0], n_features or shape[1]), rows.astype(int), columns.astype(int), values.astype(dtype)


def _entry(tokens: list[bytes], at: int, dense: bool, field: bytes) -> tuple[tuple[int, int], float]:
    n_places, valued = 0 if dense else 2, field != b"pattern"
    if len(tokens) != n_places + valued:
        raise Wrong(at)
    if not all(re.fullmatch(rb"[0-9]{1,18}", token) for token in tokens[:n_places]):
        raise Wrong(at)
    place = tuple(int(token) - 1 for token in tokens[:n_places]) or (0, 0)
    value = 1.0
    if valued:
        token = tokens[-1]
        if not (_FINITE.fullmatch(token) or _SPECIAL.fullmatch(token)) or len(token) > 65_535:
            raise Wrong(at)
        value = float(token)
        if math.isinf(value) and not _SPECIAL.fullmatch(token):
            raise Wrong(at)
    return (place[0], place[1]), value


def round_to(value: float, dtype: str) -> float:
    """The value in that dtype."""
    with np.errstate(over="ignore"):
        return float(np.dtype(dtype).type(value))


def npy(data: bytes) -> Array | None:
    """What numpy loads; None where it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array: Array = np.load(io.BytesIO(data), allow_pickle=False)
            return array if isinstance(array, np.ndarray) else None
    except Exception:  # whatever it raises: it is not asked to be tidy
        return None


def npz(data: bytes) -> Matrix | None:
    """The matrix of the arrays that numpy loads, by the rules of each layout; None where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        layout = arrays["format"].item()
        layout = layout.decode() if isinstance(layout, bytes) else layout
        n_rows, n_columns = (int(n) for n in arrays["shape"])
        values = arrays["data"]
        if layout in ("csr", "csc", "bsr"):
            indptr = [int(n) for n in arrays["indptr"]]
            height, length = values.shape[1:] if layout == "bsr" else (1, 1)
            n_lines = n_columns if layout == "csc" else n_rows // height
            if len(indptr) != n_lines + 1 or indptr[0] != 0 or any(b < a for a, b in pairwise(indptr)):
                return None
            major = np.repeat(np.arange(n_lines), np.diff(indptr))
            minor = arrays["indices"][: indptr[-1]].astype(object)
            values = values[: indptr[-1]]
            if len(minor) != indptr[-1] or len(values) != indptr[-1]:
                return None
            if layout == "bsr":
                if not all(0 <= n < n_columns // length for n in minor):  # those of zeros as well
                    return None
                at, i, j = np.nonzero(values)
                rows, columns, values = major[at] * height + i, minor[at] * length + j, values[at, i, j]
            else:
                rows, columns = (minor, major) if layout == "csc" else (major, minor)
        elif layout == "coo":
            rows, columns = arrays["row"].astype(object), arrays["col"].astype(object)
        elif layout == "dia":
            k, j = np.nonzero(values)
            columns = j.astype(object)
            rows, values = columns - arrays["offsets"].astype(object)[k], values[k, j]
            kept = np.array([0 <= r < n_rows and c < n_columns for r, c in zip(rows, columns, strict=True)], bool)
            rows, columns, values = rows[kept], columns[kept], values[kept]
        else:
            return None
        if not all(0 <= r < n_rows and 0 <= c < n_columns for r, c in zip(rows, columns, strict=True)):
            return None
        return (n_rows, n_columns), rows.astype(int), columns.astype(int), values
    except Exception:  # numpy's own, on arrays of any shape and dtype
        return None
