"""Another sparsestore, or a view of one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.checksum import crc32c
from sparsestore.csr import Rows, index_dtype
from sparsestore.format import ROW_ID, manifest_key
from sparsestore.indexing import row_numbers
from sparsestore.manifest import read_manifest
from sparsestore.plan.selection import Selection
from sparsestore.reader import Reader
from sparsestore.sources import layouts, options
from sparsestore.sources.base import Block
from sparsestore.storage import open_storage
from sparsestore.view import View

__all__ = ["StoreSource"]

Ints = NDArray[np.int64]

_STEP = 1 << 16  # rows whose lengths are looked up together
_ROW_BYTES = 96  # of a row: its number, where it lies, its offset, several times over
_STRING_BYTES = 80  # of a string, about


class StoreSource:
    """Rows of a store, with all its columns, in its order; what is read is pinned to one version.

    A store whose rows were shuffled gives their numbers in the file they came from, as column "row_id", and the new
    store has them too. So it may be the store that is written to: ``convert("a.zarr", "a.zarr", overwrite=True,
    profile="compact")`` publishes a version with the same rows in another form.

    Parameters
    ----------
    data : path or View
        A folder with a store, or a store or view that is open.
    rows : slice or str, optional
        Some of the rows, such as ``slice(1000)`` or ``"1000:2000"``.
    select : sequence of int or str, or str, optional
        Some of the features, renumbered in the order given: ``[3, 7, 8, 9]``, ``"3,7-9"``, ``["age", "height"]`` or
        ``"age,height"``.
    store_version : int, optional
        Of the store at a path; the newest by default.
    n_features : int, optional
        A larger width than the store, or the selection, has.
    dtype : optional
        Another dtype of the values.

    Raises
    ------
    FileNotFoundError
        Where there is no store, or no such version.
    ValueError
        Where rows or features can not be understood, or a feature is not there.
    """

    unit = "rows"
    sorted_rows = True

    def __init__(
        self,
        data: Any,
        *,
        rows: slice | str | None = None,
        select: Sequence[int] | Sequence[str] | str | None = None,
        store_version: int | None = None,
        n_features: int | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        if isinstance(data, View):
            if store_version is not None:
                raise ValueError(
                    f"store_version={store_version} is for a path, found a store that is open: "
                    "open that version of it with sparsestore.open"
                )
            view = data
        else:
            storage = open_storage(data)
            reader = Reader(storage, read_manifest(storage, store_version))
            view = View(reader, str(data), Selection.all(reader.segment_rows), None)
        self.name = view.path
        if rows is not None or select is not None:
            view = view.select(
                rows=None if rows is None else _slice(rows),
                features=None if select is None else _features(select, view),
            )
        self._view = view
        self._reader, self._selection, self._features = view._reader, view._selection, view._features
        self._width = options.width(self.name, view.shape[1], n_features)
        self._dtype = options.value_dtype(self.name, view.dtype, dtype)
        self.n_rows: int | None = len(view)
        self.n_features: int | None = self._width
        self.dtype: np.dtype[Any] | None = self._dtype
        self.columns: Mapping[str, tuple[str, tuple[int, ...]]] = {
            name: (schema.dtype, schema.shape) for name, schema in view.columns.items()
        }
        self.numbered = ROW_ID in self.columns
        self.size: int | None = self.n_rows
        self._rows_read = 0, len(view)
        self.feature_names = view.feature_names
        self.shuffled = self._reader.manifest.shuffled if self._selection.in_order else None
        self._options = {
            "rows": None if rows is None else str(rows),
            "select": select if select is None or isinstance(select, str) else [_plain(each) for each in select],
            "n_features": n_features,
            "dtype": None if dtype is None else str(self.dtype),
        }

    @staticmethod
    def takes(data: Any) -> bool:
        """Whether it is an open store, or a view of one."""
        return isinstance(data, View)

    def provenance(self) -> dict[str, Any]:
        """The store, its version, and what is known of where its rows came from."""
        manifest = self._reader.manifest
        facts: dict[str, Any] = {
            "source": self.name,
            "format": "sparsestore",
            "version": manifest.version,
            "options": {name: value for name, value in self._options.items() if value is not None},
        }
        if "source" in manifest.attrs:
            facts["origin"] = manifest.attrs["source"]
        if "meanings" in manifest.attrs:  # of numbers that appended files brought
            facts["meanings"] = manifest.attrs["meanings"]
        return facts

    def fingerprint(self) -> dict[str, Any] | None:
        """What the same rows are known by when they come again; None where the version is gone."""
        reader, features = self._reader, self._features
        try:
            payload = reader.storage.read(manifest_key(reader.version))
        except FileNotFoundError:
            return None
        return {
            "store": reader.storage.name,
            "version": reader.version,
            "manifest": f"{crc32c(payload):08x}",
            "rows": self._selection.fingerprint(),
            "features": None if features is None else f"{len(features)} {crc32c(features.astype('<i8').tobytes()):08x}",
        }

    def parts(self, n: int) -> list[StoreSource]:
        """Sources of at most n consecutive parts of the rows, without the names of features."""
        found = list[StoreSource]()
        for start, stop in options.ranges(len(self._view), n):
            part = copy.copy(self)
            part._rows_read, part.n_rows, part.size = (start, stop), stop - start, stop - start
            part.feature_names = None
            found.append(part)
        return found

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        reader, (begin, end) = self._reader, self._rows_read
        columns = {name: self._view.column(name) for name in self.columns}
        entry = index_dtype(reader.shape[1]).itemsize + reader.dtype.itemsize
        entry *= 3 if self._features is None else 8  # which scipy copies, sorts and renumbers
        row = _ROW_BYTES + sum(2 * _width(*schema) for schema in self.columns.values())
        step = max(1, min(_STEP, max_bytes // 4 // row))
        for first in range(begin, end, step):
            numbers = self._selection.rows(np.arange(first, min(first + step, end)))
            costs = np.cumsum(row + entry * reader.lengths(numbers))
            start = 0
            while start < len(numbers):
                held = int(costs[start - 1]) if start else 0
                stop = max(start + 1, int(np.searchsorted(costs, held + max_bytes // 2, side="right")))
                at = slice(first + start, first + stop)
                x = self._taken(numbers[start:stop], at)
                yield Block(x, {name: column[at] for name, column in columns.items()}, at.stop - begin)
                start = stop

    def _taken(self, numbers: Ints, at: slice) -> Rows:
        """Rows by their number in the store, in any order; `at` is for messages."""
        reader = self._reader
        dtype = np.dtype(np.float32) if reader.dtype == np.float16 else reader.dtype  # as it is stored
        if len(numbers) > 1 and not bool((numbers[1:] > numbers[:-1]).all()):
            distinct, order = np.unique(numbers, return_inverse=True)
            found = reader.locate(distinct).take(order, dtype=dtype)
        else:
            found = reader.locate(numbers).take(dtype=dtype)
        if self._features is not None:
            found = found.take_features(self._features)
        values = layouts.converted(f"{self.name}: in rows {at.start} to {at.stop}", found.data, self._dtype)
        return Rows(found.indptr, found.indices.astype(index_dtype(self._width), copy=False), values, self._width)


def _width(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a row of a column, about."""
    return (_STRING_BYTES if dtype == "string" else np.dtype(dtype).itemsize) * math.prod(shape)


