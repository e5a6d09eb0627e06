"""Some rows and features of a store: what can be read, selected, split, planned and loaded."""

from __future__ import annotations

import html
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore import memory
from sparsestore.batch import SAMPLE_WEIGHT
from sparsestore.csr import number_dtype
from sparsestore.errors import ResourceError
from sparsestore.forking import imported
from sparsestore.format import ROW_ID, ColumnSchema
from sparsestore.indexing import row_numbers
from sparsestore.inputs import Inputs
from sparsestore.layout import parse_bytes
from sparsestore.loader import LAYOUTS, Loader
from sparsestore.plan import quality
from sparsestore.plan.partition import n_batches
from sparsestore.plan.report import PlanReport
from sparsestore.plan.selection import Selection, split
from sparsestore.plan.shuffle import check_seed
from sparsestore.plan.window import MOST_BLOCK_ROWS, Plan
from sparsestore.reader import Reader
from sparsestore.weights import weights_of
from sparsestore.window import STRIP_BYTES

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Column", "View"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

_FEW_ROWS = 1 << 20  # for whose sake nobody asks how much memory is free, nor whether there are so many
log = logging.getLogger("sparsestore")
_advised: set[tuple[str, int]] = set()  # versions whose order this process has said something about


def _slice_length(reader: Reader, key: slice, n: int) -> int:
    """Rows that a slice picks from n; of very many it is made sure first that the files can hold them."""
    length = len(range(*key.indices(n)))
    if length > _FEW_ROWS:
        reader.open_segments()
    return length


class Column:
    """One value, or k values, for each row of a store or view; read when it is indexed.

    Examples
    --------
    >>> import numpy as np, tempfile, sparsestore as ss
    >>> store = ss.convert(np.eye(3), tempfile.mkdtemp() + "/eye.zarr", columns={"y": [7, 8, 9]})
    >>> store.column("y")[1:]
    array([8, 9])
    """

    def __init__(self, reader: Reader, selection: Selection, name: str) -> None:
        schema = reader.columns.get(name) if name != ROW_ID else ColumnSchema("int64")
        if schema is None:
            raise KeyError(f"there is no column {name!r}: the store has {sorted(reader.columns) or 'none'}")
        self.name = name
        self._reader = reader
        self._selection = selection
        self._schema = schema

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows,) or (rows, k)."""
        return (self._selection.n_rows, *self._schema.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values; object for strings."""
        return np.dtype(object if self._schema.dtype == "string" else self._schema.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            self._check_memory(_slice_length(self._reader, key, len(self)))
        found = self._reader.column(self.name, self._selection.rows(row_numbers(key, len(self))))
        return found[0] if isinstance(key, int) or getattr(key, "shape", None) == () else found

    def _check_memory(self, n: int) -> None:
        # what is decoded, and row numbers that find it
        if n <= _FEW_ROWS:
            return
        needed, free = n * (16 + math.prod(self._schema.shape) * self.dtype.itemsize), memory.free_bytes()
        if free is not None and needed > free:
            raise ResourceError(
                f"{n} rows of column {self.name!r} take {needed:,} bytes and {free:,} are free: take fewer at a time"
            )

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype)

    def __repr__(self) -> str:
        return f"<column {self.name!r}: {self.shape[0]} x {self._schema.dtype}{list(self._schema.shape) or ''}>"


