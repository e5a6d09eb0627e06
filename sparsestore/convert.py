"""From a source to a store: reads, sorts or shuffles where that is needed, writes, all in bounded memory."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.columns import array_of, exactly, first_lacking, lacked
from sparsestore.csr import Rows, index_dtype
from sparsestore.documents import exactly_json
from sparsestore.errors import ResourceError, StoreExistsError
from sparsestore.features import as_names, read_names
from sparsestore.format import ROW_ID, ColumnSchema, Manifest, SegmentLine
from sparsestore.journal import Journal, all_journals
from sparsestore.layout import parse_bytes
from sparsestore.manifest import latest_version, needed_keys, read_manifest, versions
from sparsestore.plan.shuffle import check_seed
from sparsestore.progress import Progress, shown
from sparsestore.sort import ORDER_BYTES, Duplicates, random_order, shuffled_blocks, sorted_rows
from sparsestore.sources import fingerprint
from sparsestore.sources.base import Block, Source
from sparsestore.sources.file import shown as quoted
from sparsestore.storage import LocalStorage, naming, open_storage, scratch_folder
from sparsestore.version import __version__
from sparsestore.workers import Teller, results
from sparsestore.writer import Replaced, Share, Writer, append_to, check_place, create, remove_skeleton, rewrite

__all__ = ["MIN_BYTES", "REWRITE", "append_source", "convert", "prepared", "rewrite_segments"]

Array = NDArray[Any]

MIN_BYTES = 24 << 20
"""The smallest `max_bytes`: less would make reads and writes so small that nothing but overhead is left."""
WRITER_BYTES = 128 << 20
BLOCK_BYTES = 256 << 20
LEAST_PART = {"bytes": 32 << 20, "rows": 4096}  # of a source, that is worth a process
BESIDE_ROWS = 65_536  # rows whose columns are read together where entries had to be sorted
_MEANINGS = {"categories": "column", "feature_categories": "feature", "hashed": "features"}
"""What the numbers stand for that provenance tells."""
REWRITE = "optimize"
"""What the journal of `rewrite_segments` calls it."""
HINT_ROWS = 65_536  # a window holds that many rows by default, and a store in one window is shuffled whatever its order
HINT_BLOCK_ROWS = 256
HINT_RATIO = 4.0

log = logging.getLogger("sparsestore")


def convert(
    source: Any,
    dst: str | os.PathLike[str],
    *,
    format: str | None = None,
    columns: Mapping[str, Any] | None = None,
    shuffle: bool = False,
    seed: int | None = None,
    profile: str = "raw",
    max_bytes: int | str = "1GiB",
    overwrite: bool = False,
    resume: bool = True,
    duplicates: Duplicates = "sum",
    feature_names: Iterable[str] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    workers: int = 1,
    progress: Progress | bool | None = None,
    **options: Any,
) -> int:
    """Convert a file or a matrix in memory into a store, and give the number of the version published.

    Row i of the store is row i of the source, unless `shuffle` is asked for. What the conversion holds in memory at
    any time is at most `max_bytes` and 2 MiB, beside the source itself where that is in memory, names of features,
    up to 16 MiB that sources of text read ahead, the imported libraries, and a row that alone exceeds the limit. Of
    it the writer takes a quarter, at most 128 MiB; the rest is for blocks read and, where the source isn't in row
    order or is to be shuffled, for the bucket sort: see `sparsestore.sort`. Then bucket files as large as the data
    are kept in a folder below ``writers/`` of the store, or below `scratch`, removed at the end. What a source has to
    hold until its end, dictionaries of texts and labels of the rows of triples, may take a quarter of what the writer
    leaves, and so may the order of the rows where triples are sorted and shuffled in one pass, or rows of a matrix in
    memory, CSR or dense, taken from where they stand: these need no bucket files.

    A conversion that was interrupted, or for which the disk or memory did not suffice, goes on from its last whole part
    (some 2 GiB of the store) when it is called again: the rows before are read from the source once more, not written.
    `gc` removes what it left if that is not wanted.

    With several `workers` the source is cut into as many parts of consecutive rows, and processes write each part into
    segments of its own, all at the same time. Rows, numbers of rows, columns, names and attrs are the same as with one.
    They share `max_bytes`, and have 2 MiB, imported libraries and what sources of text read ahead each; given columns
    are copied to them, to each those of its rows. What can be cut is plain text of svmlight, libffm and LDA-C, wide
    tables of text without a dictionary, .npy, dense HDF5, stores and views of them; with columns given only what knows
    its number of rows before. All else, and a shuffle, is the work of one, which a log line says.

    Parameters
    ----------
    source : path, matrix or Source
        What `sparsestore.sources.registry.open_source` takes.
    dst : str or path-like
        Folder of the store.
    format : str, optional
        Format of the source; by default its name decides.
    columns : mapping of str to (n,) or (n, k) array, optional
        What stands beside each row, in the order of the source's rows; added to the source's own columns.
    shuffle : bool
        Put the rows in an exactly random order. The column "row_id" has their numbers in the source.
    seed : int, optional
        Of the shuffle; drawn, and recorded in the manifest, where left out. The same seed gives the same order
        whatever `max_bytes` is.
    profile : {"raw", "compact"}
        See `sparsestore.writer.create`.
    max_bytes : int or str
        Memory, e.g. ``"512MiB"``; at least 24 MiB.
    overwrite : bool
        Publish a new version with only these rows where `dst` is a store already.
    resume : bool
        Go on with a conversion that was interrupted. One of another source, or with other options, is an error: False
        throws it away. Where the file system has no locks, one that was at work within a day may be so still, and is
        left alone.
    duplicates : {"sum", "last", "error"}
        For sources of triples: what several entries at one place become.
    feature_names : sequence of str, optional
        A name for each feature, no two alike; otherwise those of the source, where it has names.
    scratch : path, optional
        Folder that is there, for the bucket files: another disk, say. A kill leaves them there; in the store `gc`
        would find them.
    workers : int
        Processes that write at the same time. They are started anew: nothing of the calling program is run in them.
    progress : callable, bool or None
        Called as ``progress(position, total, unit)`` from time to time; a shuffle or sort starts from 0 a second time.
        None shows a bar on a terminal and logs lines elsewhere, False shows nothing: see `sparsestore.progress`.
    **options
        Options of the source: `n_features`, `zero_based`, `label`, `weight`, `dtype`, ...

    Raises
    ------
    ValueError
        On bad arguments or input; the store keeps its previous version, and nothing is left behind.
    FileExistsError
        Where `dst` exists and `overwrite` is false, or is the unfinished conversion of something else.
    ResourceError
        Where `max_bytes` is too little to work with, or the disk is full.
    WorkerError
        Where a worker was killed. What whole parts there are is gone on with by the same call, with as many workers.
    """
    plan = _Conversion.prepare(
        source, format, columns, shuffle, seed, max_bytes, duplicates, feature_names, scratch, options
    )
    parts = plan.parts(workers)
    storage = open_storage(dst)
    chosen = {"into": "overwrite" if overwrite else "create", "profile": profile, **_cut(parts)}
    check_place(storage, overwrite=overwrite)  # before anything there is taken for an unfinished conversion
    plan, journal, _ = plan.unfinished(storage, chosen, resume)
    with _without_new_parents(storage.root), _released(journal):
        writer = create(
            dst,
            n_features=plan.source.n_features,
            columns=plan.schema(),
            dtype=plan.source.dtype,
            profile=profile,
            overwrite=overwrite,
            attrs={"source": plan.provenance(), "sparsestore": __version__},
            shuffled=plan.shuffled(),
            max_bytes=plan.writer_bytes,
            job=lambda: plan.job(chosen),
            journal=journal,
        )
        with writer, shown("converting", progress) as report:
            plan.copy(writer, report, parts)
            writer.feature_names = plan.names()
            version = writer.publish()
    if not shuffle:
        with suppress(OSError):  # a hint is no reason to fail: the version is published
            _hint_at_sorted_rows(dst, version)
    return version


def prepared(
    source: Any,
    *,
    format: str | None = None,
    columns: Mapping[str, Any] | None = None,
    shuffle: bool = False,
    seed: int | None = None,
    max_bytes: int | str = "1GiB",
    duplicates: Duplicates = "sum",
    feature_names: Iterable[str] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    **options: Any,
) -> _Conversion:
    """Check arguments of `convert`, and open the source; nothing is read but its head, and nothing written."""
    return _Conversion.prepare(
        source, format, columns, shuffle, seed, max_bytes, duplicates, feature_names, scratch, options
    )


def append_source(
    source: Any,
    dst: str | os.PathLike[str],
    *,
    format: str | None = None,
    columns: Mapping[str, Any] | None = None,
    shuffle: bool = False,
    seed: int | None = None,
    max_bytes: int | str = "1GiB",
    grow_features: bool = False,
    resume: bool = True,
    duplicates: Duplicates = "sum",
    feature_names: Iterable[str] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    workers: int = 1,
    progress: Progress | bool | None = None,
    **options: Any,
) -> int:
    """Append a file or a matrix in memory to a store, and give the number of the version published.

    As `convert`, whose limits on memory hold here too. The source needs the columns of the store. A call that was
    killed or interrupted when it had published, but not ended, is finished: the same again gives that version, says so
    in the log, and appends nothing, as long as the newest version has these rows, `gc` did not remove the journal of
    that call, and `resume` is true.

    Parameters
    ----------
    source, format, columns, max_bytes, resume, duplicates, feature_names, scratch, workers, progress, **options
        As in `convert`.
    dst : str or path-like
        The store.
    shuffle, seed
        Shuffle the appended rows among themselves; "row_id" goes on from the rows that are there.
    grow_features : bool
        Allow a source wider than the store.

    Raises
    ------
    FileNotFoundError
        Where there is no store.
    ValueError
        Also where numbers of a column or a feature would stand for other labels or categories than in the store, as
        far as the sources of its rows told them.
    FileExistsError
        Where an unfinished conversion of something else is there, or this one, of whose whole parts the store has other
        columns, fewer features or other names of features by now.
    ValueError, ResourceError, WorkerError
        As in `convert`.
    """
    plan = _Conversion.prepare(
        source, format, columns, shuffle, seed, max_bytes, duplicates, feature_names, scratch, options
    )
    parts = plan.parts(workers)
    chosen = {"into": "append", "grow_features": grow_features, **_cut(parts)}
    storage = open_storage(dst)
    manifest = read_manifest(storage)  # or there is no store, and nothing there is taken for an unfinished conversion
    _told_together(plan.source, storage.name, manifest.attrs)  # a conflict is told before anything is read
    plan, journal, finished = plan.knowing_names_of(storage).unfinished(storage, chosen, resume)
    if finished is not None:
        return finished
    with _released(journal):
        plan.adopt_names()
        writer = append_to(
            dst,
            grow_features=grow_features,
            attrs={"appended": plan.provenance(), "sparsestore": __version__},
            shuffled=plan.shuffled(),
            max_bytes=plan.writer_bytes,
            job=lambda: plan.job(chosen),
            journal=journal,
            agree=lambda attrs: _told_together(plan.source, storage.name, attrs),
        )
        with writer, shown("appending", progress) as report:
            plan.copy(writer, report, parts)
            writer.feature_names = plan.names()
            return writer.publish()


def rewrite_segments(
    source: Source,
    storage: LocalStorage,
    base: Manifest,
    before: Sequence[SegmentLine],
    replaced: Sequence[Replaced],
    *,
    facts: Mapping[str, Any],
    profile: str,
    shuffle: bool,
    seed: int | None,
    max_bytes: int | str,
    progress: Progress | bool | None,
) -> int:
    """Publish a version of a store with some segments written anew, and give its number.

    As `convert`, whose limits on memory hold here too; what was interrupted is gone on with, or thrown away where it
    was something else.

    Parameters
    ----------
    source : Source
        The rows of `replaced`, with "row_id" where it is to be kept.
    storage, base, before, replaced, profile
        As in `sparsestore.writer.rewrite`.
    facts : mapping
        JSON by which the same rows are known again.
    shuffle, seed, max_bytes, progress
        As in `convert`.
    """
    given, seed = seed is not None, _seed_of(shuffle, seed)
    plan = _Conversion(source, {}, seed, given, "sum", _limit(max_bytes), dict(facts), None, None)
    chosen = {"into": REWRITE, "profile": profile}
    plan, journal, _ = plan.unfinished(storage, chosen, resume=True)
    with _released(journal):
        writer = rewrite(
            storage,
            base,
            before,
            replaced,
            profile=profile,
            shuffled=plan.shuffled(),
            max_bytes=plan.writer_bytes,
            job=lambda: plan.job(chosen),
            journal=journal,
        )
        with writer, shown("optimizing", progress) as report:
            plan.copy(writer, report)
            return writer.publish()


@dataclass(frozen=True, slots=True)
class _Conversion:
    """What was asked for, checked, and how the memory is divided."""

    source: Source
    columns: dict[str, Array]
    seed: int | None  # None: keep the order
    seed_given: bool
    duplicates: Duplicates
    max_bytes: int
    file: dict[str, Any] | None  # what the source's file was when it was opened
    feature_names: Array | None  # those given
    scratch: Path | None  # where bucket files go, if not into the store
    known: Array | None = None  # names of a store's features that texts of the source are to have the numbers of

    @classmethod
    def prepare(
        cls,
        source: Any,
        format: str | None,
        columns: Mapping[str, Any] | None,
        shuffle: bool,
        seed: int | None,
        max_bytes: int | str,
        duplicates: Duplicates,
        feature_names: Iterable[str] | None,
        scratch: str | os.PathLike[str] | None,
        options: dict[str, Any],
    ) -> _Conversion:
        from sparsestore.sources.registry import open_source

        limit = _limit(max_bytes)
        seed_given, seed = seed is not None, _seed_of(shuffle, seed)
        is_path = isinstance(source, (str, os.PathLike)) and "://" not in str(source)  # an address may have a password
        with naming(source if is_path else "the source"):
            opened = open_source(source, format=format, **options)
            file = fingerprint.of_file(opened)
        if duplicates != "sum" and opened.sorted_rows:
            raise ValueError(f"duplicates={duplicates!r} is for sources of triples; {opened.name} gives whole rows")
        if ROW_ID in opened.columns and not getattr(opened, "numbered", False):
            raise ValueError(
                f"{opened.name}: a column can not be called {ROW_ID!r}, which has the numbers of rows: rename it, or "
                "leave it out"
            )
        if columns is not None and not isinstance(columns, Mapping):
            raise ValueError(f"columns is a {type(columns).__name__}, expected a mapping of names: {{'y': y}}")
        given = {name: _column(name, values) for name, values in (columns or {}).items()}
        twice = sorted(set(given) & set(opened.columns))
        if twice:
            raise ValueError(f"columns {twice} are given and are in {opened.name} too: leave them out or rename them")
        names = None if feature_names is None else as_names(feature_names)
        if names is not None and hasattr(opened, "adopt"):
            opened.adopt(names.tolist())
        elif names is not None and opened.n_features not in (None, len(names)):
            raise ValueError(
                f"feature_names has {len(names)} names, expected one for each of the {opened.n_features} features of "
                f"{opened.name}"
            )
        plan = cls(opened, given, seed, seed_given, duplicates, limit, file, names, _scratch(scratch))
        if opened.n_rows is not None:
            plan.check_length(opened.n_rows)
        return plan

    @property
    def writer_bytes(self) -> int:
        return min(WRITER_BYTES, self.max_bytes // 4)

    def schema(self) -> dict[str, Any]:
        """Columns as `create` takes them."""
        own = {name: (dtype, *shape) for name, (dtype, shape) in self.source.columns.items() if name != ROW_ID}
        return {**own, **{name: (array.dtype, *array.shape[1:]) for name, array in self.columns.items()}}

    def names(self) -> Iterable[str] | None:
        """Names of the features, once all was read."""
        own: Iterable[str] | None = getattr(self.source, "feature_names", None)
        # a source that adopted those given has them too, and what came to them
        return own if self.feature_names is None or hasattr(self.source, "adopt") else self.feature_names

    def knowing_names_of(self, storage: LocalStorage) -> _Conversion:
        """With the names of a store, where features of texts that it has already keep their numbers."""
        if not hasattr(self.source, "adopt") or self.feature_names is not None or not versions(storage):
            return self
        manifest = read_manifest(storage, None)
        if manifest.features is None:
            return self
        return replace(self, known=read_names(storage, manifest.features, manifest.n_features))

    def adopt_names(self) -> None:
        """Give the source the names that it is to begin with."""
        if self.known is not None and len(self.known):
            self.source.adopt(self.known.tolist())  # type: ignore[attr-defined]

    def shuffled(self) -> dict[str, Any] | None:
        if self.seed is None:
            return getattr(self.source, "shuffled", None)  # a store's rows stay as random as they were
        return {"method": "exact", "seed": self.seed}

    def provenance(self) -> dict[str, Any]:
        facts = self.source.provenance()
        return {**facts, "columns": sorted(self.columns)} if self.columns else facts

    def job(self, chosen: Mapping[str, Any]) -> dict[str, Any] | None:
        """What this conversion is: whoever has the same may go on with it. None where the source tells nothing."""
        source = self.file or fingerprint.of_memory(self.source)
        if source is None:
            return None
        facts = {
            **chosen,
            "source": source,
            "options": self.source.provenance().get("options", {}),
            "n_features": self.source.n_features,
            "dtype": str(self.source.dtype),
            "columns": {name: fingerprint.of_array(array) for name, array in self.columns.items()},
            "feature_names": None if self.feature_names is None else fingerprint.of_array(self.feature_names),
            "shuffle seed": self.seed,
            "duplicates": self.duplicates,
            "features of the store": _counted(self.known),
        }
        return dict(exactly_json(facts, "what is converted"))  # as it will be read from a journal

    def as_begun(self, job: Mapping[str, Any]) -> _Conversion:
        """The same with what was drawn or found when that job began: the seed, and how many names the store had."""
        same = self
        if self.seed is not None and not self.seed_given and isinstance(job.get("shuffle seed"), int):
            same = replace(same, seed=job["shuffle seed"])
        if self.known is not None:  # others may have added some: numbers in whole parts are of those before
            begun_with = job.get("features of the store") or {}
            same = replace(same, known=self.known[: begun_with.get("n", 0)])
        return same

    def unfinished(
        self, storage: LocalStorage, chosen: Mapping[str, Any], resume: bool
    ) -> tuple[_Conversion, Journal | None, int | None]:
        """The conversion as it was when it was begun before, its journal, and the version that an append made already.

        Raises
        ------
        StoreExistsError
            Where something else was begun and not finished.
        """
        for key in all_journals(storage):
            journal = Journal.adopt(storage, key)
            if journal is None:
                continue  # at work, or gone
            if journal.may_live():
                log.warning(
                    "%s: %s is of a writer that may be at work, as there are no locks here that would tell: it is left "
                    "alone, and neither gone on with nor thrown away until it is a day old",
                    storage.name,
                    key,
                )
                journal.release()
                continue
            try:
                found = journal.state.job
                rewriting = chosen["into"] == REWRITE
                if found is not None and (found.get("into") == REWRITE) != rewriting:
                    journal.release()  # neither is in the other's way
                    continue
                same = self if found is None else self.as_begun(found)
                if resume and _has_appended(storage, journal) and found != same.job(chosen):
                    journal.release()  # whoever repeats that one is to be told
                    continue
                published = needed_keys(storage)
                finished = _finished(storage, journal, published) if resume and chosen["into"] == "append" else None
                if finished is not None and found is not None and found == same.job(chosen):
                    storage.sync("versions")  # nobody was told of it, so that it need not be durable yet
                    journal.discard(published)
                    log.warning(
                        "%s: version %d has these rows already: the call that appended them ended before it could "
                        "say so. Nothing was appended: give resume=False (--no-resume) to append them again",
                        storage.name,
                        finished,
                    )
                    return same, None, finished
                if not resume or found is None or not journal.state.parts or journal.state.segments & published.keys():
                    _throw_away(storage, journal, published)  # killed before its first part, or after its last
                    continue
                wanted = same.job(chosen) or {}
                if found != wanted and rewriting:
                    log.info("%s: what was rewritten before was of other segments: beginning again", storage.name)
                    _throw_away(storage, journal, published)
                    continue
                if found != wanted:
                    raise StoreExistsError(_refusal(storage, journal, wanted))
                journal.renew()
            except BaseException:
                journal.release()
                raise
            done = (
                f"with {journal.state.rows:,} rows done" if "parts" in chosen else f"behind row {journal.state.rows:,}"
            )
            log.info("%s: going on %s, where a conversion was interrupted", storage.name, done)
            return same, journal, None
        return self, None, None

    def check_length(self, n_rows: int) -> None:
        """Every given column must have a value for each row of the source."""
        for name, array in self.columns.items():
            if len(array) != n_rows:
                raise ValueError(f"column {name!r} has {len(array)} values, expected one for each of the {n_rows} rows")

    def parts(self, workers: int) -> list[Source]:
        """Consecutive parts of the source for as many processes; none where one does it all."""
        if isinstance(workers, bool) or not isinstance(workers, (int, np.integer)) or workers < 1:
            raise ValueError(f"workers is {workers!r}, expected at least 1")
        if workers == 1:
            return []
        if self.max_bytes // workers < MIN_BYTES:
            raise ResourceError(
                f"max_bytes is {self.max_bytes} for {workers} workers, expected at least {MIN_BYTES} (24 MiB) for each"
            )
        found, least = list[Source](), LEAST_PART[self.source.unit]
        if self.seed is not None:
            why = "all its rows are shuffled together"
        elif self.columns and self.source.n_rows is None:
            why = "the number of its rows, and so which given columns are whose, is known at its end only"
        elif not hasattr(self.source, "parts"):
            why = "it can not be cut into parts"
        else:
            why = "it is compressed, small, or its texts are numbered in the order of the rows"
            found = self.source.parts(max(1, min(int(workers), (self.source.size or 0) // least)))
        if len(found) > 1:
            return found
        log.info("%s: is read by one worker: %s", self.source.name, why)
        return []

    def copy(self, writer: Writer, report: Progress, parts: Sequence[Source] = ()) -> None:
        """Read everything, put it in order, and write what the writer does not have yet."""
        if parts:
            self.copy_parts(writer, report, parts)
            return
        done = writer.n_rows
        left = self.max_bytes - self.writer_bytes
        if hasattr(self.source, "hold"):
            self.source.hold(left // 4)
            left -= left // 4
        order = taken = None
        if self.in_one_pass:
            order = random_order(self.source.n_rows or 0, self.seed or 0)
            if self.source.sorted_rows:
                taken = self.taken(order, min(BLOCK_BYTES, left // 2), report)
                order = None if taken is None else order
            left -= 0 if order is None else left // 4
        n_passes = int(not self.source.sorted_rows) + int(self.seed is not None and order is None)
        with ExitStack() as stack:
            if n_passes == 0:
                blocks = self.read(min(BLOCK_BYTES, left // 4), report) if taken is None else taken
            else:
                scratch = stack.enter_context(scratch_folder(self.scratch_of(writer)))
                share = left // n_passes
                rows = self.source.sorted_rows
                blocks = self.read(share // 8, report) if rows else self.sorted(share, scratch, report, order)
            blocks = self.joined(blocks, order)
            if self.seed is not None and order is None:
                size = self.source.size if self.source.sorted_rows else self.source.n_rows
                blocks = shuffled_blocks(
                    self.declared(blocks),
                    seed=self.seed,
                    max_bytes=share,
                    scratch=scratch,
                    size=size,
                    numbered=getattr(self.source, "numbered", False),
                )
            # closed before the scratch folder goes, also when a traceback holds on to the generator
            stack.enter_context(closing(blocks))  # type: ignore[type-var]
            for block in _behind(blocks, done):
                writer.write(block.x, block.columns, name=self.source.name)
                if n_passes:
                    report(writer.n_rows, self.source.n_rows, "rows")
        if not writer.n_rows and self.source.n_features is None:
            self.write_names_alone(writer)

    def write_names_alone(self, writer: Writer) -> None:
        """A table of categories without rows has features all the same: those that are no categories."""
        names = self.names()
        n, dtype = (0 if names is None else len(list(names))), self.source.dtype
        rows = Rows(np.zeros(1, np.int64), np.empty(0, index_dtype(n)), np.empty(0, dtype or np.float32), n)
        columns = {
            name: np.empty((0, *shape), object if dtype == "string" else dtype)
            for name, (dtype, *shape) in self.schema().items()
        }
        writer.write(rows, columns)

    def copy_parts(self, writer: Writer, report: Progress, parts: Sequence[Source]) -> None:
        """Have processes read and write a part each, as far as they did not before."""
        shares, stop, tasks = list[Share](), 0, list[tuple[Share, _Conversion]]()
        positions = [0] * len(parts)
        for number, part in enumerate(parts):
            share, (start, stop) = writer.share(number), (stop, stop + (part.n_rows or 0))
            columns = {name: array[start:stop] for name, array in self.columns.items()}
            shares.append(share)
            if share.whole:
                positions[number] = part.size or 0
            else:
                left = self.max_bytes // len(parts)
                plan = replace(self, source=part, columns=columns, max_bytes=left, file=None, feature_names=None)
                tasks.append((share, plan))

        def move(task: int, position: int) -> None:
            positions[tasks[task][0].number] = position
            report(sum(positions), self.source.size, self.source.unit)

        with naming(self.source.name):
            done = results(
                _write_share,
                tasks,
                note=lambda task, kind, value: writer.note(tasks[task][0].number, kind, value),
                progress=move,
                inherited=[writer.journal_descriptor],
            )
        states = iter(done)
        writer.take(share.state if share.whole else next(states) for share in shares)
        report(self.source.size or 0, self.source.size, self.source.unit)
        if self.source.n_features is None and not writer.nnz:  # that may be an error, of which no part can know
            for _ in self.source.blocks(BLOCK_BYTES):
                pass

    def read(self, max_bytes: int, report: Progress) -> Iterator[Any]:
        """The source's blocks, or triples, with reports of how far it is."""
        with naming(self.source.name):
            for block in self.source.blocks(max_bytes):
                yield block
                report(block.position, self.source.size, self.source.unit)

    def taken(self, order: NDArray[np.int64], max_bytes: int, report: Progress) -> Iterator[Block] | None:
        """The rows of a source in that order, where it can give them so."""
        with naming(self.source.name):
            blocks = self.source.in_order(order, max_bytes)  # type: ignore[attr-defined]
        return None if blocks is None else self.numbered(blocks, order, report)

    def numbered(self, blocks: Iterator[Block], order: NDArray[np.int64], report: Progress) -> Iterator[Block]:
        """Blocks with the numbers that their rows had."""
        start = 0
        with naming(self.source.name):
            for block in blocks:
                yield replace(block, columns={**block.columns, ROW_ID: order[start : block.position]})
                start = block.position
                report(start, self.source.size, self.source.unit)

    @property
    def in_one_pass(self) -> bool:
        """Whether what reads or sorts rows can shuffle them too: it then needs to have the whole order in memory."""
        if self.seed is None or self.source.n_rows is None:
            return False
        if self.source.sorted_rows and not hasattr(self.source, "in_order"):
            return False
        if hasattr(self.source, "following") and self.source.columns:  # they are read in the order of their file
            return False
        left = self.max_bytes - self.writer_bytes
        left -= left // 4 if hasattr(self.source, "hold") else 0
        return ORDER_BYTES * self.source.n_rows <= left // 4

    def scratch_of(self, writer: Writer) -> Path:
        """Folder for bucket files: in the store, or where it was asked for."""
        return writer.scratch if self.scratch is None else self.scratch / f"sparsestore-{writer.scratch.name}"

    def sorted(
        self, max_bytes: int, scratch: Path, report: Progress, order: NDArray[np.int64] | None
    ) -> Iterator[Block]:
        """The rows of a source of triples."""
        rows = sorted_rows(
            self.read(max_bytes // 8, report),
            self.source.n_rows,
            self.source.n_features,
            dtype=self.source.dtype,
            max_bytes=max_bytes,
            scratch=scratch,
            duplicates=self.duplicates,
            size=self.source.size,
            order=order,
            name=self.source.name,
            whole=getattr(self.source, "whole", False),
        )
        stop = 0
        if hasattr(self.source, "following") and self.source.columns:
            with self.source.following() as following:
                for part in rows:
                    for start in range(0, len(part), BESIDE_ROWS):
                        some = part.slice(start, min(start + BESIDE_ROWS, len(part)))
                        stop += len(some)
                        yield Block(some, following(len(some)), stop)
            return
        for part in rows:
            start, stop = stop, stop + len(part)
            columns: dict[str, Array] = {}
            if self.source.columns:
                beside: Callable[[NDArray[np.int64]], dict[str, Array]] = self.source.beside  # type: ignore[attr-defined]
                columns = beside(np.arange(start, stop) if order is None else order[start:stop])
            width = max(part.n_features, getattr(self.source, "width", 0))  # some features may have no entry
            part = replace(part, n_features=width, indices=part.indices.astype(index_dtype(width), copy=False))
            if order is not None:
                columns[ROW_ID] = order[start:stop]
            yield Block(part, columns, stop)

    def joined(self, blocks: Iterator[Block], order: NDArray[np.int64] | None) -> Iterator[Block]:
        """Blocks with the given columns beside the source's own."""
        stop = 0
        for block in blocks:
            start, stop = stop, stop + len(block.x)
            for name, array in self.columns.items():
                if len(array) < stop:
                    raise ValueError(
                        f"column {name!r} has {len(array)} values, and {self.source.name} more rows than that"
                    )
            rows = slice(start, stop) if order is None else order[start:stop]
            given = {name: array[rows] for name, array in self.columns.items()}
            yield replace(block, columns={**block.columns, **given})
        self.check_length(stop)

    def declared(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Blocks with columns in the dtypes that the source told, before those of several blocks come into one array.

        Numpy would give that a common dtype, which holds not all values of both; nor may that of the matrix.
        """
        common, lacking = np.dtype(np.bool_), None
        schemas = {name: ColumnSchema(dtype, shape) for name, (dtype, shape) in self.source.columns.items()}
        for block in blocks:
            columns = {
                name: _declared(name, values, schemas[name]) if name in schemas else values
                for name, values in block.columns.items()
            }
            if self.source.dtype is None:
                common = np.result_type(common, block.x.data.dtype)
                lacking = first_lacking(block.x.data) if lacking is None else lacking
                if lacking is not None and common.kind == "f":
                    raise ValueError(f"{self.source.name}: {lacked(lacking, common)}")
            yield replace(block, columns=columns)


def _declared(name: str, values: Array, schema: ColumnSchema) -> Array:
    """A column of a block in the dtype that the source told."""
    if values.dtype == schema.dtype or values.dtype == object:
        return values
    if schema.dtype == "string":
        return values.astype(object)
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.array(exactly(name, values.filled(0), schema), mask=np.ma.getmaskarray(values))
    return exactly(name, values, schema)


def _write_share(task: tuple[Share, _Conversion], teller: Teller) -> dict[str, Any]:
    """What a worker does."""
    share, plan = task
    writer = share.writer(teller.note, max_bytes=plan.writer_bytes)
    plan.copy(writer, teller.progress)
    return writer.finish()


def _cut(parts: Sequence[Source]) -> dict[str, int]:
    """What a conversion by several processes is known by."""
    return {"parts": len(parts)} if parts else {}


def _limit(max_bytes: int | str) -> int:
    limit = parse_bytes(max_bytes)
    if limit < MIN_BYTES:
        raise ResourceError(f"max_bytes is {limit}, expected at least {MIN_BYTES} (24 MiB) to work with")
    return limit


def _seed_of(shuffle: bool, seed: int | None) -> int | None:
    """Seed of the shuffle, drawn where none was given; None where rows are not shuffled."""
    if not shuffle:
        if seed is not None:
            raise ValueError(f"seed is {seed} but shuffle is False: pass shuffle=True, or leave seed out")
        return None
    seed = secrets.randbits(32) if seed is None else seed
    check_seed(seed)
    return int(seed)


def _behind(blocks: Iterator[Block], n_rows: int) -> Iterator[Block]:
    """Blocks without their first rows."""
    for block in blocks:
        n = len(block.x)
        if n <= n_rows:
            n_rows -= n
            if not n:
                yield block  # an empty one may still widen the matrix
            continue
        if n_rows:
            columns = {name: values[n_rows:] for name, values in block.columns.items()}
            block, n_rows = replace(block, x=block.x.slice(n_rows, n), columns=columns), 0
        yield block


def _finished(storage: LocalStorage, journal: Journal, published: Mapping[str, tuple[int, int]]) -> int | None:
    """The version that a journal's writer published, where the newest has its rows still."""
    newest = latest_version(storage)
    firsts = [published[key][0] for key in journal.state.segments if published.get(key, (0, 0))[1] == newest]
    return min(firsts, default=None)


def _has_appended(storage: LocalStorage, journal: Journal) -> bool:
    """Whether an append that can be known again published its rows, and the newest version has them."""
    if (journal.state.job or {}).get("into") != "append":
        return False
    return not journal.state.segments.isdisjoint(needed_keys(storage, versions(storage)[:-1]))


def _meanings(facts: Any) -> dict[str, dict[str, list[Any]]]:
    """What the numbers of columns and of features stand for, as the sources that they were read from say.

    Facts are a source's provenance; those of a store have what came with appended files beside what is told of its
    origin.
    """
    found: dict[str, dict[str, list[Any]]] = {kind: {} for kind in _MEANINGS}
    while isinstance(facts, dict):
        telling = facts.get("meanings") if facts.get("format") == "sparsestore" else facts
        for kind, of_kind in found.items():
            told = telling.get(kind) if isinstance(telling, dict) else None
            if kind == "hashed" and isinstance(told, list):
                told = {"": told}
            for name, values in told.items() if isinstance(told, dict) else ():
                if isinstance(values, list):
                    of_kind.setdefault(name, values)
        if facts.get("format") == "sparsestore":
            facts = facts.get("origin")
            continue
        given = facts.get("options")
        n_labels = given.get("multilabel") if isinstance(given, dict) else None
        if isinstance(facts.get("labels"), list):
            found["categories"].setdefault("y", facts["labels"])
        elif type(n_labels) is int:
            found["categories"].setdefault("y", list(range(n_labels)))
        break
    return found


def _told_together(source: Source, store: str, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What numbers stand for in a store with those attrs once the source is appended, where that is more than before.

    Raises
    ------
    ValueError
        Where the same number would be one thing in the rows that are there and another in new ones.
    """
    there = _meanings({"format": "sparsestore", "meanings": attrs.get("meanings"), "origin": attrs.get("source")})
    comes = _meanings(source.provenance())
    more = False
    for kind, noun in _MEANINGS.items():
        for name, new in comes[kind].items():
            before = there[kind].get(name, [])
            for at, (ours, theirs) in enumerate(zip(new, before, strict=False)):
                if ours != theirs and kind == "hashed":
                    what = "texts are hashed to", "features of numbers before these are", "one of these is"
                    raise ValueError(
                        f"{source.name}: {what[min(at, 2)]} {quoted(str(ours))}, in {store} {quoted(str(theirs))}: "
                        "hash to the same n_features, beside the same features in one order, or convert it into a "
                        "store of its own"
                    )
                if ours != theirs:
                    raise ValueError(
                        f"{source.name}: number {at} of {noun} {name!r} stands for {quoted(str(ours))}, in {store} for "
                        f"{quoted(str(theirs))}: give both the same categories in one order, of labels of svmlight "
                        "their number (multilabel=), or convert it into a store of its own"
                    )
            if len(new) > len(before):
                there[kind][name], more = new, True
    return {"meanings": {kind: told for kind, told in there.items() if told}} if more else {}


def _throw_away(storage: LocalStorage, journal: Journal, needed: Collection[str]) -> None:
    """Remove what a conversion left that is not gone on with, the folders that it made included."""
    journal.discard(needed)
    with suppress(OSError):
        remove_skeleton(storage, folders=journal.state.folders)


def _counted(names: Array | None) -> dict[str, Any] | None:
    """What names are known by; None where there are none."""
    return None if names is None or not len(names) else {"n": len(names), "names": fingerprint.of_array(names)}


def _refusal(storage: LocalStorage, journal: Journal, wanted: Mapping[str, Any]) -> str:
    """Why a conversion that was begun is not this one."""
    found = journal.state.job or {}
    name = next(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))
    return (
        f"{storage.name}: an unfinished conversion is there, with {journal.state.rows:,} rows done, "
        f"and it is not this one: its {name} was {found.get(name)}, now {wanted.get(name)}. Run that one again to "
        "finish it, or give resume=False (--no-resume) to throw it away"
    )


def _scratch(given: str | os.PathLike[str] | None) -> Path | None:
    """The folder for bucket files that was asked for."""
    if given is not None and not Path(given).is_dir():
        raise ValueError(f"scratch is {os.fspath(given)!r}, expected a folder that is there")
    return None if given is None else Path(given)


def _column(name: str, values: Any) -> Array:
    """A column that the caller gave, as an array."""
    array = array_of(name, values)
    if array.ndim not in (1, 2):
        raise ValueError(f"column {name!r} has shape {array.shape}, expected (n,) or (n, k)")
    return array


@contextmanager
def _released(journal: Journal | None) -> Iterator[None]:
    """Where no writer took the journal over, let go of it at the end."""
    try:
        yield
    finally:
        if journal is not None:
            journal.release()


@contextmanager
def _without_new_parents(root: Path) -> Iterator[None]:
    """Where the block raises, take away the folders above the store that were not there before and are empty."""
    missing = [parent for parent in root.absolute().parents if not parent.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


def _hint_at_sorted_rows(dst: str | os.PathLike[str], version: int) -> None:
    """Say once what rows in order of their labels mean for training, and what helps."""
    from sparsestore.reader import Reader

    storage = open_storage(dst)
    manifest = read_manifest(storage, version)
    if manifest.rows <= HINT_ROWS or "y" not in manifest.columns:
        return
    reader = Reader(storage, manifest)
    try:
        statistics = reader.label_statistics("y")
    finally:
        reader.close()
    ratio = statistics.ratio(HINT_BLOCK_ROWS) if statistics is not None else 1.0
    if ratio > HINT_RATIO:
        log.warning(
            "%s: rows that lie together have similar labels (between blocks of %d rows y varies %.1f times as much as "
            "if shuffled), so that training would read small blocks: convert with shuffle=True (--shuffle)",
            storage.name,
            HINT_BLOCK_ROWS,
            ratio,
        )
