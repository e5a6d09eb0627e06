"""What every output format is given, and what it says of what it can not hold."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsestore.progress import Progress
from sparsestore.sources.base import Block, Source

__all__ = ["Exporter", "Table", "imported"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that are exported, with what stands beside them.

    Attributes
    ----------
    source : Source
        Of known shape, in row order.
    feature_names : (n_features,) array of str, or None
    max_bytes : int
        What an exporter may hold, blocks that are read included.
    report : callable
        Told how far it is.
    """

    source: Source
    feature_names: NDArray[np.object_] | None
    max_bytes: int
    report: Progress

    @property
    def n_rows(self) -> int:
        """Rows."""
        return int(self.source.n_rows or 0)

    @property
    def n_features(self) -> int:
        """Features."""
        return int(self.source.n_features or 0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return np.dtype(self.source.dtype)

    @property
    def columns(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Dtype, and shape of a row, of what stands beside the matrix."""
        return self.source.columns

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order; `position` is the number of the row behind a block."""
        blocks: Iterator[Block] = self.source.blocks(max_bytes)
        return blocks

    def count_entries(self) -> int:
        """Entries, counted, for formats that have their number before the first."""
        found: int | None = getattr(self.source, "nnz", None)
        return sum(block.x.nnz for block in self.blocks(self.max_bytes // 2)) if found is None else found

    def left_out(self, kept: Collection[str] = (), *, names: bool = False) -> list[str]:
        """What a format leaves out that has only some of the columns, and names of features or not."""
        others = [name for name in self.columns if name not in kept]
        found = [f"the column{'s' * (len(others) > 1)} {', '.join(map(repr, others))}"] if others else []
        return found + ["the names of the features"] * (self.feature_names is not None and not names)


class Exporter(Protocol):
    """An output format. Making one refuses what the format can not hold; then `write` is called once.

    Attributes
    ----------
    left_out : list of str
        What it does not write, though the store has it.
    """

    left_out: list[str]

    def write(self, path: Path) -> list[str]:
        """Write the file, which is there and empty. Gives what is to be said, such as what a reader must be told."""
        ...


def imported(name: str, extra: str) -> Any:
    """A module of an optional library.

    Raises
    ------
    ImportError
        It names the extra to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise ImportError(f'this format needs {library}: pip install "sparsestore[{extra}]"') from error
