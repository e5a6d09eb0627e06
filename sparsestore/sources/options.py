"""Options that several formats share, checked alike."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import number_dtype
from sparsestore.errors import SourceError
from sparsestore.sources.file import shown

__all__ = [
    "check_n_features",
    "check_names",
    "check_rows",
    "numeric",
    "parts",
    "provenance",
    "pythonic",
    "ranges",
    "rounded",
    "rounded_labels",
    "text_dtype",
    "told",
    "value_dtype",
    "whole",
    "width",
]

_HIGHEST = 2**63 - 2  # one more than the highest feature number must fit int64 too
_FREE_ROWS = 1 << 24
_EMPTY_ROWS = 1024
_TOLD = 1_000  # of what numbers stand for, so many values stand in the provenance
_LONGEST_NAME = 1_000  # bytes: what `features.as_names` takes


def check_n_features(n_features: int, option: str = "n_features") -> None:
    """Raise ValueError unless it is a whole number from 0."""
    if isinstance(n_features, bool) or not isinstance(n_features, (int, np.integer)) or n_features < 0:
        raise ValueError(f"{option} is {n_features!r}, expected an integer of at least 0")
    if n_features > _HIGHEST:
        raise ValueError(f"{option} is {n_features}, expected at most {_HIGHEST}")


def check_names(name: str, names: Sequence[str]) -> None:
    """Raise SourceError where one is none that a feature can have: else that would be found when all was read."""
    for each in names:
        if not 0 < (size := len(each.encode())) <= _LONGEST_NAME:
            raise SourceError(
                f"{name}: the name {shown(each)} of a feature has {size} bytes, expected 1 to {_LONGEST_NAME}: rename "
                "it, or leave it out (drop=)"
            )


def check_rows(name: str, n_rows: int, n_entries: int) -> None:
    """Raise SourceError where a file declares more rows than its entries make plausible.

    Each row is written, also an empty one: a header of 50 bytes could fill any disk. 16,777,216 rows are always taken,
    and 1,024 for each entry.
    """
    most = max(_FREE_ROWS, _EMPTY_ROWS * n_entries)
    if n_rows > most:
        raise SourceError(
            f"{name}: declares {n_rows} rows for {n_entries} entries, expected at most {most}: the header is wrong; if "
            "all these rows are meant, read the matrix with scipy and convert it from memory"
        )


def width(name: str, found: int, n_features: int | None) -> int:
    """Number of features: as found, or as asked for where that is no less (a test set may lack the last ones)."""
    if found > _HIGHEST:
        raise SourceError(f"{name}: has {found} features, expected at most {_HIGHEST}")
    if n_features is None:
        return found
    check_n_features(n_features)
    if n_features < found:
        raise ValueError(f"{name}: has {found} features, expected at most n_features={n_features}")
    return int(n_features)


def numeric(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in this machine's byte order; ValueError where it is not bool, integers or floats up to 8 bytes."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"{name}: values of dtype {dtype} can not be stored: expected bool, integers or real floats")
    return dtype.newbyteorder("=")


def value_dtype(name: str, found: np.dtype[Any], dtype: DTypeLike | None, *, signed: bool = False) -> np.dtype[Any]:
    """Dtype of the values: as found, or as asked for where numpy calls the cast "same_kind" (never float to int).

    Those that a hash gives signs have a `signed` one: what is found without becomes numpy's common dtype of it and
    int8, so that uint64 becomes float64.
    """
    found = numeric(name, found)
    if dtype is None:
        return np.result_type(found, np.int8) if signed and found.kind in "bu" else found
    wanted = number_dtype(dtype)
    if signed and wanted.kind in "bu":
        raise ValueError(
            f"{name}: dtype={wanted} has no room for the signs that encode='hash' gives values, expected signed "
            "integers or floats"
        )
    if not np.can_cast(found, wanted, "same_kind"):
        raise ValueError(f"{name}: values of dtype {found} can not become {wanted}: convert them first")
    return wanted


def text_dtype(dtype: DTypeLike, kind: str = "text") -> np.dtype[Any]:
    """Dtype of values read from text, or another kind of input that is read in float64: float32 or float64."""
    wanted = number_dtype(dtype)
    if wanted not in (np.float32, np.float64):
        raise ValueError(
            f"dtype={wanted} for {kind}, expected float32 or float64 (whole numbers are stored as integers anyway)"
        )
    return wanted


def parts(given: Sequence[Any] | str | None) -> list[Any]:
    """Names in a list, or written with commas.

    Examples
    --------
    >>> parts("user, age:int64")
    ['user', 'age:int64']
    """
    if given is None:
        return []
    return [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)


def pythonic(option: Any) -> Any:
    """An option with numpy's scalars as Python's own, so that what was asked for can be written down as JSON.

    What gives its elements once becomes a list, as options are looked at more than once.

    Examples
    --------
    >>> pythonic([np.int64(3), (np.bool_(True), "a")])
    [3, (True, 'a')]
    """
    if isinstance(option, np.generic):
        return option.item()
    if isinstance(option, Iterator):
        return [pythonic(each) for each in option]
    if type(option) in (list, tuple):
        return type(option)(map(pythonic, option))
    return {key: pythonic(value) for key, value in option.items()} if type(option) is dict else option


def whole(text: bytes) -> int:
    """A whole number, exactly; ValueError where it is none."""
    digits = text.strip()
    if not digits.lstrip(b"+-").isdigit() or len(digits) > 40:
        raise ValueError(digits)
    return int(digits)


def rounded(exact: NDArray[np.float64], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int | None]:
    """Values read from text in their dtype, and the first that is finite in the text only, or None."""
    if dtype == np.float64:
        return exact, None
    with np.errstate(over="ignore"):
        values = exact.astype(dtype)
    infinite = np.isinf(values)
    if infinite.any() and (infinite & np.isfinite(exact)).any():
        return values, int(np.argmax(infinite & np.isfinite(exact)))
    return values, None


def rounded_labels(exact: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int | None, str]:
    """As `rounded`, for labels, which may be whole numbers of any dtype; and what is wrong with the one that is.

    A measured label may be rounded; a class, an id or a time in seconds would become another one.
    """
    wide = exact.astype(np.float64, copy=False)
    values, at = rounded(wide, dtype)
    if at is not None:
        return values, at, f"is beyond {dtype}"
    changed = (values != wide) & (np.rint(wide) == wide)
    if exact.dtype in (np.int64, np.uint64):  # back as whole numbers: numpy would compare them as floats
        most = np.nextafter(float(np.iinfo(exact.dtype).max), 0)  # what rounds to a power of two has no way back
        changed |= np.minimum(wide, most).astype(exact.dtype) != exact
    return values, int(np.argmax(changed)) if changed.any() else None, f"is a whole number that {dtype} lacks"


def ranges(n_rows: int, n: int) -> list[tuple[int, int]]:
    """At most n consecutive ranges of about as many rows each, none empty unless there are no rows.

    Examples
    --------
    >>> ranges(10, 3)
    [(0, 3), (3, 6), (6, 10)]
    """
    n = max(1, min(n, n_rows))
    return [(n_rows * at // n, n_rows * (at + 1) // n) for at in range(n)]


def told(values: Sequence[Any]) -> list[Any]:
    """What the numbers from 0 stand for, as provenance has it: the first thousand, and of the others a checksum.

    Examples
    --------
    >>> told(["no", "yes"])
    ['no', 'yes']
    """
    first, rest = list(values[:_TOLD]), values[_TOLD:]
    if rest:
        text = "\0".join(map(str, rest))
        first.append(f"{_TOLD} to {len(values) - 1}: crc32 {zlib.crc32(text.encode()):08x}")
    return first


def provenance(path: Path, format_name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Where a file's data came from and how they were read; `options` that are None are left out."""
    stat = path.stat()
    return {
        "source": str(path),
        "format": format_name,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "options": {name: value for name, value in options.items() if value is not None},
    }
