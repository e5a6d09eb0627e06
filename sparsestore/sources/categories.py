"""Texts that become features: each its own, by a dictionary, or one of a given number, by a signed hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.csr import Rows, index_dtype, summed
from sparsestore.sources.dictionary import MOST_LETTERS, BadNameError, Dictionary
from sparsestore.sources.options import check_n_features, told

__all__ = ["ENCODINGS", "Categories", "with_codes"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

ENCODINGS = ("dictionary", "hash")
UNKNOWN = ("add", "ignore", "error")


class Categories:
    """Features of the texts of some fields.

    Parameters
    ----------
    name : str
        What messages call them.
    prefixes : sequence of str
        Of each field, before its texts: ``"color="`` makes the feature ``color=red``. More may be appended to the
        attribute, none of more than 201 bytes, where none is given at first.
    encode : {"dictionary", "hash"}
        A dictionary numbers texts as they first come. The hash is MurmurHash3_x86_32 of prefix and text: its absolute
        value modulo the number of features, and the sign of the value with it, as ``FeatureHasher`` of scikit-learn
        does (K. Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009).
    n_features : int, optional
        Of the hash; a dictionary finds out.
    first : int
        Features that come before: those of other fields. The hash shares its numbers with nobody.
    unknown : {"add", "ignore", "error"}
        What a text becomes that is none of the names given with `adopt`.

    Raises
    ------
    ValueError
        Where two fields could have features of the same name.
    """

    def __init__(
        self,
        name: str,
        prefixes: Sequence[str],
        *,
        encode: str = "dictionary",
        n_features: int | None = None,
        first: Sequence[str] | int = 0,
        unknown: str = "add",
    ) -> None:
        if encode not in ENCODINGS:
            raise ValueError(f"encode={encode!r}, expected one of {', '.join(ENCODINGS)}")
        if unknown not in UNKNOWN:
            raise ValueError(f"unknown={unknown!r}, expected one of {', '.join(UNKNOWN)}")
        self.name, self.prefixes, self.encode, self.unknown = name, list(prefixes), encode, unknown
        self._before = [] if isinstance(first, int) else list(first)
        self.first = first if isinstance(first, int) else len(first)
        self._known: list[str] = []
        self._max_bytes: int | None = None
        for at, prefix in enumerate(self.prefixes):
            for other in (*self.prefixes[:at], *self.prefixes[at + 1 :], *self._before):
                if other.startswith(prefix):
                    raise ValueError(
                        f"{name}: a text of field {prefix.removesuffix('=')!r} and {other.removesuffix('=')!r} could "
                        "have one name: rename a field"
                    )
        self.n_hashed = 0
        if encode == "hash":
            if n_features is None:
                raise ValueError(f"{name}: encode='hash' needs n_features, the number of features to hash to")
            check_n_features(n_features)
            self.n_hashed = n_features - self.first
            if not 0 < self.n_hashed < 2**31:
                raise ValueError(
                    f"{name}: n_features={n_features}: {self.n_hashed} are left to hash to, expected 1 to 2147483647"
                )
        self.start()

    def facts(self) -> dict[str, Any]:
        """What provenance has of a hash: how many features there are, and how many and which of them it leaves free.

        A store of hashed features has no names, by which others could be told from these.
        """
        if self.encode != "hash":
            return {}
        return {"hashed": [self.first + self.n_hashed, self.first, *told(self._before)]}

    def start(self) -> None:
        """Forget what was read, not what was adopted."""
        longest = max((len(prefix.encode()) for prefix in self.prefixes), default=201)
        least = 0 if self.prefixes and all(self.prefixes) else 1  # a name that is a prefix alone is one
        self._dictionary = Dictionary(self.name, self._max_bytes, (least, MOST_LETTERS - longest))
        if self._known:
            for field, texts in self._split(self._known):
                try:
                    self._dictionary.add(texts, field)
                except BadNameError as error:
                    name = self.prefixes[field] + texts[error.at]
                    raise ValueError(
                        f"{self.name}: feature {name!r:.60}, which is there already: its text {error.reason}"
                    ) from None

    def hold(self, max_bytes: int) -> None:
        """Limit the memory that the dictionary takes."""
        self._max_bytes = self._dictionary.max_bytes = max_bytes

    def adopt(self, names: Sequence[str]) -> None:
        """Begin with the features of another store, which keep their numbers."""
        if self.encode == "hash":
            return
        names = list(names)
        if self._before and names[: self.first] != self._before:
            raise ValueError(
                f"{self.name}: the first {self.first} features are to be called {', '.join(names[: self.first][:5])}, "
                f"expected {', '.join(self._before[:5])}, as its fields"
            )
        self._known = names[self.first :]
        self.start()
        if len(self._dictionary) != len(self._known):
            raise ValueError(f"{self.name}: the names of features that are there already have one twice")

    def codes(
        self, fields: int | NDArray[np.int32], text: NDArray[np.uint8], starts: Ints, stops: Ints
    ) -> tuple[Ints, Array | None]:
        """Feature numbers of spans of a text, -1 for those to be left out, and signs where they are hashed.

        Raises
        ------
        BadNameError
            Where one can be no name, or is none of those that may be: `at` tells which.
        """
        from sparsestore.kernels import naming

        numbers = np.full(len(starts), fields, np.int32) if isinstance(fields, int) else fields
        if self.encode != "hash":
            return self._numbers(text, starts, stops, numbers), None
        hashed = np.empty(len(starts), np.int32)
        for field in [fields] if isinstance(fields, int) else np.unique(numbers).tolist():
            prefix = np.frombuffer(self.prefixes[field].encode(), np.uint8)
            at = slice(None) if isinstance(fields, int) else np.flatnonzero(numbers == field)
            part = np.empty(len(starts[at]), np.int32)
            naming.murmur(prefix, text, starts[at], stops[at], part)
            hashed[at] = part
        return np.abs(hashed.astype(np.int64)) % self.n_hashed + self.first, np.where(hashed < 0, -1, 1)

    def _numbers(self, text: NDArray[np.uint8], starts: Ints, stops: Ints, fields: Array) -> Ints:
        """Numbers of spans by the dictionary."""
        add = not self._known or self.unknown == "add"
        codes = self._dictionary.codes(text, starts, stops, fields, add=add)
        if not add and self.unknown == "error" and (codes < 0).any():
            raise BadNameError("is none of the features that are given", int(np.argmin(codes)))
        return codes + self.first if add or self.first == 0 else np.where(codes < 0, -1, codes + self.first)

    def of_rows(
        self, texts: Sequence[tuple[NDArray[np.uint8], Ints, Ints]], there: NDArray[np.bool_]
    ) -> tuple[Ints, Array | None]:
        """Feature numbers of the texts of all fields, and signs where they are hashed.

        New names are counted row by row, so that their numbers do not depend on how the rows were cut into blocks.

        Parameters
        ----------
        texts : sequence of (text, starts, stops)
            Spans of each field, one a row.
        there : (n, fields) bool array
            The others are -1.

        Raises
        ------
        BadNameError
            Where one can be no name, or is none of those that may be: `at` is row * fields + field.
        """
        codes = np.full(there.shape, -1, np.int64)
        if self.encode == "hash":
            signs = np.ones(there.shape, np.int8)
            for field, (text, starts, stops) in enumerate(texts):
                rows = there[:, field]
                codes[rows, field], found = self.codes(field, text, starts[rows], stops[rows])
                signs[rows, field] = 1 if found is None else found
            return codes, signs
        text, starts, stops = _joined(texts)
        at = np.flatnonzero(there)
        fields = np.broadcast_to(np.arange(there.shape[1], dtype=np.int32), there.shape)
        try:
            codes[there] = self._numbers(text, starts.reshape(-1)[at], stops.reshape(-1)[at], fields[there])
        except BadNameError as error:
            error.at = int(at[error.at])
            raise
        return codes, None

    @property
    def width(self) -> int:
        """Number of features so far, those of other fields included."""
        return self.first + (self.n_hashed if self.encode == "hash" else len(self._dictionary))

    def names(self) -> Iterator[str] | None:
        """Names of all these features, without those before; None where they are hashed."""
        return None if self.encode == "hash" else self._dictionary.prefixed(self.prefixes)

    def _split(self, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Runs of names of one field: its number, and their texts."""
        run, field = list[str](), -1
        for name in names:
            lengths = {k: len(prefix) for k, prefix in enumerate(self.prefixes) if name.startswith(prefix)}
            found = max(lengths, key=lambda k: lengths[k], default=-1)
            if found < 0:
                raise ValueError(f"{self.name}: no field has a text for feature {name!r}, which is there already")
            if found != field and run:
                yield field, run
                run = []
            field = found
            run.append(name[len(self.prefixes[field]) :])
        if run:
            yield field, run


