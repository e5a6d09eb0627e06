"""Ranges of a number, each of which is a feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ranges"]

_POWERS = tuple(float(2**k) for k in range(63))


class Ranges:
    """The ranges between some edges, each with its lower one: names, and numbers of values.

    Examples
    --------
    >>> Ranges("age", [18, 30]).names
    ['age<18', 'age=18..30', 'age>=30']
    """

    def __init__(self, field: str, edges: Sequence[float]) -> None:
        self.edges = np.asarray(edges, np.float64)
        if not len(edges) or not np.isfinite(self.edges).all() or (np.diff(self.edges) <= 0).any():
            raise ValueError(f"bucket: the edges of {field!r} are {list(edges)}, expected ascending numbers")
        text = [f"{edge:g}" if float(f"{edge:g}") == edge else repr(edge) for edge in self.edges.tolist()]
        inner = [f"{field}={low}..{high}" for low, high in pairwise(text)]
        self.names = [f"{field}<{text[0]}", *inner, f"{field}>={text[-1]}"]

    def codes(self, values: NDArray[np.float64], first: int) -> NDArray[np.int64]:
        """Feature number of each value's range, the lowest of which is `first`; -1 for nan."""
        return np.where(np.isnan(values), -1, np.searchsorted(self.edges, values, side="right") + first)

    @staticmethod
    def parsed(bucket: Mapping[str, Sequence[float]] | str | None) -> list[tuple[str, Sequence[float]]]:
        """Patterns of fields and edges, from a mapping or from text such as ``"age:18|30,I*:log2"``."""
        if bucket is None:
            return []
        if not isinstance(bucket, str):
            return [(field, _edges(field, edges)) for field, edges in bucket.items()]
        found = []
        for part in bucket.split(","):
            field, colon, edges = part.strip().rpartition(":")
            if not colon:
                raise ValueError(f"bucket={bucket!r}: found {part!r}, expected field:18|30|50 or field:log2")
            found.append((field, _edges(field, edges if edges == "log2" else edges.split("|"))))
        return found


def _edges(field: str, edges: Any) -> Sequence[float]:
    """Edges as numbers; "log2" stands for 0 and the powers of two."""
    if isinstance(edges, str):
        if edges != "log2":
            raise ValueError(f"bucket: the edges of {field!r} are {edges!r}, expected numbers or 'log2'")
        return (0.0, *_POWERS)
    try:
        return [float(edge) for edge in edges]
    except (TypeError, ValueError):
        raise ValueError(f"bucket: the edges of {field!r} are {edges!r}, expected ascending numbers") from None
