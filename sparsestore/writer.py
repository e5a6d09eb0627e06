"""Appends row blocks to new segments in bounded memory, then publishes them all at once as a new version."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore import csr
from sparsestore.checksum import crc32c
from sparsestore.columns import WIDE, array_of, exactly, first_lacking, lacked, schema_of
from sparsestore.csr import Rows
from sparsestore.documents import Problems, dump, exactly_json, seal
from sparsestore.errors import CorruptStoreError, SparsestoreError, StoreExistsError
from sparsestore.features import as_names, read_names, write_names
from sparsestore.format import (
    DRAWN,
    INLINE_SEGMENTS,
    ROOT,
    ROW_ID,
    ColumnSchema,
    FeaturesEntry,
    Manifest,
    ObjectEntry,
    PageEntry,
    SegmentLine,
    is_own_key,
    manifest_key,
    root_document,
)
from sparsestore.journal import Journal, JournalState, Told, all_journals
from sparsestore.layout import PROFILES, SHARD, ValueRange, indices_dtype, parse_bytes
from sparsestore.manifest import (
    is_foreign,
    latest_version,
    missing_objects,
    read_manifest,
    root_entry,
    segment_document,
    segment_lines,
    versions,
)
from sparsestore.memory import give_back
from sparsestore.segment_writer import Columns, SegmentWriter
from sparsestore.storage import REMOVED, LocalStorage, open_storage

__all__ = [
    "PART_BYTES",
    "Replaced",
    "Share",
    "Writer",
    "append_to",
    "check_place",
    "create",
    "is_begun",
    "remove_skeleton",
    "rewrite",
]

log = logging.getLogger("sparsestore")

Array = NDArray[Any]

HOLD_BYTES = 64 << 20
"""Bytes that a writer looks at before it fixes the dtypes of a segment."""
PART_BYTES = 2 << 30
"""About the size of a segment before compression, after which the next one begins: an interrupted conversion loses no
more than one, some ten seconds of work, and blocks of rows, which cross no segment, are not cut often."""
GIVE_BACK_BYTES = 128 << 20
"""Bytes of rows after which the C library is told to give freed memory back: it kept up to 1.3 bytes of every row."""
_TURN_S = 10.0  # what a writer waits for others to publish before it tries, and lets link(2) decide
_PUBLISH_ATTEMPTS = 10_000


def create(
    path: str | os.PathLike[str],
    *,
    n_features: int | None = None,
    columns: Mapping[str, Any] | None = None,
    dtype: DTypeLike | None = None,
    profile: str = "raw",
    overwrite: bool = False,
    attrs: Mapping[str, Any] | None = None,
    shuffled: Mapping[str, Any] | None = None,
    max_bytes: int | str = 2 * HOLD_BYTES,
    job: Callable[[], Mapping[str, Any] | None] | None = None,
    journal: Journal | None = None,
    feature_names: Iterable[str] | None = None,
) -> Writer:
    """Start a new store, or with `overwrite` a version of it that has only what is written now.

    Parameters
    ----------
    path : str or path-like
        Folder of the store, or a ``file://`` URL.
    n_features : int, optional
        Width of the matrix; otherwise the widest block decides.
    columns : mapping of str to dtype, optional
        What stands beside each row, e.g. ``{"y": "int64"}``, or ``{"y": ("float32", 3)}`` for three values a row;
        "string" for text. Left out, the first block decides.
    dtype : numpy dtype, optional
        Logical dtype of the values; otherwise numpy's common dtype of all blocks. Floats are rounded to it, and whole
        numbers where it is one of floats that was asked for; any other value that it can not hold is an error.
    profile : {"raw", "compact"}
        "raw" can be memory-mapped, "compact" is compressed.
    overwrite : bool
        Allow `path` to be a store already; its older versions stay until `gc`.
    attrs : mapping, optional
        Free JSON, kept in the manifest; numpy's scalars become Python's, tuples lists.
    shuffled : mapping, optional
        How the caller put the rows in a random order, e.g. ``{"method": "exact", "seed": 0}``.
    max_bytes : int or str
        Bound on what the writer holds beside the block being appended.
    job : callable giving a mapping or None, optional
        What is being written, as JSON: whoever comes with the same may go on where this writer was interrupted. None:
        nobody can.
    journal : Journal, optional
        Of a writer that was interrupted: its parts are taken over.
    feature_names : sequence of str, optional
        A name for each feature, no two alike.

    Returns
    -------
    Writer
        A context manager: published on exit, nothing is left behind if the block raises, unless it has a `job` and was
        interrupted, or the disk or memory failed, after a whole part: see `Writer.abort`.

    Raises
    ------
    FileExistsError
        Where `path` is a store and `overwrite` is false, or is something else.
    ValueError
        On a bad argument.

    Examples
    --------
    >>> import numpy as np, scipy.sparse, tempfile, sparsestore as ss
    >>> path = tempfile.mkdtemp() + "/tiny.zarr"
    >>> with ss.create(path, n_features=4, columns={"y": "int64"}) as writer:
    ...     writer.append(scipy.sparse.csr_array(np.eye(3, 4)), y=np.array([0, 1, 0]))
    >>> ss.open(path).shape
    (3, 4)
    """
    storage = open_storage(path)
    check_place(storage, overwrite=overwrite)
    base = read_manifest(storage) if versions(storage) else None
    return Writer(
        storage,
        "overwrite" if overwrite else "create",
        base,
        n_features=n_features,
        columns=columns,
        dtype=dtype,
        profile=profile,
        attrs=attrs,
        shuffled=shuffled,
        max_bytes=max_bytes,
        job=job,
        journal=journal,
        feature_names=feature_names,
    )


def check_place(storage: LocalStorage, *, overwrite: bool) -> None:
    """See that a store may be made there: nothing else is there but what an unfinished writer left.

    Raises
    ------
    StoreExistsError
        As `create`.
    """
    if versions(storage):
        if overwrite:
            return
        raise StoreExistsError(
            f"{storage.name}: a store is there already: append to it, or pass overwrite=True (--overwrite)"
        )
    no_folder = storage.exists("") and not storage.root.is_dir()
    strange = _strangers(storage)
    if no_folder or strange or is_foreign(storage):
        found = f" (found {strange[0]!r})" if strange else ""
        raise StoreExistsError(f"{storage.name} exists and is no sparsestore{found}: choose another path or remove it")


def append_to(
    path: str | os.PathLike[str],
    *,
    grow_features: bool = False,
    profile: str | None = None,
    attrs: Mapping[str, Any] | None = None,
    shuffled: Mapping[str, Any] | None = None,
    max_bytes: int | str = 2 * HOLD_BYTES,
    job: Callable[[], Mapping[str, Any] | None] | None = None,
    journal: Journal | None = None,
    feature_names: Iterable[str] | None = None,
    agree: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> Writer:
    """Start a new version of an existing store with more rows at its end.

    Parameters
    ----------
    path : str or path-like
    grow_features : bool
        Allow blocks wider than the store.
    profile : {"raw", "compact"}, optional
        Of the new segments; the store's own by default.
    attrs, shuffled, max_bytes, job, journal
        As in `create`; `attrs` are added to those of the store.
    feature_names : sequence of str, optional
        Those of the store, in its order, and of the features that it gets; or, where it has none, for all features.
    agree : callable, optional
        Takes the attrs of the version that these rows come behind, which may be another writer's, and gives more attrs;
        raises ValueError where these rows are not to be in one store with them.

    Returns
    -------
    Writer

    Raises
    ------
    FileNotFoundError
        Where there is no store.
    """
    storage = open_storage(path)
    base = read_manifest(storage)
    return Writer(
        storage,
        "append",
        base,
        n_features=None if grow_features else base.n_features,
        columns={name: (schema.dtype, *schema.shape) for name, schema in base.columns.items()},
        dtype=None,
        profile=profile or base.profile,
        attrs=attrs,
        shuffled=shuffled,
        max_bytes=max_bytes,
        job=job,
        journal=journal,
        feature_names=feature_names,
        agree=agree,
    )


@dataclass(frozen=True, slots=True)
class Replaced:
    """Consecutive segments of a version that new ones with the same rows take the place of.

    Attributes
    ----------
    first, stop : int
        Their numbers.
    rows : int
        Of all of them.
    row_id_start : int
        Number of their first row, where rows do not bring their own.
    shuffled : bool
        What is said of the new segments.
    values : ValueRange or None
        Holds all their values, so that one segment can take them; None: what is written tells.
    """

    first: int
    stop: int
    rows: int
    row_id_start: int
    shuffled: bool
    values: ValueRange | None


def rewrite(
    storage: LocalStorage,
    base: Manifest,
    before: Sequence[SegmentLine],
    replaced: Sequence[Replaced],
    *,
    profile: str,
    shuffled: Mapping[str, Any] | None = None,
    max_bytes: int | str = 2 * HOLD_BYTES,
    job: Callable[[], Mapping[str, Any] | None] | None = None,
    journal: Journal | None = None,
) -> Writer:
    """Start a version with the same rows, some of them in new segments.

    What is appended to the store meanwhile stays behind them. Where its rows were replaced meanwhile, publishing is a
    FileExistsError, and nothing is changed.

    Parameters
    ----------
    storage : LocalStorage
    base : Manifest
        The newest version, or one that was not long ago.
    before : sequence of SegmentLine
        Its segments, or the first of them.
    replaced : sequence of Replaced
        Which of these are replaced, in order. Blocks of rows come in this order, and none has rows of two.
    profile : {"raw", "compact"}
        Of the new segments, and of those to come.
    shuffled : mapping, optional
        As in `create`, where all of `before` is replaced by its rows in a random order.
    max_bytes, job, journal
        As in `create`.
    """
    return Writer(
        storage,
        "rewrite",
        base,
        n_features=base.n_features,
        columns={name: (schema.dtype, *schema.shape) for name, schema in base.columns.items()},
        dtype=None,
        profile=profile,
        attrs=None,
        shuffled=shuffled,
        max_bytes=max_bytes,
        job=job,
        journal=journal,
        feature_names=None,
        before=before,
        replaced=replaced,
    )


@dataclass(frozen=True, slots=True)
class Share:
    """What a process needs to write segments with some of the rows of a version that another process publishes.

    Attributes
    ----------
    root : Path
        Of the store.
    number : int
        Which of the parts of all rows it is.
    n_features, columns, dtype, profile, shuffled
        As the other process's writer has them.
    journal : str
        Key of that writer's journal.
    lasting : bool
        Whether somebody may go on where this is interrupted.
    begun : tuple of dict
        Parts of the journal: what was done of it before.
    """

    root: Path
    number: int
    n_features: int | None
    columns: dict[str, Any]
    dtype: np.dtype[Any] | None
    profile: str
    shuffled: dict[str, Any] | None
    journal: str
    lasting: bool
    begun: tuple[dict[str, Any], ...]

    @property
    def rows(self) -> int:
        """Rows that were done before."""
        return int(self.begun[-1]["rows"]) if self.begun else 0

    @property
    def whole(self) -> bool:
        """Whether it was all done before."""
        return bool(self.begun) and bool(self.begun[-1].get("whole"))

    @property
    def state(self) -> dict[str, Any]:
        """Of what was done before, all of it together."""
        return {**self.begun[-1], "lines": [line for part in self.begun for line in part["lines"]]}

    def writer(self, tell: Callable[[str, Any], None], *, max_bytes: int) -> Writer:
        """The writer of these rows, which tells the other process what it makes, and is ended with `finish`."""
        writer = Writer(
            LocalStorage(self.root),
            "create",
            None,
            n_features=self.n_features,
            columns=self.columns,
            dtype=self.dtype,
            profile=self.profile,
            attrs=None,
            shuffled=self.shuffled,
            max_bytes=max_bytes,
            job=dict if self.lasting else None,
            journal=Told(self.journal, tell, self.begun),
            feature_names=None,
        )
        writer._begin()  # what was done before is counted from now on
        return writer


class Writer:
    """Row blocks in, one new version out. Make one with `create`, `append_to` or `rewrite`; not for several threads.

    Nothing of it is on the disk before its `with` block, or its first rows. Memory beside the block being appended is
    at most `max_bytes`: half of it to look at values before the dtypes of a segment are chosen, the rest for the open
    chunk of each array.

    Attributes
    ----------
    n_rows, nnz : int
        Rows and entries appended so far.
    attrs : dict
        Free JSON for the manifest; may be changed until the writer is published.
    feature_names : sequence of str or None
        The same holds for these.
    """

    def __init__(
        self,
        storage: LocalStorage,
        mode: Literal["create", "append", "overwrite", "rewrite"],
        base: Manifest | None,
        *,
        n_features: int | None,
        columns: Mapping[str, Any] | None,
        dtype: DTypeLike | None,
        profile: str,
        attrs: Mapping[str, Any] | None,
        shuffled: Mapping[str, Any] | None,
        max_bytes: int | str,
        job: Callable[[], Mapping[str, Any] | None] | None,
        journal: Journal | None,
        feature_names: Iterable[str] | None,
        before: Sequence[SegmentLine] = (),
        replaced: Sequence[Replaced] = (),
        agree: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile is {profile!r}, expected one of {', '.join(PROFILES)}")
        whole = isinstance(n_features, (int, np.integer)) and not isinstance(n_features, bool)
        if n_features is not None and not (whole and 0 <= n_features < 2**63):
            raise ValueError(f"n_features is {n_features!r}, expected an integer from 0 to {2**63 - 1}")
        self._storage = storage
        self._mode = mode
        self._base = base
        self._before = before
        self._replaced = replaced
        self._agree = agree
        self._ends = np.cumsum([each.rows for each in replaced], dtype=np.int64)
        self._n_features = None if n_features is None else int(n_features)
        self._schema = None if columns is None else schema_of(columns)
        self._dtype = None if dtype is None else csr.number_dtype(dtype)
        self._lacking: int | None = None  # a whole number that float64 lacks
        self._seen_dtype = np.dtype(base.dtype) if base is not None and mode == "append" and base.rows else None
        self._profile = profile
        self._shuffled = None if shuffled is None else exactly_json(shuffled, "shuffled")
        self.attrs: dict[str, Any] = exactly_json(attrs or {}, "attrs")
        self.feature_names: Iterable[str] | None = None if feature_names is None else as_names(feature_names)
        self._named: tuple[Array, FeaturesEntry] | None = None  # names that were written
        self._hold_bytes = min(parse_bytes(max_bytes) // 2, SHARD * 8)
        self._held: list[tuple[Rows, Columns]] = []
        self._held_bytes = 0
        self._kept_bytes = 0  # since memory was given back
        self._range = ValueRange("bool")
        self._widest = 0
        self._segment: SegmentWriter | None = None
        self._lines: list[SegmentLine] = []  # of whole segments; row ids counted from this writer's first row
        self._has_row_ids: bool | None = None
        self._highest_row_id = -1
        self._closed = False
        self._torn = False
        self._announced: tuple[str, bytes] | None = None  # a manifest that may be there, or may come
        self._job = job
        self._unfinished = journal
        self._begun: Journal | None = None
        self.n_rows = 0
        self.nnz = 0

    @property
    def _journal(self) -> Journal:
        return self._begun or self._begin()

    def _begin(self) -> Journal:
        """Start the journal, or take up that of an unfinished conversion: before, nothing of this is on the disk.

        Not when it is made: an interrupt that comes between that and the `with` block would leave what nobody removes.
        """
        if self._begun is not None:
            return self._begun
        storage, begun = self._storage, self._unfinished
        folders = (storage.root, *storage.root.absolute().parents)
        n_missing = next((n for n, folder in enumerate(folders) if folder.exists()), 0)
        try:
            if begun is None:
                begun = Journal.start(storage, self._base.version if self._base else 0)
            if n_missing:
                begun.note("folders", n_missing)
            if self._unfinished is not None:
                begun.tidy()  # a name that a killed writer left taken, and bucket files as large as the data
            for part in begun.state.parts:
                lines = self._checked(part, begun.key)
                if isinstance(begun, Told) or "number" not in part:  # else it is another writer's
                    self._take_over(part, lines)
            self._begun = begun
            return begun
        except BaseException:
            if self._unfinished is not None:
                self._unfinished.release()
            elif begun is not None:
                with contextlib.suppress(OSError):
                    begun.end()
            self._remove_skeleton(n_missing)
            self._closed = self._unfinished is not None  # it may be another's now
            raise

    @property
    def scratch(self) -> Path:
        """Folder for what is needed while this writer lives; not made yet."""
        return self._storage.path(self._journal.scratch)

    @property
    def _width(self) -> int:
        """Features that segments closed now have."""
        return self._n_features if self._n_features is not None else self._widest

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Writer of {self._storage.name!r}: {self.n_rows} rows, {self.nnz} entries, {state}>"

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort(keep=_says_nothing_of_the_rows(error))
        elif not self._closed:
            try:
                self.publish()
            except BaseException as failure:
                self.abort(keep=_says_nothing_of_the_rows(failure))
                raise

    # ------------------------------------------------------------------------------------------------ append

    def append(self, x: Any, **columns: Any) -> None:
        """Write more rows.

        Parameters
        ----------
        x : scipy sparse matrix or array, (n, n_features) dense array, or Rows
            Duplicates are summed and columns sorted; `x` itself is left as it was.
        **columns : (n,) or (n, k) arrays
            One for each column of the store. "row_id", whole numbers from 0, has the numbers of the rows among all that
            this writer brings, where they come in another order.

        Raises
        ------
        ValueError
            Where shapes or dtypes do not match the store's, a value does not fit the dtype that was asked for, or a sum
            of duplicates that of x, or a column is missing or unknown.
        """
        if isinstance(x, Rows):
            rows = x
        elif hasattr(x, "tocsr"):
            rows = csr.from_scipy(x, self._dtype, self.n_rows)
        else:
            rows = csr.from_dense(np.asarray(x))
        if self._n_features is not None and rows.n_features != self._n_features:
            raise self._wrong_width(rows.n_features, self._n_features)
        csr.check(rows, canonical=True)
        self.write(rows, {name: array_of(name, values) for name, values in columns.items()})

    def _wrong_width(self, found: int, expected: int) -> ValueError:
        hint = "; pass grow_features=True to widen the store" if self._mode == "append" and found > expected else ""
        return ValueError(f"x has {found} features, expected the store's {expected}{hint}")

    def write(self, rows: Rows, columns: Mapping[str, Array], *, name: str = "x") -> None:
        """As `append`, for rows that are canonical already and, while the width is not fixed, may be narrower.

        Parameters
        ----------
        rows, columns
        name : str
            What messages call the rows: the file that they are from.

        Raises
        ------
        ValueError
            As in `append`.
        """
        if self._closed:
            raise ValueError("the writer is closed: start another with create or append_to")
        self._begin()
        if self._n_features is not None and rows.n_features > self._n_features:
            raise ValueError(
                f"{name}: has {rows.n_features} features, expected at most {self._n_features} as the store has: pass "
                "grow_features=True (--grow-features) to widen it"
            )
        checked = self._check_columns(len(rows), columns)
        if not len(rows):
            self._widest = max(self._widest, rows.n_features)
            return
        if self._dtype is not None and not np.can_cast(rows.data.dtype, self._dtype, "safe"):
            rows = csr.converted(rows, self._dtype, self.n_rows)
        block = ValueRange.of(rows.data)
        seen = rows.data.dtype if self._seen_dtype is None else np.result_type(self._seen_dtype, rows.data.dtype)
        lacking = self._lacking
        if lacking is None and block.whole and block.count and max(-block.low, block.high) > 2**53:
            lacking = first_lacking(rows.data)
        if self._dtype is None and seen != self._seen_dtype:
            self._check_common(self._base, seen, lacking)
        elif self._dtype is None and lacking is not self._lacking:
            self._check_common(None, seen, lacking)
        self._seen_dtype, self._lacking = seen, lacking
        width = max(self._widest, rows.n_features)
        if self._segment is not None and not self._segment.fits(block, width):
            self._close_segment()
        self._widest = width
        if self._has_row_ids:
            self._highest_row_id = max(self._highest_row_id, int(checked[ROW_ID].max()))
        self._range = self._range.union(block)
        n_rows, nnz = self.n_rows + len(rows), self.nnz + rows.nnz
        ends = bool(np.isin(n_rows, self._ends))  # where rows of other segments come next
        begun = self._segment
        if self._segment is None:
            self._held_bytes += rows.nbytes + sum(values.nbytes for values in checked.values())
            if self._held_bytes < self._hold_bytes and not ends:
                self._held.append((_copied(rows), {name: values.copy() for name, values in checked.items()}))
                self.n_rows, self.nnz = n_rows, nnz
                return
            self._open_segment()
        self._write((rows, checked))
        self.n_rows, self.nnz = n_rows, nnz
        if ends or (begun is not None and begun.nbytes >= PART_BYTES):
            self._finish_part()
        self._kept_bytes += rows.nbytes
        if self._kept_bytes >= GIVE_BACK_BYTES:
            self._kept_bytes = 0
            give_back()

    def _check_common(self, base: Manifest | None, common: np.dtype[Any], lacking: int | None) -> None:
        """See that the common dtype of values, which nobody asked for, makes no whole number another one."""
        if common.kind != "f":
            return
        if lacking is not None:
            raise ValueError(lacked(lacking, common))
        if self._mode != "append" or base is None or base.dtype not in WIDE:
            return
        for line in segment_lines(self._storage, base):  # where no value is large, it says a smaller dtype
            if line.nnz and segment_document(self._storage, line).data_dtype in WIDE:
                raise ValueError(
                    f"{self._storage.name}: its values are {base.dtype}, beyond 32 bits, of which {common}, the common "
                    f"dtype with those that are appended, may lack some: convert it with dtype='float64' (--dtype) "
                    "before if they may be rounded, or make a store of its own"
                )

    def _write(self, *blocks: tuple[Rows, Columns]) -> None:
        """To the open segment, all of them. Where that fails half-way it must never be published.

        Its arrays differ in length then, or rows that were taken in before are missing.
        """
        if self._segment is None:
            raise SparsestoreError("there is no open segment")
        self._torn = True
        for rows, columns in blocks:
            self._segment.write(rows, columns)
        self._torn = False

    def _check_columns(self, n: int, columns: Mapping[str, Array]) -> Columns:
        arrays = {name: np.asanyarray(values) for name, values in columns.items()}
        row_ids = arrays.pop(ROW_ID, None)
        if self._has_row_ids not in (None, row_ids is not None):
            raise ValueError(f"column {ROW_ID!r} must come with every block of a writer, or with none")
        all_schemas = self._schema
        if all_schemas is None:
            all_schemas = schema_of({name: (values.dtype, *values.shape[1:]) for name, values in arrays.items()})
        unknown, missing = sorted(set(arrays) - set(all_schemas)), sorted(set(all_schemas) - set(arrays))
        if unknown or missing:
            raise ValueError(
                f"columns are {sorted(arrays)}, expected {sorted(all_schemas)}: "
                + "; ".join([f"{name!r} is unknown" for name in unknown] + [f"{name!r} is missing" for name in missing])
            )
        checked: Columns = {}
        for name, schema in all_schemas.items():
            values = arrays[name]
            if values.shape != (n, *schema.shape):
                raise ValueError(f"column {name!r} has shape {values.shape}, expected {(n, *schema.shape)}")
            if isinstance(values, np.ma.MaskedArray):
                mask = np.ma.getmaskarray(values)
                if schema.shape:
                    raise ValueError(f"column {name!r} is masked and has {schema.shape[0]} values a row, expected one")
                checked[f"{name}.mask"] = mask
                values = values.filled("" if schema.dtype == "string" else 0)
            checked[name] = exactly(name, np.asarray(values), schema)
        if row_ids is not None:
            checked[ROW_ID] = self._row_numbers(n, row_ids)
        self._schema, self._has_row_ids = all_schemas, row_ids is not None  # one that is refused decides nothing
        return checked

    def _row_numbers(self, n: int, given: Array) -> Array:
        """Numbers of rows as they are stored: they count from the first row that this writer brings."""
        if given.shape != (n,):
            raise ValueError(f"column {ROW_ID!r} has shape {given.shape}, expected {(n,)}")
        if np.ma.is_masked(given):
            raise ValueError(f"column {ROW_ID!r} has masked values, expected a number for each row")
        values = exactly(ROW_ID, np.asarray(given), ColumnSchema("int64"))
        if n and int(values.min()) < 0:
            raise ValueError(
                f"column {ROW_ID!r} has the number {values.min()}, expected numbers from 0: leave it out, and rows get "
                "the numbers that follow"
            )
        self._check_highest(int(values.max(initial=-1)))
        return values

    def _check_highest(self, row_id: int) -> None:
        """With the rows that are there before, the highest number must be one of 64 bits."""
        before = self._base.rows if self._base is not None and self._mode == "append" else 0
        if before + row_id >= 2**63:
            raise ValueError(
                f"column {ROW_ID!r} has the number {row_id}, expected at most {2**63 - 1 - before}: {before} rows are "
                "before these"
            )

    def _open_segment(self) -> None:
        """Fix the dtypes by all that was seen so far, or is known to come, and write what is held."""
        values = self._range
        if len(self._replaced):
            start = sum(line.rows for line in self._lines)
            values = self._replaced[int(np.searchsorted(self._ends, start, side="right"))].values or values
        stored = values.stored_dtype()
        constant = np.dtype(stored).type(values.low).item() if values.constant else None
        id = uuid.uuid4().hex
        self._journal.note("segment", f"segments/{id}")
        self._torn = True  # until what was taken in before is written
        self._segment = SegmentWriter(
            self._storage,
            self._profile,
            indices_dtype(self._width),
            stored,
            constant,
            dict(self._schema or {}),
            id=id,
            shuffled=self._shuffled is not None,
        )
        held, self._held, self._held_bytes = self._held, [], 0
        self._write(*held)

    def _close_segment(self) -> None:
        if self._segment is None:
            return
        start = 0 if self._segment.has_row_ids else sum(line.rows for line in self._lines)
        self._torn = True  # what was half written must not be finished a second time
        self._lines.append(self._segment.finish(self._width, start))
        self._segment = None
        self._torn = False

    def _finish_part(self) -> None:
        """Close the segment; where somebody could go on from here, make it durable and say so."""
        self._close_segment()
        if not self._tells_job():
            return
        self._storage.sync()
        self._journal.note("part", self._state(len(self._parted)), durable=True)

    def _tells_job(self) -> bool:
        """Write down, once, what is being written; False where nobody could go on with it."""
        if self._job is None:
            return False
        if self._journal.state.job is None and (job := self._job()) is not None:
            self._journal.note("job", dict(job))
        return self._journal.state.job is not None

    def _state(self, first: int) -> dict[str, Any]:
        """Of what is in whole segments, of which lines are told from the first on that nobody was told of."""
        return {
            "lines": [line.to_json() for line in self._lines[first:]],
            "rows": self.n_rows,
            "nnz": self.nnz,
            "width": self._width,
            "range": self._range.to_json(),
            "dtype": None if self._seen_dtype is None else self._seen_dtype.name,
            "lacking": self._lacking,
            "row_ids": self._has_row_ids,
            "highest_row_id": self._highest_row_id,
            "columns": self._columns(),
        }

    def _columns(self) -> dict[str, Any]:
        """The schema as JSON."""
        return {name: schema.to_json() for name, schema in (self._schema or {}).items()}

    @property
    def _parted(self) -> list[str]:
        """Ids of the segments that parts of the journal name."""
        return [line[0] for part in self._journal.state.parts for line in part["lines"]]

    def _checked(self, part: Mapping[str, Any], journal: str) -> list[SegmentLine]:
        """Segments of a part that another writer made.

        Raises
        ------
        SparsestoreError
            Where it is not there as it was, or the store is not as it was: its rows were replaced by others.
        """
        problems = Problems(f"{self._storage.name}: {journal}")
        lines = [SegmentLine.from_json(line, "lines", problems) for line in part["lines"]]
        problems.raise_if_any()
        lost = "what was done of this conversion can not be used: give resume=False (--no-resume) to start again"
        for line in lines:
            for problem in missing_objects(self._storage, line):
                raise CorruptStoreError(f"{problem}: {lost}")
        changed = f"{self._storage.name}: the store changed since this was begun"
        if self._schema is not None and part["columns"] != self._columns():
            raise StoreExistsError(f"{changed}: columns are {self._columns()}, expected {part['columns']}: {lost}")
        if self._n_features is not None and part["width"] > self._n_features:
            raise StoreExistsError(
                f"{changed}: it has {self._n_features} features, expected at least {part['width']}: {lost}"
            )
        return lines

    def _take_over(self, part: Mapping[str, Any], lines: list[SegmentLine]) -> None:
        """Go on behind a part that another writer made."""
        self._lines += lines
        self.n_rows, self.nnz, self._widest = part["rows"], part["nnz"], part["width"]
        self._range, self._has_row_ids = ValueRange.from_json(part["range"]), part["row_ids"]
        self._highest_row_id = part["highest_row_id"]
        self._lacking = part.get("lacking")
        self._seen_dtype = None if part["dtype"] is None else np.dtype(part["dtype"])
        if self._schema is None:
            self._schema = {
                name: ColumnSchema(schema["dtype"], tuple(schema["shape"])) for name, schema in part["columns"].items()
            }

    # ------------------------------------------------------------------------------------- several processes

    @property
    def journal_descriptor(self) -> int:
        """What processes that write a share inherit, so that nobody takes them for dead; see `Journal.descriptor`."""
        return self._journal.descriptor

    def share(self, number: int) -> Share:
        """What another process needs to write part `number` of the rows."""
        job = None if self._job is None else self._job()
        return Share(
            self._storage.root,
            number,
            self._n_features,
            {name: (schema.dtype, *schema.shape) for name, schema in (self._schema or {}).items()},
            self._dtype,
            self._profile,
            self._shuffled,
            self._journal.key,
            job is not None,
            tuple(part for part in self._journal.state.parts if part.get("number") == number),
        )

    def note(self, number: int, kind: str, value: Any) -> None:
        """Write down what the writer of a share tells."""
        if kind != "part":
            self._journal.note(kind, value)
            return
        self._tells_job()
        self._journal.note("part", {"number": number, **value}, durable=True)

    def finish(self) -> dict[str, Any]:
        """End the writer of a share: all is made durable, and what `take` takes is given."""
        self._close_all()
        self._storage.sync()
        if self._job is not None:
            self._journal.note("part", {**self._state(len(self._parted)), "whole": True}, durable=True)
        self._closed = True
        return self._state(0)

    def take(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Take in what the writers of all shares have written, in order, as if it had been written here."""
        for state in states:
            problems = Problems(f"{self._storage.name}: a worker")
            lines = [SegmentLine.from_json(line, "lines", problems) for line in state["lines"]]
            problems.raise_if_any()
            before = 0 if state["row_ids"] else self.n_rows
            self._lines += [replace(line, row_id_start=before + line.row_id_start) for line in lines]
            self.n_rows, self.nnz = self.n_rows + state["rows"], self.nnz + state["nnz"]
            self._widest = max(self._widest, state["width"])
            self._highest_row_id = max(self._highest_row_id, state["highest_row_id"])
            if state["dtype"] is not None:
                known = self._seen_dtype
                self._seen_dtype = np.result_type(*([] if known is None else [known]), np.dtype(state["dtype"]))
            if state["row_ids"] is not None:
                self._has_row_ids = state["row_ids"]

    # ----------------------------------------------------------------------------------------------- publish

    def publish(self) -> int:
        """Make all that was appended the store's newest version, durably; gives its number.

        Raises
        ------
        FileExistsError
            Where another process made the same new store meanwhile.
        ValueError
            Where `attrs` are no JSON.
        SparsestoreError
            Where another process removed what was appended.
        """
        self.attrs = exactly_json(self.attrs, "attrs")  # they may have been changed
        self._close_all()
        if self._mode == "append":  # a second time would be once too often: whoever comes with the same is to know
            self._tells_job()
        with contextlib.suppress(FileExistsError):
            if not self._storage.exists(ROOT):
                self._storage.publish(ROOT, dump(root_document(uuid.uuid4().hex)), self._journal.temporary)
        self._storage.make_folder("versions")
        self._storage.sync()  # all that the manifest will name, and the folder that it will be in
        try:
            version = self._publish_manifest()
            self._closed = True
            self._make_name_durable(version)
            self._end()
            return version
        except BaseException:
            self._closed = self._closed or self._is_published()  # a second try would have its rows twice
            if self._closed:
                self._end(keep=self._is_known_again)
            raise

    def _make_name_durable(self, version: int) -> None:
        try:
            self._storage.sync("versions")
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self._storage.name}: version {version} is published, but not durable yet: {error.strerror}",
            ) from error

    @property
    def _is_known_again(self) -> bool:
        """Whether the same call will find in the journal that its version is there, as after a kill."""
        return self._mode == "append" and self._journal.state.job is not None

    def _close_all(self) -> None:
        """Write what is held, and close the segment."""
        if self._closed:
            raise ValueError("the writer is closed: it has been published or aborted")
        self._begin()
        if self._torn:
            raise ValueError("an earlier write failed half-way: nothing can be published, start again")
        if self._held:
            self._open_segment()
        self._close_segment()

    def _publish_manifest(self) -> int:
        for _ in range(_PUBLISH_ATTEMPTS):
            with self._storage.turn("versions", _TURN_S):
                manifest = self._next_manifest()
                self._check_there()
                payload = seal(manifest.to_document(), crc32c)
                key = manifest_key(manifest.version)
                self._announced = key, payload
                with contextlib.suppress(FileExistsError):
                    self._storage.publish(key, payload, self._journal.temporary)
                    return manifest.version
            time.sleep(random.uniform(0, 0.01))
        raise SparsestoreError(
            f"{self._storage.name}: other writers published first {_PUBLISH_ATTEMPTS} times: try again"
        )

    def _check_there(self) -> None:
        """See that nobody who took this writer for dead removed what it made."""
        for line in self._lines:
            for problem in missing_objects(self._storage, line):
                raise SparsestoreError(f"{problem}: {REMOVED}")

    def _rebase(self) -> None:
        """Take up the version that another writer published meanwhile: appends commute."""
        self._base = read_manifest(self._storage)
        if self._mode == "append" and self._base.columns != self._schema:
            raise ValueError(
                f"{self._storage.name}: its columns changed while rows were appended: "
                f"found {sorted(self._base.columns)}, expected {sorted(self._schema or {})}"
            )
        if self._mode == "append" and self._n_features is not None and self._n_features > self._base.n_features:
            raise self._wrong_width(self._n_features, self._base.n_features)

    def _next_manifest(self) -> Manifest:
        newest = latest_version(self._storage) or 0
        if self._mode == "create" and newest:
            raise StoreExistsError(f"{self._storage.name}: another process made a store here meanwhile: append to it")
        if self._base is not None and self._base.version != newest:
            self._rebase()
        if self._mode == "rewrite" and self._base is not None:
            return self._rewritten(self._base)
        self._check_highest(self._highest_row_id)
        base = self._base if self._mode == "append" else None
        agreed = {} if base is None or self._agree is None else self._agree(base.attrs)
        before = base.rows if base else 0
        lines = tuple(replace(line, row_id_start=line.row_id_start + before) for line in self._lines)
        width = max(base.n_features if base else 0, self._width)
        features = self._features(base, width)
        dtype = self._dtype or self._seen_dtype or np.dtype("float32")
        common = np.result_type(base.dtype, dtype) if base else dtype
        if base is not None and common != base.dtype:
            self._check_common(base, common, self._lacking if lines else None)
        pages, inline = self._paged((*(base.segments if base else ()), *lines))
        shuffled = self._shuffled
        if base is not None and base.rows:  # said of all rows or of none: each segment's line has its own word
            shuffled = base.shuffled if shuffled is not None or not lines else None
        return Manifest(
            version=newest + 1,
            parent=self._base.version if self._base else None,
            rows=before + sum(line.rows for line in lines),
            n_features=width,
            nnz=(base.nnz if base else 0) + sum(line.nnz for line in lines),
            dtype=common.name,
            columns=dict(self._schema or {}),
            root=self._base.root if self._base else root_entry(self._storage),
            segments=inline,
            pages=(*(base.pages if base else ()), *pages),
            features=features,
            shuffled=shuffled,
            profile=self._profile if base is None else base.profile,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            attrs={**(base.attrs if base else {}), **agreed, **self.attrs},
        )

    def _rewritten(self, base: Manifest) -> Manifest:
        """The newest version with other segments for the same rows."""
        there = segment_lines(self._storage, base)
        if [line.id for line in there[: len(self._before)]] != [line.id for line in self._before]:
            raise StoreExistsError(
                f"{self._storage.name}: version {base.version}, published meanwhile, has other segments in place of "
                "those that were rewritten: nothing was changed, run it again"
            )
        lines, new, at = list[SegmentLine](), iter(self._lines), 0
        for each in self._replaced:
            lines += there[at : each.first]
            rows = 0
            while rows < each.rows and (line := next(new, None)):
                start = 0 if self._has_row_ids else each.row_id_start + rows
                lines.append(replace(line, shuffled=each.shuffled, row_id_start=start))
                rows += line.rows
            if rows != each.rows:
                raise SparsestoreError(f"{rows} rows were written, expected the {each.rows} that are replaced")
            at = each.stop
        rest = there[len(self._before) :]
        shuffled = base.shuffled
        if self._shuffled is not None:
            shuffled = self._shuffled if all(line.shuffled for line in rest) else None
        pages, inline = self._paged((*lines, *there[at:]))
        return replace(
            base,
            version=base.version + 1,
            parent=base.version,
            segments=inline,
            pages=tuple(pages),
            shuffled=shuffled,
            profile=self._profile,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _paged(self, lines: tuple[SegmentLine, ...]) -> tuple[list[PageEntry], tuple[SegmentLine, ...]]:
        """Pages of the older lines, written now, and the newest ones."""
        pages = []
        while len(lines) > INLINE_SEGMENTS:
            pages.append(self._write_page(lines[:INLINE_SEGMENTS]))
            lines = lines[INLINE_SEGMENTS:]
        return pages, lines

    def _features(self, base: Manifest | None, n_features: int) -> FeaturesEntry | None:
        """Names for all features of the version: those that are there, where they do, or those given, written now."""
        known = base.features if base else None
        if self.feature_names is None:
            if known is not None and base is not None and n_features > base.n_features:
                raise ValueError(
                    f"{self._storage.name}: its features have names, and these rows have {n_features} features where "
                    f"it has {base.n_features}: give feature_names for all of them"
                )
            return known
        names = as_names(self.feature_names)
        if len(names) != n_features:
            raise ValueError(
                f"feature_names has {len(names)} names, expected one for each of the {n_features} features"
            )
        if known is not None and base is not None:
            there = read_names(self._storage, known, base.n_features)
            if (different := np.flatnonzero(there != names[: len(there)])).size:
                at = int(different[0])
                raise ValueError(
                    f"feature {at} is {names[at]!r}, in {self._storage.name} it is {there[at]!r}: "
                    "put the features in the order of the store, or, where texts become features, run it again"
                )
            if len(there) == n_features:
                return known
        if not n_features:
            return None
        if self._named is None or not np.array_equal(self._named[0], names):
            id = uuid.uuid4().hex
            self._journal.note("features", f"features/{id}")
            self._named = names, write_names(self._storage, id, names)
            self._storage.sync()
        return self._named[1]

    def _write_page(self, lines: tuple[SegmentLine, ...]) -> PageEntry:
        key = f"versions/pages/{uuid.uuid4().hex}.json"
        self._journal.note("page", key)
        page = self._storage.put(key, dump({"format": 1, "segments": [line.to_json() for line in lines]}))
        self._storage.sync()
        return PageEntry(ObjectEntry(key, page.length, page.crc32c), len(lines))

    def abort(self, *, keep: bool = False) -> None:
        """Drop all that was appended; no file of it stays behind, as far as files can be removed.

        Parameters
        ----------
        keep : bool
            Keep the whole parts for whoever goes on with the same job, if there are any.
        """
        if self._closed:
            return
        self._closed = True
        if self._begun is None:
            if self._unfinished is not None:
                self._unfinished.release()
            return
        if self._segment is not None:
            self._segment.discard()
        self._storage.discard()
        self._held = []
        if self._is_published():
            self._end(keep=keep and self._is_known_again)
            return
        kept = set(self._parted) if keep else set()
        if not kept:
            with contextlib.suppress(OSError):
                self._journal.give_up()
        for key in sorted(self._journal.state.made):
            if key.rpartition("/")[2] not in kept:
                with contextlib.suppress(OSError):  # garbage at worst, which gc finds
                    self._storage.remove(key)
        if kept:
            log.warning(
                "%s: %s rows in %d whole parts are kept: run the same again to go on from there, or gc to remove them",
                self._storage.name,
                f"{self._journal.state.rows:,}",
                len(self._journal.state.parts),
            )
        self._end(keep=bool(kept))
        if not kept:
            self._remove_skeleton(self._journal.state.folders)

    def _is_published(self) -> bool:
        """Whether the version is there, though publishing it was interrupted."""
        if self._announced is None:
            return False
        key, payload = self._announced
        try:
            return self._storage.read(key) == payload
        except FileNotFoundError:
            return False
        except OSError:
            return True  # nobody knows: what is kept in vain is garbage, what is removed in vain is lost

    def _end(self, *, keep: bool = False) -> None:
        if self._announced is not None:  # what manifests name that another writer's came before
            for key in self._journal.state.pages | self._journal.state.features:
                if key.rpartition("/")[2].encode() not in self._announced[1]:
                    with contextlib.suppress(OSError):
                        self._storage.remove(key)
        with contextlib.suppress(OSError):
            self._journal.end(keep=keep)

    def _remove_skeleton(self, folders: int) -> None:
        with contextlib.suppress(OSError):
            remove_skeleton(self._storage, folders=folders)


def is_begun(storage: LocalStorage) -> bool:
    """Whether there is what a writer makes before a version, and no folder of something else with such names in it.

    The store's own zarr.json and a journal are made by writers alone. At a power cut neither may be left: then nothing
    else may be there.
    """
    if is_foreign(storage):
        return False
    if storage.exists(ROOT) or (storage.list("") and not _strangers(storage)):
        return True
    for key in all_journals(storage):
        with contextlib.suppress(FileNotFoundError):
            if JournalState.parse(storage.read(key)).length:
                return True
    return False


def _strangers(storage: LocalStorage) -> list[str]:
    """Keys of what no writer made, in the store's folder and in those of its objects."""
    folders = ("", "versions", *DRAWN)
    keys = [f"{folder}/{name}" if folder else name for folder in folders for name in storage.list(folder)]
    return [key for key in keys if not is_own_key(key)]


def remove_skeleton(storage: LocalStorage, *, folders: int) -> None:
    """Where nobody published, nor is about to, take away the store's empty folders and its zarr.json.

    So many folders go as well, as far as they are empty: its own, and those above it.

    Another writer may begin at any moment, and nothing here waits for it. It has a journal before it looks for
    zarr.json: so that goes only where the folder of journals is gone, and comes back where one is there afterwards.
    """
    if latest_version(storage) or is_foreign(storage):
        return
    for name in ("writers", "segments", "features", "versions/pages", "versions"):
        try:
            storage.path(name).rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # it is not empty
            return
    with contextlib.suppress(FileNotFoundError):
        root = storage.read(ROOT)
        if storage.exists("writers"):
            return
        storage.remove(ROOT)
        if storage.exists("writers") or storage.exists("versions"):
            with contextlib.suppress(FileExistsError):  # it made its own
                storage.publish(ROOT, root, f"writers/{uuid.uuid4().hex}.tmp")
                storage.sync("")
            return
    with contextlib.suppress(OSError):  # one that is not empty, and those above it
        for folder in (storage.root, *storage.root.absolute().parents)[:folders]:
            with contextlib.suppress(FileNotFoundError):  # an interrupt came before it was made
                folder.rmdir()


def _says_nothing_of_the_rows(error: BaseException | None) -> bool:
    """Whether the same may succeed another time: it was interrupted, or disk or memory failed."""
    interrupted = isinstance(error, (KeyboardInterrupt, SystemExit, OSError, MemoryError))
    return interrupted and not isinstance(error, (ValueError, StoreExistsError))


def _copied(rows: Rows) -> Rows:
    return Rows(rows.indptr.copy(), rows.indices.copy(), rows.data.copy(), rows.n_features)
