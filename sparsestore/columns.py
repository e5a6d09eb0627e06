"""Columns beside the matrix: what they may be, and their values in the dtype that they are stored in. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.format import ROW_ID, ColumnSchema, column_problem

__all__ = ["WIDE", "array_of", "exactly", "first_lacking", "lacked", "schema_of"]

Array = NDArray[Any]

WIDE = ("int64", "uint64")
"""Dtypes of whole numbers that float64 may lack."""


def schema_of(columns: Mapping[str, Any]) -> dict[str, ColumnSchema]:
    """Schema of columns given as dtypes, or (dtype, k) for k numbers a row; ValueError where they can not be stored."""
    if not isinstance(columns, Mapping):
        raise ValueError(f"columns is a {type(columns).__name__}, expected a mapping: {{'y': 'int64'}}")
    schema = {}
    for name, given in columns.items():
        problem = column_problem(name)
        if problem:
            raise ValueError(problem)
        if name == ROW_ID:
            raise ValueError(f"column {ROW_ID!r} is kept by the store itself: leave it out of columns")
        dtype, shape = (given[0], tuple(int(n) for n in given[1:])) if isinstance(given, tuple) else (given, ())
        if len(shape) > 1 or any(n < 1 for n in shape):
            raise ValueError(f"column {name!r} has shape {shape} a row, expected () or (k,) with k >= 1")
        stored = _column_dtype(name, dtype)
        if stored == "string" and shape:
            raise ValueError(
                f"column {name!r} is text of shape {shape} a row, expected (): "
                f"give each of its {shape[0]} values a row a column of its own"
            )
        schema[name] = ColumnSchema(stored, shape)
    return schema


def _column_dtype(name: str, dtype: Any) -> str:
    if isinstance(dtype, str) and dtype in ("string", "str"):
        return "string"
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"column {name!r} has dtype {dtype!r}: {error}; for k values a row give (dtype, k)") from None
    if found.kind in "UOT":
        return "string"
    if found.kind in "biuf" and found.itemsize <= 8:
        return str(found.name)
    raise ValueError(f"column {name!r} has dtype {found}, expected bool, integers, floats of up to 64 bits, or strings")


def array_of(name: str, values: Any) -> Array:
    """Values of a column that a caller gave, as an array; text of a list as objects.

    Numpy's own text would take as much for every row as the longest needs, and lose NULs at its end.

    Raises
    ------
    ValueError
        Where whole numbers of another library, some of which are missing, become others in numpy's floats.
    """
    has_text = isinstance(values, (list, tuple)) and any(isinstance(value, str) for value in values)
    array = np.asarray(values, object) if has_text else np.asanyarray(values)
    if array.dtype.kind == "f" and not isinstance(values, np.ndarray):
        own = str(getattr(values, "dtype", getattr(values, "type", ""))).lower()  # of pandas, polars, Arrow
        fill = getattr(values, "fillna", getattr(values, "fill_null", None))
        if own.removesuffix("[pyarrow]") in WIDE and fill is not None:
            lacking = first_lacking(np.asarray(fill(0)).astype(own.removesuffix("[pyarrow]")))
            if lacking is not None:
                raise ValueError(
                    f"column {name!r} has missing values, so that numpy makes it float64, which lacks its value "
                    f"{lacking}: give it as a numpy.ma.array of {own}"
                )
    return array


def exactly(name: str, values: Array, schema: ColumnSchema) -> Array:
    """A column's values in its stored dtype; ValueError where that would change a value."""
    if schema.dtype == "string":
        if values.dtype.kind == "U":
            _check_text(name, values)
            return values.astype(object)
        values = values.astype(object, copy=False)  # numpy's text of any width may have missing ones
        types = set(map(type, values.flat))
        bad = {found.__name__ for found in types if not issubclass(found, str)}
        if bad:
            raise ValueError(f"column {name!r} has values of {', '.join(sorted(bad))}, expected str")
        if types - {str}:  # numpy's are texts of a kind of their own, which the encoder does not take
            values = np.array([str(value) for value in values.flat], object).reshape(values.shape)
        _check_characters(name, values)
        return values
    if values.dtype == schema.dtype:
        return values
    if values.dtype.kind not in "biuf":
        raise ValueError(f"column {name!r} has dtype {values.dtype}, expected {schema.dtype}")
    target = np.dtype(schema.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(target)
    if target.kind == "f" and values.dtype.kind == "f":  # to the declared precision: that is what was asked for
        changed = np.isinf(cast) & ~np.isinf(values)
    elif target.kind == "f" and values.dtype.kind in "iu":
        changed = ~_same(cast, values)
    elif target.kind in "iu" and values.dtype.kind == "f":
        changed = ~_same(values, cast)
    else:
        changed = cast.astype(values.dtype) != values
        if target.kind in "iu" and values.dtype.kind in "iu":
            changed |= (cast < 0) != (values < 0)
    if changed.any():
        value = values[changed].reshape(-1)[0]
        raise ValueError(f"column {name!r} has the value {value}, which its dtype {schema.dtype} can not hold exactly")
    return cast


def _same(floats: Array, wholes: Array) -> NDArray[np.bool_]:
    """Where floats and integers are the same numbers.

    What an integer becomes that is cast from a float beyond its dtype is up to the processor, and may look right: so
    no such float is cast.
    """
    limits = np.iinfo(wholes.dtype)
    wide = floats.astype(np.float64)
    within = (wide >= float(limits.min)) & (wide < float(limits.max + 1))  # both are powers of two, or 0: exact
    wide = np.where(within, wide, 0)
    same: NDArray[np.bool_] = within & (wide.astype(wholes.dtype) == wholes) & (np.rint(wide) == wide)
    return same


def first_lacking(values: Array) -> int | None:
    """The first whole number of an array that float64 lacks."""
    if values.dtype not in WIDE:
        return None
    lacks = ~_same(values.astype(np.float64), values)
    return int(values[np.argmax(lacks)]) if lacks.any() else None


def lacked(value: int, dtype: np.dtype[Any]) -> str:
    """What is to be said of one, where nobody asked for the dtype."""
    return (
        f"values have {value}, which {dtype}, the common dtype of all of them, lacks: give dtype='float64' (--dtype) "
        "if they may be rounded, or make a store of its own"
    )


def _check_characters(name: str, texts: Array) -> None:
    """Python's text may have halves of characters, which have no bytes in UTF-8."""
    for text in texts.flat:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                code = ord(text[error.start])
                raise ValueError(f"column {name!r} has text with the number {code:#x}, which is no character") from None


def _check_text(name: str, values: Array) -> None:
    """Numpy's text of fixed width is any numbers of 32 bits, of which not all are characters."""
    if values.dtype.kind != "U" or not values.size:
        return
    codes = np.ascontiguousarray(values).view(np.dtype(np.uint32).newbyteorder(values.dtype.byteorder))
    wrong = (codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))
    if wrong.any():
        raise ValueError(f"column {name!r} has text with the number {int(codes[wrong][0]):#x}, which is no character")
