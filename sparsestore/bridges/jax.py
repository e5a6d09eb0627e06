"""Batches as arrays of JAX: sparse ones padded, so that a compiled step takes nearly all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import ceil, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    import jax
except ImportError as error:
    raise ImportError('to_jax needs JAX: pip install "sparsestore[jax]"') from error

import jax.numpy as jnp
from jax.experimental.sparse import BCOO

from sparsestore.batch import Strip, check_whole
from sparsestore.csr import Rows
from sparsestore.inputs import Inputs, together
from sparsestore.loader import Loader

__all__ = ["Arrays", "Batches", "Padding", "dataset"]

Array = NDArray[Any]

STEP = 128
"""Places are given out in multiples of it at first."""
SAMPLE = 1 << 16
"""Rows whose lengths are looked at."""
LOCAL = 64
"""Of them, those that tell how long rows are in one part of the view."""


class Arrays(NamedTuple):
    """A batch as numpy arrays, made by any thread; `give` makes JAX's of it, in the thread that wants them.

    Which devices and widths these have is set for a thread.
    """

    x: Array | tuple[Array, Array, tuple[int, int]]
    """Dense; or the places and values of a sparse batch, padded, and its shape."""
    columns: dict[str, Array]

    def give(self) -> tuple[Any, dict[str, Any]]:
        """X and the columns."""
        x = _sparse(*self.x) if isinstance(self.x, tuple) else _array("x", self.x)
        return x, {name: _array(f"column {name!r}", values) for name, values in self.columns.items()}


class Padding:
    """How many places a sparse batch is given: as few numbers as can be, as each makes JAX compile the model again.

    The lengths of some rows say how many nearly all batches need; where one needs more, it and all after it get four
    times as many.

    Parameters
    ----------
    loader : Loader
        Whose batches they are.
    nse : int, optional
        Places of every batch, instead; one that needs more is then an error.
    """

    def __init__(self, loader: Loader, nse: int | None = None) -> None:
        if nse is not None and (isinstance(nse, bool) or not isinstance(nse, (int, np.integer)) or nse < 1):
            raise ValueError(f"nse is {nse!r}, expected an integer of at least 1, or None")
        self.nse = 0 if nse is None else int(nse)
        self._fixed = nse is not None
        self._loader = loader

    def cut(self, strip: Strip) -> Iterator[Arrays]:
        """The batches of a strip, padded where they are sparse."""
        check_whole(strip.columns)
        if isinstance(strip.x, Rows) and not self.nse:
            self.nse = self._expected(strip.x)
        for start, stop in pairwise(strip.bounds):
            columns = {name: np.asarray(values[start:stop]) for name, values in strip.columns.items()}
            x = strip.x
            yield Arrays(self._padded(x.slice(start, stop)) if isinstance(x, Rows) else x[start:stop], columns)

    def _expected(self, first: Rows) -> int:
        """Places for nearly every batch."""
        plan = self._loader.plan
        found = self._loader.row_lengths(SAMPLE)
        # of a view with fewer features nobody knows but by reading
        lengths, stride = (np.diff(first.indptr), 0.0) if found is None else found
        size = min(plan.batch_size, plan.n_rows)
        usual = float(lengths.mean()) * size + 6 * float(lengths.std()) * sqrt(size)
        if stride and not plan.shuffle:
            # long rows may lie together: the most of a batch, or of rows that lie further apart
            n = size if stride == 1 else max(int(size / stride), LOCAL)
            most = int(np.add.reduceat(lengths, np.arange(0, len(lengths), n)).max()) * size / n
            usual = most if stride == 1 else max(usual, most)
        return max(ceil(min(usual, int(lengths.max()) * size) / STEP), 1) * STEP

    def _padded(self, rows: Rows) -> tuple[Array, Array, tuple[int, int]]:
        n, (n_rows, n_features) = rows.nnz, rows.shape
        if n > self.nse:
            if self._fixed:
                raise ValueError(f"nse is {self.nse} and a batch has {n} entries: take a larger nse, or leave it out")
            self.nse = max(4 * self.nse, 1 << (n - 1).bit_length())
        wide = np.int32 if max(n_rows, n_features) < 2**31 else np.int64
        places, values = np.empty((self.nse, 2), wide), np.zeros(self.nse, rows.data.dtype)
        places[:n, 0] = np.repeat(np.arange(n_rows), np.diff(rows.indptr))
        places[:n, 1] = rows.indices
        places[n:] = n_rows, n_features  # outside of the matrix: JAX leaves such entries out
        values[:n] = rows.data
        return places, values, (n_rows, n_features)


def dataset(loader: Loader, *, inputs: Inputs | None = None, nse: int | None = None) -> Batches:
    """Batches of a loader as ``x``, ``(x, y)`` or ``(x, y, sample_weight)``: see `Batches`."""
    return Batches(loader, inputs=inputs, nse=nse)


class Batches:
    """Batches of a loader as arrays of JAX: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

    `x` is a `jax.experimental.sparse.BCOO`, or an array with ``layout="dense"``; `y` a dict by column name where
    several columns were chosen. Each iteration is the next epoch.

    Parameters
    ----------
    loader : Loader
        Its layout, dtype, columns and partition decide what the elements are.
    inputs : Inputs, optional
        What x has beside the matrix: x is then a dict.
    nse : int, optional
        Places of each sparse batch; found from the first rows and raised where need be, by default.

    Raises
    ------
    ValueError
        A column of texts, sample weights and nothing to weigh, or a bad `nse`.

    Notes
    -----
    All sparse batches have the same number of places, ``nse``, the last of them empty: their values are 0 and their
    indices those of no entry, (rows, features), as JAX has it. A function that is compiled for one takes them all; a
    last batch that is short has fewer rows and is compiled for once more, which ``drop_remainder=True`` avoids. Where
    a batch needs more places than any before it, it and all later ones get four times as many, or more if need be.

    Where JAX has no numbers of 64 bits (its default), columns are narrowed to 32, and whole numbers that would not fit
    are an error, as are a `dtype` of 64 bits and sparse batches of 2**31 features and more.
    """

    def __init__(self, loader: Loader, *, inputs: Inputs | None = None, nse: int | None = None) -> None:
        self._inputs = inputs or Inputs()
        self._inputs.check(loader, "JAX")
        self._loader = loader
        self._paddings = [Padding(each, nse) for each in self._inputs.loaders(loader)]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def __repr__(self) -> str:
        return f"<Batches of {self._loader!r}>"

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch."""
        check_dtype(self._loader.dtype)
        loaders, cuts = self._inputs.loaders(self._loader), [padding.cut for padding in self._paddings]
        return together(loaders, cuts, self._loader.begin(), self._element)

    def _element(self, found: list[Arrays]) -> Any:
        return self._inputs.joined([arrays.give() for arrays in found])

    def state_dict(self) -> dict[str, Any]:
        """Position after the batches handed out, as JSON values: see `Loader.state_dict`."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken: see `Loader.load_state_dict`."""
        self._loader.load_state_dict(state)


