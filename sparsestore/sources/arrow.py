"""Arrays of Arrow as arrays of numpy: numbers, texts, lists. The only place that knows Arrow's memory layout."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsestore.errors import SourceError

__all__ = ["Lists", "Texts", "kind_of", "lists", "nulls", "numbers", "readable", "required", "texts", "vectors"]

Array = NDArray[Any]

_VECTOR = {"type": "integer", "size": "integer", "indices": "list", "values": "list"}
"""Of Spark ML: VectorUDT."""


def required() -> Any:
    """The module pyarrow; ImportError that names the extra where it is missing."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            f'tables of Arrow need pyarrow ({error}): pip install "sparsestore[arrow]"', name="pyarrow"
        ) from error
    return pyarrow


def readable(schema: Any, name: str) -> Any:
    """The schema of a file, where the names in it are text; SourceError where not."""
    types = [schema.field(at).type for at in range(len(schema))]
    try:
        schema.names  # noqa: B018 - they are decoded one by one, when they are asked for
        while types:
            inner = types.pop()
            if required().types.is_struct(inner):
                types += [field.type for field in inner if field.name is not None]
            elif hasattr(inner, "value_type"):
                types.append(inner.value_type)
    except UnicodeDecodeError as error:
        raise SourceError(f"{name}: a column has a name that is no UTF-8 text: {error.reason}") from None
    return schema


def kind_of(type_: Any) -> str:
    """What a type is to a table: "bool", "integer", "float", "text", "list", "vector" or "other"."""
    types = required().types
    if types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if types.is_boolean(type_):
        return "bool"
    if types.is_integer(type_):
        return "integer"
    if types.is_floating(type_):
        return "float"
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return "text"
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return "list" if kind_of(type_.value_type) in ("bool", "integer", "float") else "other"
    if types.is_struct(type_):
        kinds = {field.name: kind_of(field.type) for field in type_}
        if kinds.items() >= _VECTOR.items() and len(kinds) == type_.num_fields:
            return "vector"
    return "other"


def nulls(array: Any) -> NDArray[np.bool_] | None:
    """Where an array has no value; None where it has all."""
    if required().types.is_dictionary(array.type) and array.dictionary.null_count:
        array = array.dictionary_decode()  # its codes have all, and one of them stands for none
    if not array.null_count:
        return None
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def numbers(array: Any) -> Array:
    """Numbers and truths of an array, 0 where there is none."""
    pa = required()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        array = array.fill_null(False if pa.types.is_boolean(array.type) else 0)
    return np.asarray(array.to_numpy(zero_copy_only=False))


class Texts(NamedTuple):
    """Texts as spans of a buffer; where there is none a span is empty."""

    text: NDArray[np.uint8]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    def at(self, row: int) -> bytes:
        """One of them."""
        return self.text[self.starts[row] : self.stops[row]].tobytes()


def texts(array: Any) -> Texts:
    """Texts of an array of text, or of numbers as they are written, each span of the buffer that Arrow has."""
    pa = required()
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        spans = texts(array.dictionary)
        at = array.indices
        none = nulls(at)
        codes = numbers(at).astype(np.int64)
        if not len(spans.starts):
            return Texts(spans.text, np.zeros(len(codes), np.int64), np.zeros(len(codes), np.int64))
        starts = spans.starts[codes]
        return Texts(
            spans.text, starts, spans.stops[codes] if none is None else np.where(none, starts, spans.stops[codes])
        )
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        array = pc.cast(array, pa.string())
    wide = pa.types.is_large_string(array.type)
    _, offsets, letters = array.buffers()
    n = len(array)
    ends: NDArray[np.int64] = np.zeros(1, np.int64)
    if n:
        given = np.frombuffer(offsets, np.int64 if wide else np.int32)[array.offset : array.offset + n + 1]
        ends = given.astype(np.int64)
    text = np.frombuffer(letters, np.uint8) if letters is not None and letters.size else np.zeros(1, np.uint8)
    stops = ends[1:].copy()
    empty = nulls(array)
    if empty is not None:
        stops[empty] = ends[:-1][empty]
    return Texts(text, ends[:-1], stops)


class Lists(NamedTuple):
    """Lists of numbers, one after the other."""

    indptr: NDArray[np.int64]
    values: Array


def lists(array: Any, name: str) -> Lists:
    """Lists of an array of lists, empty where there is none; SourceError where a list has an element that is none."""
    pa = required()
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    none = nulls(array)
    if none is not None:
        array = array.fill_null([])
    flat = array.flatten()
    if nulls(flat) is not None:
        raise SourceError(f"{name}: a list has an element without a value")
    lengths = np.asarray(array.value_lengths().to_numpy(zero_copy_only=False), np.int64)
    return Lists(np.concatenate([[0], np.cumsum(lengths)]), numbers(flat))


def vectors(array: Any, name: str) -> tuple[Lists, Lists, NDArray[np.int64]]:
    """Indices, values and sizes of vectors of Spark ML; a dense one (type 1) has all indices."""
    import pyarrow.compute as pc

    if array.null_count:
        raise SourceError(f"{name}: {array.null_count} have no vector, expected one in each row")
    kinds = numbers(pc.struct_field(array, "type"))
    sizes = numbers(pc.struct_field(array, "size")).astype(np.int64)
    indices = lists(pc.struct_field(array, "indices"), name)
    values = lists(pc.struct_field(array, "values"), name)
    lengths = np.diff(values.indptr)
    dense = kinds == 1
    if not np.isin(kinds, (0, 1)).all():
        raise SourceError(f"{name}: a vector of type {int(kinds[~np.isin(kinds, (0, 1))][0])}, expected 0 or 1")
    sizes = np.where(dense, lengths, sizes)
    wanted = np.where(dense, 0, lengths)
    if (np.diff(indices.indptr) != wanted).any():
        at = int(np.argmax(np.diff(indices.indptr) != wanted))
        raise SourceError(
            f"{name}: a vector has {int(np.diff(indices.indptr)[at])} indices, expected {int(wanted[at])}"
        )
    if not dense.any():
        return indices, values, sizes
    all_ = np.arange(int(values.indptr[-1])) - np.repeat(values.indptr[:-1], lengths)
    sparse = np.repeat(~dense, lengths)
    all_[sparse] = indices.values
    return Lists(values.indptr, all_), values, sizes
