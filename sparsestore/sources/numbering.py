"""Rows and features of triples: their numbers where they are texts, and what the rows have beside their entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.sources import options
from sparsestore.sources.categories import Categories
from sparsestore.sources.dictionary import BadNameError, Dictionary
from sparsestore.sources.row_values import RowValues

__all__ = ["Numbering"]

Array = NDArray[Any]
Ints = NDArray[np.int64]


class Numbering:
    """What triples have to have until all of them were read: dictionaries of texts, and a value for each row.

    Parameters
    ----------
    name : str
        What messages call the source.
    row, feature : str
        Names of the fields.
    texts : sequence of str
        Which of "row" and "feature" are texts.
    values : mapping of str to str
        Columns of the rows, such as "y", and the names of their fields.
    dtype : dtype
        Of these columns.
    n_rows, n_features, encode, unknown
        As of `triples.CsvTriplesSource`.
    noun : str
        What a field is called: "field" or "column".

    Attributes
    ----------
    n_rows, n_features : int or None
        As far as they are known before.
    columns : dict
        As of `Source`.
    """

    def __init__(
        self,
        name: str,
        *,
        row: str,
        feature: str,
        texts: Sequence[str],
        values: Mapping[str, str],
        dtype: DTypeLike,
        n_rows: int | None,
        n_features: int | None,
        encode: str,
        unknown: str,
        noun: str,
    ) -> None:
        self._row_name, self._row, self._values_of = f"{name}: {noun} {row!r}", row, dict(values)
        self._noun, self._name, self._dtype = noun, name, np.dtype(dtype)
        self._row_text = "row" in texts
        self.n_rows: int | None = None
        self.n_features: int | None = None
        if n_rows is not None:
            options.check_n_features(n_rows, "n_rows")  # the same numbers may be
            if self._row_text:
                raise ValueError(f"{name}: n_rows={n_rows} is for numbered rows: texts are counted")
            self.n_rows = int(n_rows)
        if n_features is not None:
            options.check_n_features(n_features)
            self.n_features = int(n_features)
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(values, (self._dtype.name, ()))
        if self._row_text:
            if row in self.columns:
                raise ValueError(f"{name}: two {noun}s become the column {row!r}: rename one")
            self.columns[row] = "string", ()
        self.categories: Categories | None = None
        if "feature" in texts:
            self.categories = Categories(
                f"{name}: {noun} {feature!r}", [""], encode=encode, n_features=n_features, unknown=unknown
            )
            if encode != "hash" and n_features is not None:
                raise ValueError(
                    f"{name}: n_features={n_features} is for numbered features or encode='hash': a dictionary finds out"
                )
        elif encode != "dictionary" or unknown != "add":
            raise ValueError(f"{name}: encode and unknown are for features that are texts: feature='name:string'")
        self._max_bytes: int | None = None
        self.start()

    def start(self) -> None:
        """Forget what was read."""
        n = len(self._values_of) + self._row_text + (self.categories is not None)
        share = None if self._max_bytes is None else self._max_bytes // max(n, 1)
        self.rows = Dictionary(self._row_name, share) if self._row_text else None
        self._values = {
            column: RowValues(f"{self._name}: {self._noun} {field!r}", share)
            for column, field in self._values_of.items()
        }
        if self.categories is not None:
            self.categories.start()
            if share is not None:
                self.categories.hold(share)

    def hold(self, max_bytes: int) -> None:
        """Limit what is held until all rows were given."""
        self._max_bytes = max_bytes

    @property
    def numbers_texts(self) -> bool:
        """Whether features get their numbers from a dictionary."""
        return self.categories is not None and not self.categories.n_hashed

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the features that were read, where they are texts and not hashed."""
        names = self.categories.names() if self.categories is not None else None
        return None if names is None else list(names)

    @property
    def width(self) -> int:
        """Features that there are so far, those that were adopted included."""
        return self.categories.width if self.categories is not None else self.n_features or 0

    def codes(self, option: str, text: NDArray[np.uint8], starts: Ints, stops: Ints) -> tuple[Ints, Array | None]:
        """Numbers of texts of "row" or "feature", and signs where they are hashed.

        Raises
        ------
        BadNameError
            Where one can be no name: `at` tells which.
        """
        if option == "row" and self.rows is not None:
            return self.rows.codes(text, starts, stops, 0), None
        if self.categories is None:
            raise TypeError(f"{option} is no text")
        if self.categories.n_hashed and (starts == stops).any():
            raise BadNameError("is empty", int(np.argmax(starts == stops)))
        return self.categories.codes(0, text, starts, stops)

    def put(self, column: str, rows: Ints, values: NDArray[np.float64]) -> int | None:
        """Note values of rows; the first place where a row has another than before, or None."""
        return self._values[column].put(rows, values)

    def beside(self, rows: Ints) -> dict[str, Array]:
        """Columns of some rows."""
        out: dict[str, Array] = {name: held.of(rows, self._dtype) for name, held in self._values.items()}
        if self.rows is not None:
            names = np.empty(len(rows), object)
            names[:] = self.rows.of(rows)
            out[self._row] = names
        return out