def check_dtype(dtype: np.dtype[Any]) -> None:
    """See that JAX has a dtype as it is set up.

    Raises
    ------
    ValueError
        It does not.
    """
    if dtype.itemsize == 8 and not jax.config.jax_enable_x64:
        raise ValueError(
            f"dtype is {dtype}, and JAX has no numbers of 64 bits unless told: take dtype='{dtype.name[:-2]}32', or "
            f"call jax.config.update('jax_enable_x64', True) at the start"
        )


def _sparse(places: Array, values: Array, shape: tuple[int, int]) -> BCOO:
    if places.dtype == np.int64 and not jax.config.jax_enable_x64:
        raise ValueError(
            f"x has {shape[1]} features, more than {2**31 - 1}, and JAX no feature numbers of 64 bits unless told: "
            f"call jax.config.update('jax_enable_x64', True) at the start, or select fewer features"
        )
    return BCOO((_array("x", values), jnp.asarray(places)), shape=shape, indices_sorted=True, unique_indices=True)


def _array(name: str, values: Array) -> jax.Array:
    if values.dtype.itemsize == 8 and values.dtype.kind in "iu" and not jax.config.jax_enable_x64:
        bounds = np.iinfo(np.int32 if values.dtype.kind == "i" else np.uint32)
        if values.size and (values.min() < bounds.min or values.max() > bounds.max):
            raise ValueError(
                f"{name} has whole numbers outside of {bounds.min} to {bounds.max}, and JAX none of 64 bits unless "
                f"told: call jax.config.update('jax_enable_x64', True) at the start"
            )
    return jnp.asarray(values)