def _joined(texts: Sequence[tuple[NDArray[np.uint8], Ints, Ints]]) -> tuple[NDArray[np.uint8], Ints, Ints]:
    """One text, and (n, fields) starts and stops in it."""
    first = texts[0][0]
    if all(text is first for text, _, _ in texts):
        return first, np.stack([t[1] for t in texts], axis=1), np.stack([t[2] for t in texts], axis=1)
    parts, all_starts, all_stops, end = list[Array](), list[Ints](), list[Ints](), 0
    for text, starts, stops in texts:
        low, high = (int(starts.min()), int(stops.max())) if len(starts) else (0, 0)
        parts.append(text[low:high])
        all_starts.append(starts - low + end)
        all_stops.append(stops - low + end)
        end += high - low
    return np.concatenate([*parts, np.zeros(1, np.uint8)]), np.stack(all_starts, axis=1), np.stack(all_stops, axis=1)


def with_codes(rows: Rows, codes: Ints, signs: Array | None, n_features: int) -> tuple[Rows, int | None]:
    """Rows with an entry more for each code of them that is not -1: 1, or its sign; and as `summed` gives it.

    Parameters
    ----------
    rows : Rows
    codes : (n, k) int64 array
    signs : (n, k) array or None
    n_features : int
        Of the rows given.
    """
    from sparsestore.kernels import bucket

    there = codes >= 0
    more = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    indptr = rows.indptr + more
    dtype = index_dtype(n_features)
    indices, data = np.empty(int(indptr[-1]), dtype), np.empty(int(indptr[-1]), rows.data.dtype)
    at = np.arange(rows.nnz) + np.repeat(more[:-1], np.diff(rows.indptr))
    indices[at], data[at] = rows.indices, rows.data
    at = np.arange(int(more[-1])) + np.repeat(rows.indptr[1:], np.diff(more))
    indices[at] = codes[there]
    data[at] = 1 if signs is None else signs[there]
    bucket.sort_in_rows(indptr, indices, bucket.as_bits(data))
    return summed(Rows(indptr, indices, data, n_features))
