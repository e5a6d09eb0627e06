"""Inputs of a model beside the matrix: columns, and matrices of other stores that have the same rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, TypeVar

from sparsestore.batch import Strip, check_targets, check_texts, targets
from sparsestore.loader import Loader

__all__ = ["MATRIX", "Cut", "Inputs", "together"]

T = TypeVar("T")
Cut = Callable[[Strip], Iterable[tuple[Any, Mapping[str, Any]]]]
"""Makes x and the columns of each batch of a strip, in any thread."""

MATRIX = "x"
"""Name of the matrix among several inputs."""


class Inputs:
    """What x has beside the matrix; x is then a dict.

    Parameters
    ----------
    columns : mapping of str to str
        Columns, by the names of the inputs.
    others : mapping of str to Loader
        Matrices: loaders of as many rows, whose own plans and columns are not used.

    Raises
    ------
    ValueError
        One has the name of the matrix.
    """

    def __init__(self, columns: Mapping[str, str] | None = None, others: Mapping[str, Loader] | None = None) -> None:
        self.columns = dict(columns or {})
        self.others = dict(others or {})
        if MATRIX in (names := [*self.columns, *self.others]):
            raise ValueError(f"inputs are {names}: {MATRIX!r} is the matrix, so no other can have that name")

    def check(self, loader: Loader, framework: str = "") -> None:
        """See that a model can take the chosen columns; `framework` is the name of one that has no tensors of texts.

        Raises
        ------
        ValueError
            There are weights and no target, or a column of texts.
        """
        check_targets(name for name in loader.columns if name not in self.columns.values())
        if framework:
            check_texts(loader.texts, framework)

    def element(self, x: Any, columns: Mapping[str, Any], others: Iterable[Any] = ()) -> Any:
        """``x``, ``(x, y)`` or ``(x, y, sample_weight)``, of a matrix, the chosen columns, and the other matrices.

        Examples
        --------
        >>> Inputs().element("matrix", {"y": 1})
        ('matrix', 1)
        >>> Inputs({"age": "a"}).element("matrix", {"y": 1, "a": 30})
        ({'x': 'matrix', 'age': 30}, 1)
        """
        if self.columns or self.others:
            x = {
                MATRIX: x,
                **{name: columns[column] for name, column in self.columns.items()},
                **dict(zip(self.others, others, strict=True)),
            }
            columns = {name: values for name, values in columns.items() if name not in self.columns.values()}
        y, sample_weight = targets(columns)
        if y is None:
            return x
        return (x, y) if sample_weight is None else (x, y, sample_weight)

    def joined(self, found: Sequence[tuple[Any, Mapping[str, Any]]]) -> Any:
        """`element` of a batch: x and columns of the leader, then those of the others, whose columns are not used."""
        (x, columns), *others = found
        return self.element(x, columns, (matrix for matrix, _ in others))

    def loaders(self, leader: Loader) -> list[Loader]:
        """The leader, and the others in step with it."""
        for other in self.others.values():
            other.follow(leader)
        return [leader, *self.others.values()]


def together(
    loaders: Sequence[Loader], cuts: Sequence[Cut], start: tuple[int, int], make: Callable[[list[Any]], T]
) -> Generator[T, None, None]:
    """What is left of an epoch from `start`, an (epoch, batch), on: `make` of what the cuts made of each batch."""
    with ExitStack() as stack:
        iterators = [
            stack.enter_context(closing(loader.elements(cut, start))) for loader, cut in zip(loaders, cuts, strict=True)
        ]
        while True:
            try:
                # no name here: its memory would wait while the next strip is copied
                yield make([next(elements) for elements in iterators])
            except StopIteration:
                return