def _slice(rows: slice | str) -> slice:
    """A slice, or one that is written as Python writes it."""
    parts = str(rows).split(":")
    try:
        if isinstance(rows, slice):
            found = rows
        elif 2 <= len(parts) <= 3:
            found = slice(*[int(part) if part.strip() else None for part in parts])
        else:
            raise ValueError
        if found.step == 0:
            raise ValueError
        return found
    except ValueError:
        raise ValueError(f"rows={rows!r}, expected start:stop or start:stop:step, such as 1000:2000") from None


def _plain(feature: Any) -> int | str:
    return feature if isinstance(feature, str) else int(feature)


def _features(select: Sequence[int] | Sequence[str] | str, view: View) -> Any:
    """Numbers or names of features, from a list or from text such as "3,7-9" or "age,height"."""
    n_features = view.shape[1]
    if not isinstance(select, str):
        try:
            chosen = select if isinstance(select, np.ndarray) else list(select)
            return row_numbers(view._numbered(chosen), n_features, axis=1)
        except (IndexError, KeyError) as error:
            raise ValueError(f"select: {error.args[0]}") from None
    parts = [part.strip() for part in select.split(",")]
    names = {} if view.feature_names is None else {name: i for i, name in enumerate(view.feature_names.tolist())}
    found: list[Ints] = []
    for part in parts:
        if part in names:
            found.append(np.array([names[part]]))
            continue
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            known = "names or numbers of features" if names else "a feature number, such as 3,7-9"
            raise ValueError(f"select={select!r}: found {part!r}, expected {known}")
        low, high = int(first), int(last or first)
        if not low <= high < n_features:
            raise ValueError(f"select={select!r}: {part!r}, expected ascending numbers up to {n_features - 1}")
        found.append(np.arange(low, high + 1, dtype=np.int64))
    return np.concatenate(found)