class View:
    """Some rows and features of a store, in memory only as numbers: at most one bit a row. Reads nothing until used.

    Attributes
    ----------
    path : str
        Of the store.
    """

    def __init__(self, reader: Reader, path: str, selection: Selection, features: Ints | None) -> None:
        self.path = path
        self._reader = reader
        self._selection = selection
        self._features = features

    # ------------------------------------------------------------------------------------------------ facts

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, features)."""
        return self._selection.n_rows, self._reader.shape[1] if self._features is None else len(self._features)

    @property
    def nnz(self) -> int:
        """Stored entries. A view counts them, from its row offsets, or from its entries if it has fewer features."""
        if self._features is None and self._is_whole():
            return self._reader.nnz
        return sum(rows.nnz for rows in self._pieces()) if self._features is not None else self._count_entries()

    def _is_whole(self) -> bool:
        # rows in an order of their own are as one segment, and may repeat one and lack another
        whole = np.array_equal(self._selection.segment_rows, self._reader.segment_rows)
        return self._selection.in_order and bool(whole)

    def _count_entries(self) -> int:
        step = 1 << 20
        total = 0
        for start in range(0, len(self), step):
            positions = np.arange(start, min(start + step, len(self)))
            total += int(self._reader.lengths(self._selection.rows(positions)).sum())
        return total

    def _pieces(self) -> Iterator[csr_array]:
        step = 1 << 16
        for start in range(0, len(self), step):
            yield self[start : start + step]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Logical dtype of the values."""
        return self._reader.dtype

    @property
    def columns(self) -> dict[str, ColumnSchema]:
        """What stands beside the matrix, by name."""
        return self._reader.columns

    @property
    def feature_names(self) -> NDArray[np.object_] | None:
        """(features,) array of str, or None where the features have no names."""
        names = self._reader.feature_names
        return names if names is None or self._features is None else names[self._features]

    @property
    def version(self) -> int:
        """Version of the store that is read."""
        return self._reader.version

    def __len__(self) -> int:
        return self._selection.n_rows

    def _facts(self) -> dict[str, str]:
        rows, features = self.shape
        columns = ", ".join(
            f"{name} ({schema.dtype}{list(schema.shape) or ''})" for name, schema in self.columns.items()
        )
        return {"shape": f"{rows:,} x {features:,}", "dtype": str(self.dtype), "columns": columns or "none"}

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts().items())
        return f"<{type(self).__name__} {self.path!r}, version {self.version}: {facts}>"

    def _repr_html_(self) -> str:
        cells = {"path": self.path, "version": str(self.version), **self._facts()}
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in cells.items())
        return f"<table><caption>sparsestore {type(self).__name__}</caption>{rows}</table>"

    # ----------------------------------------------------------------------------------------------- access

    def __getitem__(self, key: Any) -> csr_array:
        """Rows as a 2-D `scipy.sparse.csr_array`, by int, slice, integer array or boolean mask, as numpy would.

        Values have the logical dtype; float16, which scipy lacks, becomes float32.

        Raises
        ------
        IndexError
            As numpy words it.
        MemoryError
            Where the result would not fit in free memory; both numbers are given.
        """
        if isinstance(key, slice):  # before even the numbers of the rows are made
            self._check_memory(_slice_length(self._reader, key, len(self)))
        positions = row_numbers(key, len(self))
        self._check_memory(len(positions))
        rows = self._selection.rows(positions)
        dtype = np.dtype(np.float32) if self.dtype == np.float16 else self.dtype  # scipy.sparse has no float16
        if len(rows) > 1 and not bool((rows[1:] > rows[:-1]).all()):
            distinct, order = np.unique(rows, return_inverse=True)
            found = self._reader.locate(distinct).take(order, dtype=dtype)
        else:
            found = self._reader.locate(rows).take(dtype=dtype)
        return (found if self._features is None else found.take_features(self._features)).to_scipy()

    def _check_memory(self, n: int) -> None:
        rows, features = self._reader.shape
        a_row = 8 + 25 + self._reader.nnz / max(rows, 1) * (self.dtype.itemsize + (4 if features < 2**31 else 8))
        needed, free = int(n * a_row), memory.free_bytes()
        if free is not None and needed > free:
            raise ResourceError(
                f"{n} rows take about {needed:,} bytes and {free:,} are free: take fewer rows at a time, "
                f"or loader() for batches"
            )

    def column(self, name: str) -> Column:
        """A column, to be indexed like a numpy array.

        Raises
        ------
        KeyError
            Where there is no such column.
        """
        return Column(self._reader, self._selection, name)

    def select(self, rows: Any = None, features: Any = None) -> View:
        """Narrow the view to some of its rows or features; reads nothing.

        Parameters
        ----------
        rows : slice, boolean mask or integer array, optional
            As in numpy. A mask or ascending numbers cost a bit a row; other numbers, 8 bytes each, keep their order.
        features : sequence of int or str, or boolean mask, optional
            By number or by name; renumbered from 0 in the order given.

        Raises
        ------
        IndexError
            As numpy words it.
        KeyError
            Where no feature has the name.
        """
        selection = self._selection
        if isinstance(rows, slice):
            selection = selection.take_slice(rows)
        elif np.asarray(rows).dtype == np.bool_:
            selection = selection.take_mask(np.asarray(rows))
        elif rows is not None:
            selection = selection.take_ids(row_numbers(rows, len(self)))
        chosen = self._features
        if features is not None:
            chosen = row_numbers(self._numbered(features), self.shape[1], axis=1)
            chosen = chosen if self._features is None else self._features[chosen]
        return View(self._reader, self.path, selection, chosen)

    def _numbered(self, features: Any) -> Any:
        """Numbers of features that are given by name; others as they are."""
        given = [features] if isinstance(features, str) else features
        if not len(given) or not isinstance(given[0], str):
            return features
        names = self.feature_names
        if names is None:
            raise KeyError(f"the features of {self.path} have no names: give their numbers, 0 to {self.shape[1] - 1}")
        numbers = {name: number for number, name in enumerate(names.tolist())}
        missing = [name for name in given if name not in numbers]
        if missing:
            raise KeyError(f"there is no feature {missing[0]!r}: the first of {len(names)} are {names[:5].tolist()}")
        return [numbers[name] for name in given]

    def split(
        self,
        fractions: float | Sequence[float] | Array | Mapping[str, float] = 0.9,
        *,
        seed: int = 0,
        stratify: str | None = None,
        group: str | None = None,
    ) -> Any:
        """Split the rows at random into disjoint views; later appends never move a row from one to another.

        Parameters
        ----------
        fractions : float, sequence of float, or mapping of str to float
            A float f gives (f, 1 - f). They add up to at most 1.
        seed : int
        stratify : str, optional
            Column of classes: each view gets its share of every class. Rows that have no value, masked or nan, are a
            class of their own.
        group : str, optional
            Column of groups, of users for example: no group is torn apart. The shares then hold for groups.
            Rows that have no value are one group: select those that have one, where they are many.

        Returns
        -------
        tuple of View, or dict of str to View
            A dict where a mapping was given.

        Raises
        ------
        ValueError
            On bad fractions, or with both `stratify` and `group`.

        Notes
        -----
        Membership is decided a segment at a time. Segments that were shuffled when they were stored are cut into
        contiguous ranges, so a view of 10 % reads 10 % of the bytes; of others rows are drawn.

        The parts can be split again, with the same seed or another. A store that was converted from a part does not
        know of it: split that with another seed, or the groups of the part stay together.
        """
        if stratify is not None and group is not None:
            raise ValueError("stratify and group can not be combined: choose one")
        if isinstance(fractions, Mapping):
            named = {str(name): float(f) for name, f in fractions.items()}
        elif isinstance(fractions, (Sequence, np.ndarray)):
            named = {str(i): float(f) for i, f in enumerate(fractions)}
        else:
            if not 0 < float(fractions) < 1:
                raise ValueError(f"fraction is {fractions}, expected between 0 and 1")
            named = {"train": float(fractions), "val": 1 - float(fractions)}
        reader = self._reader

        def values(name: str) -> Any:
            column = Column(reader, self._selection, name)  # KeyError before anything is read

            def of_segment(number: int) -> Array:
                ends = np.cumsum(self._selection.segment_rows)
                start = int(ends[number] - self._selection.segment_rows[number])
                return np.asanyarray(column[start : int(ends[number])])

            return of_segment

        parts = split(
            self._selection,
            reader.segment_starts,
            reader.shuffled,
            named,
            seed,
            strata=None if stratify is None else values(stratify),
            groups=None if group is None else values(group),
        )
        views = {name: View(reader, self.path, part, self._features) for name, part in parts.items()}
        return views if isinstance(fractions, Mapping) else tuple(views.values())

    # ------------------------------------------------------------------------------------------------ plans

    def _columns(self, columns: Sequence[str] | str | None, weights: Any = None) -> tuple[str, ...]:
        """The columns that are chosen, where rows are drawn by `weights`."""
        if columns is None:
            drawn = isinstance(weights, str) and weights == SAMPLE_WEIGHT  # which is used up by drawing
            names = ("y",) if drawn else ("y", SAMPLE_WEIGHT)
            return tuple(name for name in names if name in self._reader.columns)
        return (columns,) if isinstance(columns, str) else tuple(columns)

    def _bytes_a_row(self) -> float:
        rows, features = self._reader.shape
        return 16 + self._reader.nnz / max(rows, 1) * ((4 if features < 2**31 else 8) + 4)

    def _column_bytes(self, columns: tuple[str, ...]) -> int:
        """Bytes of a row of the chosen columns in memory; a string counts as 64."""
        schemas = [self._reader.columns[name] for name in columns if name in self._reader.columns]
        return sum(
            math.prod(schema.shape) * (64 if schema.dtype == "string" else np.dtype(schema.dtype).itemsize)
            for schema in schemas
        )

    def _held_bytes(self, batch_size: int, window_rows: int, columns: tuple[str, ...], cell_bytes: int) -> int:
        """About the most that an epoch holds: places and columns of three windows, and strips of batches.

        Of a store that is not mapped also the entries of two windows.
        """
        n_rows, entries = min(window_rows, len(self)), self._bytes_a_row()
        held: float = 3 * n_rows * (64 + self._column_bytes(columns))
        a_row = self.shape[1] * cell_bytes or entries
        held += 3 * max(min(batch_size, len(self)) * a_row, min(STRIP_BYTES, n_rows * a_row / 4))
        if not (self._reader.mmap and self._reader.manifest.profile == "raw"):
            held += 2 * n_rows * entries
        return int(held)

    def _plan(
        self,
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        drop_remainder: bool,
        window_rows: int | None,
        block_rows: int | str,
        window_bytes: int | str,
        columns: tuple[str, ...],
        cell_bytes: int,
    ) -> tuple[Plan, quality.ShuffleQuality | None]:
        # numpy's numbers become Python's: they go into a state, which is JSON
        batch_size, shuffle, drop_remainder = _whole("batch_size", batch_size), bool(shuffle), bool(drop_remainder)
        window_rows = None if window_rows is None else _whole("window_rows", window_rows)
        if isinstance(block_rows, str) and block_rows != "auto":
            raise ValueError(f"block_rows is {block_rows!r}, expected an integer of at least 1, or 'auto'")
        if not isinstance(block_rows, str):
            block_rows = _whole("block_rows", block_rows, most=MOST_BLOCK_ROWS)
        if not len(self):
            raise ValueError("the view has no rows: there is nothing to load")
        if seed is None:
            seed = int(imported("numpy.random").SeedSequence().generate_state(1)[0]) if shuffle else 0
        check_seed(seed)
        seed = int(seed)
        if window_rows is None:
            window_rows = quality.default_window_rows(
                batch_size, self._bytes_a_row(), window_bytes=parse_bytes(window_bytes, "window_bytes")
            )
        free, n_rows = memory.free_bytes(), min(batch_size, len(self))
        needed = n_rows * self.shape[1] * cell_bytes
        if free is not None and needed > free:
            raise ResourceError(
                f"a dense batch of {n_rows} rows x {self.shape[1]} features takes {needed:,} bytes "
                f"and {free:,} are free: take layout='sparse', a smaller batch_size or fewer features"
            )
        needed = self._held_bytes(batch_size, window_rows, columns, cell_bytes)
        if free is not None and needed > free:
            raise ResourceError(
                f"windows of {window_rows} rows and batches of {batch_size} take about {needed:,} bytes and {free:,} "
                f"are free: take a smaller window_rows or batch_size"
            )
        rows = self._selection.segment_rows
        if not shuffle:
            together = min(window_rows, MOST_BLOCK_ROWS)
            return Plan(rows, batch_size, together, window_rows, False, seed, drop_remainder), None
        label, statistics, shuffled = _label(columns), None, False
        if self._selection.in_order:  # else nothing that is stored tells how alike neighbours in the view are
            statistics = self._reader.label_statistics(label) if label is not None else None
            shuffled = bool(len(self._reader.shuffled) and self._reader.shuffled.all())
        size = (
            block_rows
            if not isinstance(block_rows, str)
            else quality.auto_block_rows(statistics, rows, window_rows, shuffled=shuffled)
        )
        plan = Plan(rows, batch_size, size, window_rows, True, seed, drop_remainder)
        found = quality.shuffle_quality(
            statistics, rows, batch_size=batch_size, block_rows=size, window_rows=window_rows, shuffled=shuffled
        )
        return plan, found

    def plan(
        self,
        batch_size: int = 32,
        *,
        shuffle: bool = True,
        seed: int | None = None,
        layout: str = "sparse",
        columns: Sequence[str] | str | None = None,
        drop_remainder: bool = False,
        window_rows: int | None = None,
        block_rows: int | str = "auto",
        window_bytes: int | str = "256MiB",
        n_partitions: int = 1,
    ) -> PlanReport:
        """Tell what an epoch will read, hold and how good its shuffle is, before it runs; ``print`` it.

        Parameters
        ----------
        batch_size, shuffle, seed, layout, columns, drop_remainder, window_rows, block_rows, window_bytes, n_partitions
            As in `loader`.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}")
        chosen = self._columns(columns)
        cell_bytes = 4 if layout == "dense" else 0
        plan, found = self._plan(
            batch_size, shuffle, seed, drop_remainder, window_rows, block_rows, window_bytes, chosen, cell_bytes
        )
        return self._report(plan, found, chosen, layout, n_partitions)

    def _report(
        self,
        plan: Plan,
        found: quality.ShuffleQuality | None,
        columns: tuple[str, ...],
        layout: str = "sparse",
        n_partitions: int = 1,
    ) -> PlanReport:
        stored_rows = max(self._reader.shape[0], 1)
        among = self.shape[0] if self._selection.in_order else min(plan.window_rows, self.shape[0])
        return PlanReport(
            n_rows=plan.n_rows,
            n_features=self.shape[1],
            batch_size=plan.batch_size,
            n_batches=n_batches(plan, n_partitions),
            shuffle=plan.shuffle,
            seed=plan.seed if plan.shuffle else None,
            block_rows=plan.block_rows,
            window_rows=plan.window_rows,
            n_windows=plan.n_windows,
            bytes_a_row=self._reader.nnz * self._reader.stored_itemsize / stored_rows,
            window_bytes=int(plan.window_rows * (self._bytes_a_row() + self._column_bytes(columns))),
            memory_bytes=self._held_bytes(plan.batch_size, plan.window_rows, columns, 4 if layout == "dense" else 0),
            dense_batch_bytes=plan.batch_size * self.shape[1] * 4 if layout == "dense" else 0,
            share=1.0 if self._selection.is_contiguous else min(among / stored_rows, 1.0),
            compact=self._reader.manifest.profile == "compact",
            label=_label(columns),
            quality=found,
        )

    def loader(
        self,
        batch_size: int = 32,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        weights: Any = None,
        layout: str = "sparse",
        dtype: DTypeLike = "float32",
        columns: Sequence[str] | str | None = None,
        drop_remainder: bool = False,
        window_rows: int | None = None,
        block_rows: int | str = "auto",
        window_bytes: int | str = "256MiB",
        partition: int = 0,
        n_partitions: int = 1,
        allow_poor_shuffle: bool = False,
    ) -> Loader:
        """Batches of this view; each iteration is the next epoch.

        Parameters
        ----------
        batch_size : int
        shuffle : bool
            A new order every epoch; every row once.
        seed : int, optional
            The same seed gives the same orders, on any number of partitions, which need one. Drawn and remembered where
            left out.
        weights : str or (rows,) array, optional
            Rows are drawn, with replacement, in proportion to these: the name of a column of numbers; an array with a
            number for each row of the view, which must not change while the loader is used; or "balanced:" and the name
            of a column, of numbers or text, whose classes then all weigh the same. Finite, 0 or more; needs `shuffle`.
        layout : {"sparse", "dense"}
            ``batch.x`` is a scipy `csr_array` or a dense array.
        dtype : numpy dtype
            Of ``batch.x``. Floats round what they lack; a dtype of integers must have all values of those that the
            store's segments store.
        columns : sequence of str, optional
            What comes beside x; "y" and "sample_weight" where they exist, by default.
        drop_remainder : bool
            Leave out a last batch that is short.
        window_rows : int, optional
            Rows shuffled together in memory, a multiple of `batch_size`; 65,536, or what fits `window_bytes`.
        block_rows : int or "auto"
            Consecutive rows read together; "auto" takes the largest that leaves training as good as a full shuffle.
        window_bytes : int or str
            Bound on a window in memory when `window_rows` is left out.
        partition, n_partitions : int
            This worker's share; all get the same number of batches.
        allow_poor_shuffle : bool
            Accept a drift above 16: see `plan`.

        Returns
        -------
        Loader

        Raises
        ------
        ValueError
            On a bad argument, a view without rows, or a shuffle that would ruin training.

        Notes
        -----
        With `weights` an epoch reads the same windows and has as many batches as without. Out of each window as many
        rows are drawn as it has, so ``batch.row_ids`` may have a row more than once, and an epoch need not have each.
        Windows differ in weight; ``batch.sample_weight``, then always there, makes up for it: the stored column, if it
        is among `columns`, times the window's weight a row over the store's, which is 1 on the mean of an epoch. So
        sums that are weighted by it have expectations in proportion to `weights`, however the rows are stored. Where
        windows are alike it is about 1 everywhere. A window whose rows all have weight 0 gives each once, with
        `sample_weight` 0. The weights are read once when the loader is made, and again a window at a time.

        Examples
        --------
        >>> import numpy as np, tempfile, sparsestore as ss
        >>> y = np.arange(1000) % 100 == 0  # one in a hundred
        >>> store = ss.convert(np.eye(1000), tempfile.mkdtemp() + "/eye.zarr", columns={"y": y})
        >>> loader = store.loader(100, shuffle=True, seed=0, weights="balanced:y")
        >>> sum(int(batch.y.sum()) for batch in loader)
        500
        """
        chosen, dtype = self._columns(columns, weights), number_dtype(dtype)
        if weights is not None and not shuffle:
            raise ValueError("weights draws rows at random, and shuffle is False: pass shuffle=True, or no weights")
        if isinstance(weights, str) and weights == SAMPLE_WEIGHT and SAMPLE_WEIGHT in chosen:
            raise ValueError(
                f"{SAMPLE_WEIGHT!r} is in columns and is weights: a row would be drawn by it and weighed by it "
                f"again; leave it out of one of them"
            )
        n_partitions = _whole("n_partitions", n_partitions)
        if shuffle and seed is None and n_partitions > 1:
            raise ValueError(
                f"shuffle=True without a seed, and n_partitions={n_partitions}: each partition would draw an order of "
                f"its own, and rows be read twice or never: pass the same seed to all (a state that is loaded has its "
                f"own)"
            )
        cell_bytes = dtype.itemsize if layout == "dense" else 0
        plan, found = self._plan(
            batch_size, shuffle, seed, drop_remainder, window_rows, block_rows, window_bytes, chosen, cell_bytes
        )
        if found is not None:
            _judge(found, plan, allow_poor_shuffle)
        advice = self._report(plan, found, chosen).advice if isinstance(block_rows, str) else None
        if advice and (self.path, self.version) not in _advised:
            _advised.add((self.path, self.version))
            log.warning("%s: %s", self.path, advice)
        return Loader(
            self._reader,
            self._selection,
            plan=plan,
            columns=chosen,
            features=self._features,
            dtype=dtype,
            layout=layout,
            partition=_whole("partition", partition, least=0),
            n_partitions=n_partitions,
            weights=None if weights is None else weights_of(weights, self._reader, self._selection),
        )

    def to_tf(
        self,
        batch_size: int = 32,
        *,
        inputs: Mapping[str, str | View] | Sequence[str] | str = (),
        prefetch: int = 2,
        **options: Any,
    ) -> Any:
        """Give batches as a `tf.data.Dataset` of (x, y) or (x, y, sample_weight), ready for ``model.fit``.

        Parameters
        ----------
        batch_size : int
        inputs : sequence of str, or mapping of str to str or View
            Inputs of the model beside the matrix: columns, and other stores or views that have the same rows. x is then
            a dict, of the matrix as "x" and of these by their names, as a model with inputs of these names takes it.
        prefetch : int
            Batches made ahead.
        **options
            As in `loader`; with ``layout="sparse"`` x is a `tf.SparseTensor`, with "dense" a dense tensor.

        Returns
        -------
        tf.data.Dataset
            Of known cardinality; each iteration over it is the next epoch.

        Raises
        ------
        ImportError
            Where TensorFlow is not installed; it names the extra.
        ValueError
            A column is both an input and a target, an input is called "x", or another store has other rows: as many,
            with the same numbers in the files that they were converted from, are asked for.
        """
        from sparsestore.bridges import tensorflow

        loader, found = self._joined(batch_size, inputs, options)
        return tensorflow.dataset(loader, inputs=found, prefetch=prefetch)

    def _joined(
        self, batch_size: int, inputs: Mapping[str, str | View] | Sequence[str] | str, options: Mapping[str, Any]
    ) -> tuple[Loader, Inputs]:
        """A loader that has the columns that are inputs, too, and all inputs beside the matrix."""
        if isinstance(inputs, Mapping):
            named = dict(inputs)
        else:
            named = {name: name for name in ((inputs,) if isinstance(inputs, str) else inputs)}
        columns = {name: column for name, column in named.items() if isinstance(column, str)}
        views = {name: view for name, view in named.items() if not isinstance(view, str)}
        if columns:
            chosen = self._columns(options.get("columns"), options.get("weights"))
            if both := [column for column in columns.values() if column in chosen]:
                raise ValueError(f"inputs has {both[0]!r}, which is in columns, too: leave it out of one of them")
            if SAMPLE_WEIGHT in columns.values() and options.get("weights") is not None:
                raise ValueError(
                    f"inputs has {SAMPLE_WEIGHT!r}, which with weights= says what each drawn row counts: store the "
                    f"column by another name to have it as an input"
                )
            options = {**options, "columns": (*chosen, *dict.fromkeys(columns.values()))}
        loader = self.loader(batch_size, **options)
        return loader, Inputs(columns, {name: self._beside(name, view, loader) for name, view in views.items()})

    def _beside(self, name: str, other: Any, loader: Loader) -> Loader:
        """A loader of another view's matrix, for the rows that `loader` gives."""
        if not isinstance(other, View):
            raise ValueError(
                f"inputs[{name!r}] is a {type(other).__name__}, expected the name of a column, a store or a view"
            )
        if len(other) != len(self):
            raise ValueError(
                f"inputs[{name!r}], {other.path}, has {len(other)} rows, expected {len(self)}, as {self.path} has"
            )
        here, there, step = self.column(ROW_ID), other.column(ROW_ID), 1 << 18
        for start in range(0, len(self), step):
            differ = here[start : start + step] != there[start : start + step]
            if differ.any():
                row = start + int(np.argmax(differ))
                raise ValueError(
                    f"inputs[{name!r}] has other rows: row {row} is row {there[row]} of what {other.path} was made "
                    f"from, and {here[row]} of {self.path}: convert both in the same order, or shuffled with the same "
                    "seed, and split and select both alike"
                )
        return Loader(
            other._reader,
            other._selection,
            plan=loader.plan,
            features=other._features,
            dtype=loader.dtype,
            layout=loader.layout,
            partition=loader.partition,
            n_partitions=loader.n_partitions,
            weights=loader.weights,
        )

    def to_torch(
        self,
        batch_size: int = 32,
        *,
        inputs: Mapping[str, str | View] | Sequence[str] | str = (),
        format: str = "csr",
        **options: Any,
    ) -> Any:
        """Give batches as a `torch.utils.data.IterableDataset` of (x, y) or (x, y, sample_weight).

        Parameters
        ----------
        batch_size : int
        inputs : sequence of str, or mapping of str to str or View
            As in `to_tf`: x is then a dict.
        format : {"csr", "coo"}
            Of x with ``layout="sparse"``.
        **options
            As in `loader`; with ``layout="sparse"`` x is a sparse CSR or COO tensor, with "dense" a dense one. Where
            `torch.distributed` is initialised, each process gets its partition, unless `partition` or `n_partitions` is
            given.

        Returns
        -------
        torch.utils.data.IterableDataset
            For ``DataLoader(ds, batch_size=None, num_workers=k)``: each iteration over it is the next epoch, and all
            workers together read each row once.

        Raises
        ------
        ImportError
            Where PyTorch is not installed; it names the extra.
        ValueError
            As `loader`; also a column of texts, or ``shuffle=True`` without a seed where several processes train.

        Notes
        -----
        What is returned has ``len``, the number of batches of this process, `set_epoch`, `state_dict` and
        `load_state_dict`.
        """
        from sparsestore.bridges import torch

        loader, found = self._joined(batch_size, inputs, torch.share_of_process(options))
        return torch.dataset(loader, inputs=found, format=format)

    def to_jax(
        self,
        batch_size: int = 32,
        *,
        inputs: Mapping[str, str | View] | Sequence[str] | str = (),
        nse: int | None = None,
        **options: Any,
    ) -> Any:
        """Give batches as arrays of JAX: an iterable of (x, y) or (x, y, sample_weight).

        Parameters
        ----------
        batch_size : int
        inputs : sequence of str, or mapping of str to str or View
            As in `to_tf`: x is then a dict.
        nse : int, optional
            Places for entries of each sparse batch; found from the first rows and raised where need be, by default.
        **options
            As in `loader`; with ``layout="sparse"`` x is a `jax.experimental.sparse.BCOO` that is padded, so that a
            compiled step is compiled a few times only, with "dense" an array.

        Returns
        -------
        iterable
            With ``len``; each iteration over it is the next epoch.

        Raises
        ------
        ImportError
            Where JAX is not installed; it names the extra.
        ValueError
            As `loader`; also a column of texts, or numbers of 64 bits where JAX has none.

        Notes
        -----
        What is returned has `state_dict` and `load_state_dict`. Where several processes train, give each its share:
        ``partition=jax.process_index(), n_partitions=jax.process_count()``, and all the same `seed` and `nse`.
        """
        from sparsestore.bridges import jax

        loader, found = self._joined(batch_size, inputs, options)
        return jax.dataset(loader, inputs=found, nse=nse)

    def to_keras(
        self,
        batch_size: int = 32,
        *,
        inputs: Mapping[str, str | View] | Sequence[str] | str = (),
        **options: Any,
    ) -> Any:
        """Give batches as a `keras.utils.PyDataset` for ``model.fit(ds, shuffle=False)``, on any back end of Keras.

        Parameters
        ----------
        batch_size : int
        inputs : sequence of str, or mapping of str to str or View
            As in `to_tf`: x is then a dict.
        **options
            As in `loader`; with ``layout="sparse"`` x is a `tf.SparseTensor` on TensorFlow and a padded
            `jax.experimental.sparse.BCOO` on JAX; PyTorch needs ``layout="dense"``.

        Returns
        -------
        keras.utils.PyDataset
            ``ds[i]`` is batch i of the present epoch; `fit` goes on to the next one.

        Raises
        ------
        ImportError
            Where Keras is not installed; it names the extra.
        ValueError
            As `loader`; also ``layout="sparse"`` on PyTorch, or a column of texts.

        Notes
        -----
        On TensorFlow `to_tf` is faster. Unless it is told ``shuffle=False``, `fit` shuffles the order of batches, and
        each is then found by itself, which is slow. What is returned has `state_dict` and `load_state_dict`.
        """
        from sparsestore.bridges import keras

        loader, found = self._joined(batch_size, inputs, options)
        return keras.dataset(loader, inputs=found)


def _whole(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """A whole number that was given, as Python's."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}, expected an integer {limit}")
    return int(value)


def _label(columns: tuple[str, ...]) -> str | None:
    """The column by whose order a shuffle is judged: the first that is a target."""
    return next((name for name in columns if name not in ("sample_weight", ROW_ID)), None)


def _judge(found: quality.ShuffleQuality, plan: Plan, allow_poor_shuffle: bool) -> None:
    """Warn of a shuffle that costs accuracy, refuse one that ruins it."""
    if found.verdict not in ("poor", "refused"):
        return
    message = (
        f"block_rows={plan.block_rows} with rows stored in their present order is a poor shuffle: drift S = "
        f"{found.drift:.1f}, a batch of {plan.batch_size} is worth {found.effective_batch_size:.0f} rows. Leave "
        f"block_rows at 'auto', or convert once with shuffle=True (--shuffle)"
    )
    if found.verdict == "refused" and not allow_poor_shuffle:
        raise ValueError(f"{message}; or pass allow_poor_shuffle=True")
    warnings.warn(message, UserWarning, stacklevel=3)
