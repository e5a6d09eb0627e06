"""What a store keeps about its labels and rows: enough to tell how well it shuffles, gathered in one pass, a few kB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_SIZES", "COUNT_ROWS", "LabelAccumulator", "LabelStatistics", "RowCounts", "merge"]

BLOCK_SIZES = tuple(2**i for i in range(13))
"""Block sizes for which sums are kept; those of size 1 are the totals."""

COUNT_ROWS = 256
"""Rows of a block of `RowCounts`."""

MAX_CLASSES = 64
"""Labels with more distinct values are numbers, not classes."""

_SIZES = np.array(BLOCK_SIZES, np.float64)
_LARGEST = BLOCK_SIZES[-1]
_LARGEST_CENTRE = 1e300  # of what `finish` gives, the squares are finite
_CHUNK = 16 * _LARGEST  # values of a chunk as float64 stay in the second-level cache

Floats = NDArray[np.float64]
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """How much the labels of rows that lie together have in common, at block sizes 1, 2, 4, ... 4096.

    Made by `LabelAccumulator` and `merge`. Blocks never cross a segment; the last of a segment may be short and counts
    with the rows it has. Channels are the components of a number, then the classes one-hot.

    Attributes
    ----------
    blocks : (13,) float64 array
        Number of blocks of each size.
    lengths : (13,) float64 array
        Sum over blocks of (rows of the block) ** 2.
    centre : (k,) float64 array
        What was subtracted from the values of each channel, against cancellation; 0 for classes.
    squares, products : (13, k) float64 arrays
        Sum over blocks of (block sum) ** 2, and of rows of the block * block sum.
    classes : tuple or None
        The distinct labels, sorted, where there are at most 64 and each is a scalar.
    """

    blocks: Floats
    lengths: Floats
    centre: Floats
    squares: Floats
    products: Floats
    classes: tuple[Any, ...] | None

    @property
    def n_rows(self) -> int:
        """Rows seen."""
        return int(self.blocks[0])

    def ratio(self, block_rows: int) -> float:
        """Variance of block sums over what it would be had the rows been shuffled: 1 shuffled, about block_rows sorted.

        For blocks of equal length this is the between-block mean square over the total mean square of an analysis of
        variance, that is ``1 + rho * (block_rows - 1)`` with rho the intra-block correlation. Channels are pooled by
        their sums of squares, as a loss would weigh them: one-hot where there are classes, else the components.

        Parameters
        ----------
        block_rows : int
            At least 1. Between the stored sizes the ratio is interpolated; above 4096 it is continued.

        Returns
        -------
        float
            1.0 where all labels are equal; NaN where there is one block only, and so nothing to compare.

        Raises
        ------
        ValueError
            If `block_rows` is less than 1.
        """
        if block_rows < 1:
            raise ValueError(f"block_rows is {block_rows}, expected at least 1")
        if block_rows == 1:
            return 1.0
        above: int = min((block_rows - 1).bit_length(), len(BLOCK_SIZES) - 1)
        size, half = BLOCK_SIZES[above], BLOCK_SIZES[above - 1]
        if block_rows == size:
            return self._ratio(above)
        share: float = (block_rows - half) / (size - half)
        return (1 - share) * self._ratio(above - 1) + share * self._ratio(above)

    def _ratio(self, i: int) -> float:
        if i == 0:
            return 1.0
        n = self.n_rows
        shared = slice(len(self.centre) - len(self.classes), None) if self.classes is not None else slice(None)
        with np.errstate(over="ignore", invalid="ignore"):  # of sums that no labels have
            return self._about_mean(i, n, shared)

    def _about_mean(self, i: int, n: int, shared: slice) -> float:
        # about the mean: the sums over blocks of (block sum - rows of the block * mean) ** 2
        mean = self.products[0, shared] / max(n, 1)
        squares = self.squares[:, shared] - 2 * mean * self.products[:, shared] + mean**2 * self.lengths[:, None]
        total, between = float(squares[0].sum()), float(squares[i].sum())
        if n < 2 or total <= 0:
            return 1.0
        # what `between` would be on average for rows in random order, in units of total / (n - 1)
        expected = n - float(self.lengths[i]) / n
        return max(between, 0.0) / expected / total * (n - 1) if expected > 0 else math.nan

    def to_arrays(self) -> tuple[Floats, dict[str, Any]]:
        """What is stored: a (13, 2 + 2 k) float64 array (blocks, lengths, squares, products), and JSON attributes."""
        array = np.column_stack([self.blocks, self.lengths, self.squares, self.products])
        classes = None if self.classes is None else list(self.classes)
        return array, {"block_sizes": list(BLOCK_SIZES), "centre": self.centre.tolist(), "classes": classes}

    @classmethod
    def from_arrays(cls, array: Floats, attributes: dict[str, Any]) -> LabelStatistics:
        """The statistics that `to_arrays` gave.

        Raises
        ------
        ValueError
            If the array and the attributes do not fit together.
        """
        given, sizes, classes = (attributes.get(name) for name in ("centre", "block_sizes", "classes"))
        if not isinstance(given, list) or not all(type(value) in (int, float) for value in given):
            raise ValueError(f"label statistics have the centre {str(given)[:40]}, expected a list of numbers")
        if classes is not None and not _are_classes(classes, len(given)):
            raise ValueError(
                f"label statistics have the classes {str(classes)[:40]}, expected at most {MAX_CLASSES} and "
                f"{len(given)} distinct values of one kind, ascending"
            )
        k = len(given)
        if (
            "classes" not in attributes
            or str(sizes) != str(list(BLOCK_SIZES))
            or array.shape != (len(BLOCK_SIZES), 2 + 2 * k)
        ):
            raise ValueError(
                f"label statistics have shape {array.shape} for block sizes {str(sizes)[:80]}, "
                f"expected {(len(BLOCK_SIZES), 2 + 2 * k)} for {list(BLOCK_SIZES)}"
            )
        centre = np.array([float(value) if abs(value) <= _LARGEST_CENTRE else np.nan for value in given])
        if not np.isfinite(array).all() or not np.isfinite(centre).all():
            raise ValueError("label statistics have sums that are no numbers")
        if not _are_sums(array, k):
            raise ValueError("label statistics have sums that no labels have")
        classes = None if classes is None else tuple(classes)
        return cls(array[:, 0], array[:, 1], centre, array[:, 2 : 2 + k], array[:, 2 + k :], classes)

    def check(self, dtype: str, shape: tuple[int, ...], n_rows: int) -> None:
        """Raise ValueError where they can not be those of a column of this dtype and shape a row, of so many rows.

        Those of one column can be merged, whatever segments they are of.
        """
        if self.n_rows != n_rows:
            raise ValueError(f"label statistics are of {self.n_rows} rows, expected {n_rows}")
        width, expected = len(self.centre) - len(self.classes or ()), 0 if dtype == "string" else math.prod(shape)
        if width != expected:
            raise ValueError(f"label statistics have {width} numbers a row, expected {expected}")
        texts = [value for value in self.classes or () if isinstance(value, str) != (dtype == "string")]
        if texts:
            raise ValueError(f"label statistics have the class {texts[0]!r:.40}, and the column has {dtype}")

    def _about(self, centre: Floats) -> LabelStatistics:
        """The same statistics with sums about another centre: exact algebra, the data are not needed."""
        shift = self.centre - centre
        lengths = self.lengths[:, None]
        squares = self.squares + 2 * shift * self.products + shift**2 * lengths
        return replace(self, centre=centre, squares=squares, products=self.products + shift * lengths)

    def _with_classes(self, classes: tuple[Any, ...] | None) -> LabelStatistics:
        """The same statistics with a channel for each of the given classes (all of its own, and more), or with none."""
        if classes == self.classes:
            return self
        n_numbers = len(self.centre) - len(self.classes or ())
        keep = list(range(n_numbers))
        # a class without rows has sums of zero: take them from a channel of zeros put last
        place = {value: n_numbers + i for i, value in enumerate(self.classes or ())}
        keep += [place.get(value, len(self.centre)) for value in classes or ()]
        zeros = np.zeros((len(BLOCK_SIZES), 1))
        squares, products = np.hstack([self.squares, zeros])[:, keep], np.hstack([self.products, zeros])[:, keep]
        return replace(
            self, centre=np.append(self.centre, 0.0)[keep], squares=squares, products=products, classes=classes
        )


def _are_sums(array: Floats, k: int) -> bool:
    """Whether an array is one of sums over blocks of some rows, of k channels."""
    if not 1 <= array[0, 0] < 2**53:
        return False
    whole, short = np.divmod(array[0, 0], _SIZES)
    blocks, lengths = whole + (short > 0), whole * _SIZES**2 + short**2
    squares, products = array[:, 2 : 2 + k], array[:, 2 + k :]
    if (squares < 0).any() or not np.allclose(array[:, :2], np.column_stack([blocks, lengths]), rtol=1e-9):
        return False
    # Cauchy and Schwarz, and what is lost where numbers of very different size are added
    rounded = 1e-9 * np.sqrt(squares[0]) * np.sqrt(array[0, 0])
    most = (np.sqrt(squares) + rounded) * np.sqrt(lengths)[:, None]
    return bool((np.abs(products) <= most * (1 + 1e-6) + 1e-9).all())


def _are_classes(classes: Any, channels: int) -> bool:
    """Whether a list from a document is one of distinct labels in order."""
    if not isinstance(classes, list) or len(classes) > min(MAX_CLASSES, channels):
        return False
    kinds = {str if isinstance(value, str) else float for value in classes if isinstance(value, (str, int, float))}
    scalars = all(isinstance(value, (str, int, float)) for value in classes)
    return scalars and len(kinds) <= 1 and all(a < b for a, b in pairwise(classes))


def merge(parts: Sequence[LabelStatistics]) -> LabelStatistics | None:
    """Statistics of all segments of a store together; None where no channel is left (strings of too many values).

    Raises
    ------
    ValueError
        If there are no parts, their labels have different numbers of components, or some are text and some numbers.
    """
    if not parts:
        raise ValueError("need the statistics of at least one segment")
    widths = {len(part.centre) - len(part.classes or ()) for part in parts}
    if len(widths) != 1:
        raise ValueError(f"labels have different numbers of components: {sorted(widths)}")
    classes: tuple[Any, ...] | None = None
    if all(part.classes is not None for part in parts):
        union = {value for part in parts for value in part.classes or ()}
        if len({isinstance(value, str) for value in union}) > 1:
            raise ValueError("some labels are text and some are numbers")
        classes = tuple(sorted(union)) if len(union) <= MAX_CLASSES else None
    if classes is None and widths == {0}:
        return None
    parts = [part._with_classes(classes) for part in parts]
    centre = parts[0].centre
    parts = [part._about(centre) for part in parts]
    return LabelStatistics(
        np.sum([part.blocks for part in parts], axis=0),
        np.sum([part.lengths for part in parts], axis=0),
        centre,
        np.sum([part.squares for part in parts], axis=0),
        np.sum([part.products for part in parts], axis=0),
        classes,
    )


class LabelAccumulator:
    """Gathers `LabelStatistics` over the rows of one segment, in blocks of any size; not to be shared by threads.

    Parameters
    ----------
    dtype : str or numpy dtype
        Of the label; "string" for strings.
    shape : tuple of int
        Of one row's label: () or, for numbers, (k,).

    Examples
    --------
    >>> labels = LabelAccumulator("int64", ())
    >>> labels.update(np.repeat([0, 1], 1000))
    >>> statistics = labels.finish()
    >>> statistics.classes, round(statistics.ratio(8))
    ((0, 1), 8)
    """

    def __init__(self, dtype: Any, shape: tuple[int, ...] = ()) -> None:
        self._strings = dtype == "string" or np.dtype(dtype).kind not in "biuf"
        self._width = 0 if self._strings else math.prod(shape)
        self._chunk = max(_CHUNK // max(self._width, 1) // _LARGEST, 1) * _LARGEST
        self._parts: list[Array] = []  # rows that wait for their chunk to fill
        self._waiting = 0
        self._sound = True
        self._blocks, self._lengths = np.zeros(len(BLOCK_SIZES)), np.zeros(len(BLOCK_SIZES))
        self._centre: Floats | None = None
        self._numbers = np.zeros((2, len(BLOCK_SIZES), self._width))
        # squares and products of each class; None: not classes
        self._classes: dict[Any, Floats] | None = {} if shape == () else None
        self._codes: dict[str, int] = {}  # of texts, which are classes by their codes until `finish`

    def update(self, values: Array) -> None:
        """Add the labels of the next rows: (n,) or (n, k) array."""
        if not self._sound:
            return
        at = 0
        while at < len(values):
            part = values[at : at + self._chunk - self._waiting]
            at += len(part)
            if self._strings:
                coded = self._coded(part)
                if coded is None:
                    self._parts, self._sound = [], False
                    return
                part = coded
            self._waiting += len(part)
            # rows that wait are copied: the caller may write on into its array
            self._parts.append(part if self._waiting == self._chunk else part.copy())
            if self._waiting == self._chunk:
                self._flush()

    def finish(self) -> LabelStatistics | None:
        """The statistics of all rows given, or None where they can not be told.

        That is: no rows; a NaN or an infinity among the labels (leaving such rows out would move the borders of
        blocks); strings with more than 64 distinct values.
        """
        if self._sound and self._waiting:
            self._flush()
        if not self._sound or self._blocks[0] == 0 or (self._width == 0 and self._classes is None):
            return None
        by_class = self._classes or {}
        if self._strings:
            by_class = {text: by_class[code] for text, code in self._codes.items()}
        classes = None if self._classes is None else tuple(sorted(by_class))
        channels = [self._numbers, *(by_class[value][:, :, None] for value in classes or ())]
        squares, products = np.concatenate(channels, axis=2)
        if not np.isfinite(squares).all():  # values above 1e150 or so
            return None
        centre = np.zeros(squares.shape[1])
        if self._centre is not None:
            centre[: self._width] = self._centre
        return LabelStatistics(self._blocks, self._lengths, centre, squares, products, classes)

    def _coded(self, texts: Array) -> Array | None:
        """Codes of texts, or None where there are too many to be classes.

        numpy's own text takes as much for every row as the longest needs; it ends before NULs, and so do classes.
        """
        given = texts.tolist()
        codes = {}
        for text in dict.fromkeys(given):
            codes[text] = self._codes.setdefault(text.rstrip("\0"), len(self._codes))
            if len(self._codes) > MAX_CLASSES:
                return None
        return np.fromiter(map(codes.__getitem__, given), np.uint8, len(given))

    def _flush(self) -> None:
        values = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
        self._parts, self._waiting = [], 0
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            self._sound = False
            return
        whole, short = np.divmod(float(len(values)), _SIZES)
        lengths = whole * _SIZES**2 + short**2
        self._blocks += whole + (short > 0)
        self._lengths += lengths
        if self._classes is not None:
            present = _distinct(values)
            if len(self._classes.keys() | present) > MAX_CLASSES:
                self._classes = None
                self._sound = self._width > 0
        with np.errstate(over="ignore", invalid="ignore"):  # `finish` looks for what is not finite
            if self._classes is not None and len(present) <= 2:
                self._add_two(values, present, lengths, self._classes)
                return
            if self._width:
                self._add_numbers(values)
            if self._classes is not None:
                for value in present:
                    _add(self._classes, value, _sums((values == value).astype(np.float64)[None])[:, :, 0])

    def _add_two(self, values: Array, present: list[Any], lengths: Floats, classes: dict[Any, Floats]) -> None:
        """One or two classes: the sums of one give those of the other and those of the numbers."""
        one, other = present[0], present[-1]
        squares, products = _sums((values == other).astype(np.float64)[None])[:, :, 0]
        _add(classes, other, np.array([squares, products]))
        if one != other:
            _add(classes, one, np.array([lengths - 2 * products + squares, lengths - products]))
        if self._width:
            low, high = np.float64(one), np.float64(other)
            if self._centre is None:
                self._centre = np.array([low])
            base, step = low - self._centre[0], high - low
            # a block of m rows, s of them `other`, sums to base * m + step * s
            self._numbers[0, :, 0] += base**2 * lengths + 2 * base * step * products + step**2 * squares
            self._numbers[1, :, 0] += base * lengths + step * products

    def _add_numbers(self, values: Array) -> None:
        numbers = np.ascontiguousarray(values.reshape(len(values), self._width).T, np.float64)
        if self._centre is None:
            # the mean, but to the last bit where all are equal, so that their variance is zero to the last bit
            first = numbers[:, 0]
            self._centre = np.where((numbers == first[:, None]).all(axis=1), first, numbers.mean(axis=1))
        self._numbers += _sums(numbers - self._centre[:, None])


def _add(classes: dict[Any, Floats], value: Any, sums: Floats) -> None:
    classes[value] = classes[value] + sums if value in classes else sums


def _distinct(values: Array) -> list[Any]:
    """Distinct values as Python scalars, in any order."""
    found: list[Any] = []
    rest = values
    while len(rest) and len(found) < 4:  # two passes for two classes, where sorting takes ten times as long
        found.append(rest[0].item())
        rest = rest[rest != rest[0]]
    if len(rest):
        found += np.unique(rest).tolist()
    return found


def _sums(channels: Floats) -> Floats:
    """Sums over blocks of (block sum) ** 2 and of block length * block sum.

    Parameters
    ----------
    channels : (k, n) float64 array

    Returns
    -------
    (2, 13, k) float64 array
    """
    k, n = channels.shape
    total = channels.sum(axis=1)
    products = _SIZES[:, None] * total
    for i, size in enumerate(BLOCK_SIZES):
        if n % size:
            products[i] -= (size - n % size) * channels[:, n - n % size :].sum(axis=1)
    squares = np.empty((len(BLOCK_SIZES), k))
    if n % _LARGEST:  # zeros add nothing to a sum
        channels = np.concatenate([channels, np.zeros((k, -n % _LARGEST))], axis=1)
    for i in range(len(BLOCK_SIZES)):
        if i:
            channels = channels[:, 0::2] + channels[:, 1::2]
        squares[i] = np.einsum("kn,kn->k", channels, channels)
    return np.array([squares, products])


class RowCounts:
    """Entries in each block of 256 rows, and in the longest row; gathered in one pass."""

    def __init__(self) -> None:
        self.longest = 0
        self._done: list[Array] = []
        self._open_rows, self._open_count = 0, 0  # the block that is not full yet

    def update(self, lengths: NDArray[np.integer[Any]]) -> None:
        """Add the numbers of entries of the next rows: (n,) array."""
        n = len(lengths)
        if not n:
            return
        self.longest = max(self.longest, int(lengths.max()))
        starts = np.arange(-self._open_rows, n, COUNT_ROWS, dtype=np.int64)
        starts[0] = 0
        counts = np.add.reduceat(lengths, starts, dtype=np.int64)
        counts[0] += self._open_count
        rows = (self._open_rows + n) % COUNT_ROWS
        self._open_rows, self._open_count = rows, int(counts[-1]) if rows else 0
        self._done.append(counts[:-1] if rows else counts)

    def finish(self) -> NDArray[np.unsignedinteger[Any]]:
        """Entries of each block of 256 rows, the last maybe short: uint32 array, uint64 where one needs it."""
        counts = np.concatenate([*self._done, np.array([self._open_count] * bool(self._open_rows), np.int64)])
        return counts.astype(np.uint32 if not len(counts) or counts.max() < 2**32 else np.uint64)
