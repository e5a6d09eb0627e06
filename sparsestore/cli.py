"""The command line: each command parses, calls one library function and prints.

Facts go to standard output (with `--json` as one JSON document and nothing else), progress, warnings and errors to
standard error. Exit status: 0 done, 1 failed (or `verify` found problems), 2 wrong usage, 130 interrupted (Ctrl-C), 143
terminated (SIGTERM).
Libraries are imported inside the commands, so that `--help` and `info` answer at once.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from sparsestore.flags import given, with_source_options
from sparsestore.version import __version__

__all__ = ["app", "main"]

P = ParamSpec("P")

_PAIRS = 12  # of a row that is shown before a conversion

app = typer.Typer(
    name="sparsestore",
    help="Store large sparse matrices on disk and train Keras from them in shuffled batches.",
    epilog="sparsestore COMMAND --help tells more about each command.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe and in a log, and options are never cut off
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


class Profile(StrEnum):
    """How a store's arrays are kept on disk."""

    raw = "raw"
    compact = "compact"


class Duplicates(StrEnum):
    """What several entries at one place become."""

    sum = "sum"
    last = "last"
    error = "error"


class Layout(StrEnum):
    """Form of `x` in a batch."""

    sparse = "sparse"
    dense = "dense"


# ---- options that several commands share

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="Path of a store.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Version = Annotated[int | None, typer.Option("--store-version", help="Version to open; the newest by default.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the order; the same seed gives the same order.")]
Format = Annotated[str | None, typer.Option("--format", help="Format of SRC, where its name does not tell.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="NAME=FILE", help="A column beside the matrix, from a .npy file: y=labels.npy; repeatable."
    ),
]
FeatureNames = Annotated[
    str | None,
    typer.Option("--feature-names", metavar="FILE", help="Names of the features: a text file, one a line."),
]
DuplicateEntries = Annotated[
    Duplicates, typer.Option("--duplicates", help="What several entries at one place become, in formats of triples.")
]
Scratch = Annotated[
    str | None,
    typer.Option("--scratch", metavar="FOLDER", help="Where to put what is sorted, as large as the data; in DST."),
]
Workers = Annotated[
    int, typer.Option("--workers", min=1, help="Processes that convert parts of SRC at the same time, where it allows.")
]
Shuffle = Annotated[
    bool, typer.Option("--shuffle", help="Put the rows in random order once, exactly, in bounded memory.")
]
MaxBytes = Annotated[
    str, typer.Option("--max-bytes", help="Memory that the conversion may use, such as 500MB or 2GiB.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Go on where the same command was interrupted; or throw away what is unfinished and start again.",
    ),
]
StoreProfile = Annotated[
    Profile, typer.Option("--profile", help="raw: memory-mapped, fastest. compact: compressed, for slow disks.")
]

CONVERT_HELP = """
Convert a file into a store.

\b
SRC is a file or folder of one of these formats:
  format         names that end in             options it knows
  svmlight       .svm .svmlight .libsvm  (+)   --n-features --zero-based --one-based --dtype --multilabel --qid --sort
  csv            .csv .tsv  (+)  (wide)        --header --delimiter --label --weight --keep --drop --missing --dtype
                                               --categorical --encode --n-features --unknown --bucket
                 with --row, --feature         --value --label --weight --header --delimiter --dtype --n-rows
                 (triples)                     --n-features --zero-based --one-based --encode --unknown
  libffm         .ffm .libffm  (+)             --n-features --zero-based --one-based --dtype --sort
  matrix_market  .mtx .mm  (+)                 --n-features --dtype
  vw             .vw  (+)  (Vowpal Wabbit)     --encode --n-features --zero-based --one-based --unknown --importance
                                               --tag --dtype
  uci            .uci  (+)  (bag of words)     --n-features --dtype
  lda_c          .ldac .blei  (+)              --n-features --dtype --sort
  arff           .arff  (+)                    --label --weight --keep --drop --missing --dtype
  tfrecord       .tfrecord .tfrecords  (+)     --layout --indices --values --features --label --weight --keep
                                               --n-features --zero-based --one-based --missing --compression --dtype
  npz            .npz (scipy.sparse.save_npz)  --n-features --dtype
  npy            .npy (dense, 2-D)             --n-features --dtype
  hdf5           .h5 .hdf5 (dense, 2-D)        --dataset --label --weight --n-features --dtype
  h5ad           .h5ad (AnnData; zarr, too)    --layer --label --weight --keep --names --dtype
  tenx           (10x Genomics, file, folder)  --genome --names --dtype
  binsparse      (HDF5 or zarr)                --group --n-features --dtype
  parquet        .parquet .pq                  as typed tables, below
  arrow          .arrow .feather .ipc          as typed tables, below
  duckdb         .duckdb, or duckdb:           --sql; as typed tables, below
  sqlite         .sqlite .sqlite3              --sql; as typed tables, below
  postgresql     postgresql://host/name        --sql --dsn; as typed tables, below
  sparsestore    .zarr (another store)         --rows --select --store-version --n-features --dtype
  (+) .gz .bz2 .xz or .zst may follow
  typed tables   wide                          --label --weight --keep --drop --missing --categorical --encode
                                               --n-features --unknown --bucket --dtype
                 with --row, --feature         --value --label --weight --n-rows --n-features --zero-based --one-based
                 (triples)                     --encode --unknown --dtype
                 with --indices or --vector    --values --label --weight --keep --drop --n-features --zero-based
                 (lists)                       --one-based --dtype
svmlight, libffm and vw have labels, which become the column y; tables, ARFF, records, HDF5 and AnnData have those
that are named; a store has its columns; beside the other formats give them with --column y=labels.npy.
Other names need --format: nothing is guessed from the content. On any error nothing is left at DST.

\b
Rows keep their order: row i of the store is row i of the file. Where that is sorted (by label, date or user), shuffle
once with --shuffle: training then reads large blocks and still sees a fully shuffled order.

\b
Examples
  sparsestore convert clicks.svm.gz clicks.zarr --n-features 1000000 --shuffle --seed 0
  sparsestore convert visits.csv.gz visits.zarr --label bought --keep user,when:int64 --shuffle
  sparsestore convert day0.csv day0.zarr --label click --categorical 'C*' --bucket 'I*:log2' --missing nan
  sparsestore convert ratings.csv ratings.zarr --row user:string --feature item:string --value stars
  sparsestore convert postgresql://db.local/shop s.zarr --sql "select * from clicks" --row user --feature item
  sparsestore convert counts.npz cells.zarr --column y=labels.npy --profile compact
  sparsestore convert atlas.h5ad cells.zarr --layer raw --label cell_type --keep donor,n_counts:float32 --shuffle
  sparsestore convert clicks.zarr shuffled.zarr --shuffle --rows :1000000
"""


# ---- printing


def _printable(text: str) -> str:
    """Text with all but printable characters escaped: names and strings of a file may hold escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _say(line: str) -> None:
    """One line to standard error."""
    print(_printable(line), file=sys.stderr, flush=True)  # noqa: T201


def _print(*lines: str) -> None:
    """Lines to standard output."""
    sys.stdout.writelines(f"{_printable(line)}\n" for line in lines)


def _show_json(document: Any) -> None:
    sys.stdout.write(json.dumps(_plain(document), indent=2, allow_nan=False) + "\n")


def _show_facts(facts: dict[str, str]) -> None:
    """Names and values in two columns, bold names on a terminal."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts.items():
            table.add_row(_printable(name), _printable(value))
        Console(highlight=False, markup=False).print(table)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        _print(f"{name:<{width}}  {value}")


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy's as Python's; nan and inf, which JSON lacks, as strings."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _facts(path: str, version: int | None = None) -> dict[str, Any]:
    """What a version's manifest says, as JSON."""
    from sparsestore.manifest import read_manifest
    from sparsestore.storage import open_storage

    manifest = read_manifest(open_storage(path), version)
    return {
        "path": path,
        "version": manifest.version,
        "created": manifest.created,
        "rows": manifest.rows,
        "features": manifest.n_features,
        "feature_names": manifest.features is not None,
        "nnz": manifest.nnz,
        "dtype": manifest.dtype,
        "columns": {name: schema.to_json() for name, schema in manifest.columns.items()},
        "segments": manifest.n_segments,
        "profile": manifest.profile,
        "shuffled": manifest.shuffled,
        "partly_shuffled": manifest.shuffled is None and any(line.shuffled for line in manifest.segments),
        "attrs": manifest.attrs,
    }


def _print_store(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _show_json(facts)
        return
    rows, features, nnz = facts["rows"], facts["features"], facts["nnz"]
    share = nnz / (rows * features) if rows and features else 0.0
    columns = (
        f"{name} ({' x '.join([column['dtype'], *map(str, column['shape'])])})"
        for name, column in facts["columns"].items()
    )
    shuffled, source = facts["shuffled"], facts["attrs"].get("source", {})
    order = "as in the source" if shuffled is None else f"shuffled once, seed {shuffled.get('seed')}"
    if facts["partly_shuffled"]:
        order = "some segments shuffled once, the others as in the source"
    lines = {
        "store": facts["path"],
        "version": f"{facts['version']} of {facts['created']}",
        "shape": f"{rows:,} rows x {features:,} {'named ' * facts['feature_names']}features",
        "entries": f"{nnz:,} {facts['dtype']}: {share:.3g} of all cells, {nnz / max(rows, 1):.3g} a row",
        "columns": ", ".join(columns) or "none",
        "order": order,
        "kept as": f"{facts['segments']:,} segment{'' if facts['segments'] == 1 else 's'}, profile {facts['profile']}",
    }
    if isinstance(source, dict) and "source" in source:
        lines["source"] = str(source["source"])
    if "seconds" in facts:
        lines["time"] = f"{facts['seconds']:.1f} s"
    _show_facts(lines)


# ---- errors


def _message(error: BaseException) -> str:
    """What went wrong in one line."""
    from sparsestore.errors import SparsestoreError

    if isinstance(error, OSError) and not isinstance(error, SparsestoreError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    expected = (SparsestoreError, OSError, ValueError, MemoryError, ImportError)
    if isinstance(error, expected):
        return text or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
    return f"unexpected {type(error).__name__}: {text} (a bug: run again with SPARSESTORE_DEBUG=1 and report it)"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")


class _LineFormatter(logging.Formatter):
    """A line each, whatever the names in it."""

    def format(self, record: logging.LogRecord) -> str:
        return _printable(super().format(record))


def _show_log() -> None:
    """Hints of the library, which come by its logger, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter("%(levelname)s: %(message)s"))
    logging.addLevelName(logging.WARNING, "warning")
    logging.addLevelName(logging.INFO, "info")
    logger = logging.getLogger("sparsestore")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


_INTERRUPTS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_heard: list[int] = []  # numbers of the signals that came


@contextmanager
def _interrupts_heard() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C and at SIGTERM alike, so that all is put in order, and note which it was.

    Noted beside being raised, too, because code that is called back by a compiler swallows what is raised in it.
    """

    def note(number: int, _: object) -> None:
        _heard.append(number)
        raise KeyboardInterrupt

    # what whoever started this told it to ignore (nohup, a shell's background) stays ignored
    before = {number: signal.getsignal(number) for number in _INTERRUPTS}
    caught = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in caught:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)


def _interrupted() -> int:
    """Tell of the interrupt that ended this; the exit status."""
    number = _heard[0] if _heard else signal.SIGINT
    _say(f"error: {_INTERRUPTS[signal.Signals(number)]}")
    return 128 + number


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[[int, int | None, str], None]]:
    """What conversions call as they go: shows how far they are, and ends them where an interrupt was swallowed."""
    from sparsestore.progress import shown

    with shown(what, False if quiet else None) as report:

        def move(position: int, total: int | None, unit: str) -> None:
            if _heard:
                raise KeyboardInterrupt
            report(position, total, unit)

        yield move


def _reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command raises into one line on standard error and an exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with warnings.catch_warnings(), _interrupts_heard():
                warnings.showwarning = _show_warning
                command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise  # the parser's own; a reader that has gone away is no failure worth a word, typer exits with 1
        except KeyboardInterrupt:
            status = _interrupted()
            exec("")  # else CPython, where it passed through exec of text, ends the process by the signal after all
            raise typer.Exit(status) from None
        except Exception as error:
            if os.environ.get("SPARSESTORE_DEBUG", "") not in ("", "0"):
                raise
            _say(f"error: {_message(error)}")
            raise typer.Exit(1) from None

    return run


# ---- commands


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"sparsestore {__version__}\n")
        raise typer.Exit


def _set_debug(wanted: bool) -> None:
    if wanted:
        os.environ["SPARSESTORE_DEBUG"] = "1"


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks (as SPARSESTORE_DEBUG=1 does).", callback=_set_debug)
    ] = False,
) -> None:
    """Store large sparse matrices on disk and train Keras from them in shuffled batches."""


def _columns(given: list[str] | None) -> dict[str, Any] | None:
    """Arrays of the columns named by `--column`, mapped."""
    if not given:
        return None
    from sparsestore.sources.npy import mapped_column

    columns = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise typer.BadParameter(f"--column {text}: expected NAME=FILE, such as y=labels.npy")
        if name in columns:
            raise typer.BadParameter(f"--column {text}: the column {name!r} has a file already, expected one for each")
        columns[name] = mapped_column(Path(path))
    return columns


def _lines_of(path: str | None) -> list[str] | None:
    """Lines of a text file."""
    if path is None:
        return None
    from sparsestore.sources.file import check_file, check_mark

    check_file(Path(path))
    encoded = Path(path).read_bytes()
    check_mark(Path(path), encoded)
    try:
        text = encoded.decode()
        return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text: {error.reason} at byte {error.start}") from None


def _print_preview(seen: Any) -> None:
    """What a conversion would do."""
    about = "" if seen.read == 1 else "about "
    rows = "an unknown number of" if seen.rows is None else f"{about}{seen.rows:,}"
    features = "features that are counted at the end" if seen.features is None else f"{seen.features:,} features"
    _show_facts(
        {
            "source": f"{seen.source} ({seen.format}), of which {seen.read:.3g} was looked at",
            "options": ", ".join(f"{name}={value!r}" for name, value in seen.options.items()) or "none",
            "shape": f"{rows} rows x {features}",
            "entries": f"{about}{seen.nnz:,} {seen.dtype}",
            "columns": ", ".join(f"{name} ({dtype})" for name, dtype in seen.columns.items()) or "none",
            "steps": "; ".join(seen.steps),
            "store": f"{about}{seen.store_bytes:,} bytes, of {seen.free_bytes:,} that are free",
            "memory": f"at most {seen.memory_bytes:,} bytes, beside libraries and names of features",
            "time": f"about {seen.seconds:.1f} s",
        }
    )
    _print("", "first rows:")
    _print_rows(seen.head)
    for problem in seen.problems:
        _say(f"error: {problem}")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """Rows, a line each: columns, then pairs of feature and value."""
    for shown in rows:
        beside = " ".join(f"{name}={value}" for name, value in shown["columns"].items())
        features = shown.get("features", shown["indices"])
        pairs = [f"{feature}:{value}" for feature, value in zip(features, shown["data"], strict=True)]
        more = f" ... {len(pairs) - _PAIRS} more" if len(pairs) > _PAIRS else ""
        _print(f"{shown['row']}  {beside}  {' '.join(pairs[:_PAIRS])}{more}".rstrip())


@app.command(help=CONVERT_HELP)
@_reported
@with_source_options
def convert(
    src: Annotated[str, typer.Argument(metavar="SRC", help="File, or store, to convert.", show_default=False)],
    dst: Annotated[str, typer.Argument(metavar="DST", help="Path of the new store.", show_default=False)],
    format: Format = None,
    shuffle: Shuffle = False,
    seed: Seed = None,
    profile: StoreProfile = Profile.raw,
    max_bytes: MaxBytes = "1GiB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the rows of a store at DST.")] = False,
    resume: Resume = True,
    column: Columns = None,
    duplicates: DuplicateEntries = Duplicates.sum,
    feature_names: FeatureNames = None,
    scratch: Scratch = None,
    workers: Workers = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, the first rows, size, time and memory.")
    ] = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Convert a file into a store."""
    from sparsestore.convert import convert as convert_source

    arguments: dict[str, Any] = {
        "format": format,
        "shuffle": shuffle,
        "seed": seed,
        "profile": profile.value,
        "columns": _columns(column),
        "max_bytes": max_bytes,
        "overwrite": overwrite,
        "duplicates": duplicates.value,
        "feature_names": _lines_of(feature_names),
        "scratch": scratch,
        **given(options),
    }
    if dry_run:
        from sparsestore.preview import preview

        seen = preview(src, dst, workers=workers, **arguments)
        _show_json(seen.to_json()) if as_json else _print_preview(seen)
        if seen.problems:
            raise typer.Exit(1)
        return
    start = time.perf_counter()
    with _progress("converting", as_json) as progress:
        convert_source(src, dst, resume=resume, workers=workers, progress=progress, **arguments)
    seconds = time.perf_counter() - start
    _print_store({**_facts(dst), "seconds": round(seconds, 3)}, as_json)


@app.command(short_help="Append the rows of a file to a store.")
@_reported
@with_source_options
def append(
    src: Annotated[str, typer.Argument(metavar="SRC", help="File with the new rows.", show_default=False)],
    dst: Annotated[str, typer.Argument(metavar="DST", help="Path of an existing store.", show_default=False)],
    format: Format = None,
    shuffle: Shuffle = False,
    seed: Seed = None,
    max_bytes: MaxBytes = "1GiB",
    grow_features: Annotated[bool, typer.Option("--grow-features", help="Allow a file wider than the store.")] = False,
    resume: Resume = True,
    column: Columns = None,
    duplicates: DuplicateEntries = Duplicates.sum,
    feature_names: FeatureNames = None,
    scratch: Scratch = None,
    workers: Workers = 1,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Append the rows of a file to a store, as a new version of it.

    Formats and options are those of `convert`. The file must have the store's columns.
    """
    from sparsestore.convert import append_source

    start = time.perf_counter()
    with _progress("appending", as_json) as progress:
        append_source(
            src,
            dst,
            format=format,
            shuffle=shuffle,
            seed=seed,
            columns=_columns(column),
            max_bytes=max_bytes,
            grow_features=grow_features,
            resume=resume,
            duplicates=duplicates.value,
            feature_names=_lines_of(feature_names),
            scratch=scratch,
            workers=workers,
            progress=progress,
            **given(options),
        )
    seconds = time.perf_counter() - start
    _print_store({**_facts(dst), "seconds": round(seconds, 3)}, as_json)


@app.command()
@_reported
def info(path: StorePath, version: Version = None, as_json: Json = False) -> None:
    """Show what a store holds: shape, entries, columns, version."""
    _print_store(_facts(path, version), as_json)


@app.command()
@_reported
def head(
    path: StorePath,
    n: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 5,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Show the first rows: columns, then feature:value pairs."""
    from sparsestore import store

    with store.open(path, version=version) as opened:
        stop = min(n, opened.shape[0])
        x = opened[:stop]
        columns = {name: opened.column(name)[:stop].tolist() for name in opened.columns}
        names = opened.feature_names
    rows = []
    for row in range(stop):
        entries = slice(x.indptr[row], x.indptr[row + 1])
        rows.append(
            {
                "row": row,
                **{name: values[row] for name, values in columns.items()},
                "indices": x.indices[entries].tolist(),
                "data": x.data[entries].tolist(),
                **({} if names is None else {"features": names[x.indices[entries]].tolist()}),
            }
        )
    if as_json:
        _show_json(rows)
        return
    for row, shown in enumerate(rows):
        beside = " ".join(f"{name}={values[row]}" for name, values in columns.items())  # one may be named "data"
        features = shown.get("features", shown["indices"])
        pairs = " ".join(f"{feature}:{value}" for feature, value in zip(features, shown["data"], strict=True))
        _print(f"{row}  {beside}  {pairs}".rstrip())


@app.command(short_help="Show what an epoch costs and how good its shuffle is.")
@_reported
def plan(
    path: StorePath,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows of a batch.")] = 32,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Shuffled or in stored order.")] = True,
    seed: Seed = None,
    window_rows: Annotated[int | None, typer.Option("--window-rows", help="Rows shuffled together in memory.")] = None,
    block_rows: Annotated[int | None, typer.Option("--block-rows", help="Rows read together.")] = None,
    layout: Annotated[Layout, typer.Option("--layout", help="Form of x in a batch.")] = Layout.sparse,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Show, before training, what an epoch reads and holds and how good its shuffle is."""
    from sparsestore import store

    with store.open(path, version=version) as opened:
        planned = opened.plan(
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            window_rows=window_rows,
            block_rows="auto" if block_rows is None else block_rows,
            layout=layout.value,
        )
    if as_json:
        _show_json(planned.to_json())
    else:
        sys.stdout.write(f"{planned}\n")


@app.command(short_help="Measure how fast a store gives batches on this machine.")
@_reported
def bench(
    path: StorePath,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows of a batch.")] = 4096,
    layout: Annotated[Layout, typer.Option("--layout", help="Form of x in a batch.")] = Layout.sparse,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Shuffled or in stored order.")] = True,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the order.")] = 0,
    repeat: Annotated[int, typer.Option("--repeat", help="Epochs measured, warm and cold each.")] = 3,
    seconds: Annotated[float, typer.Option("--seconds", help="Cut an epoch short after so many.")] = 10.0,
    step_time: Annotated[
        list[float] | None,
        typer.Option(
            "--step-time",
            metavar="MS",
            help="A training step takes so long: how long does it wait for data? Repeatable. [default: 1, 5, 20]",
        ),
    ] = None,
    png: Annotated[str | None, typer.Option("--png", metavar="FILE", help="Draw the figures too.")] = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Measure how fast a store gives batches on this machine, beside what the machine does by itself.

    Rows, entries and bytes a second, against copying memory and reading the same files front to back; time to the first
    batch, CPU, peak memory, and how long training waits for data. Each epoch is read by a process of its own, first
    with the store's files in the page cache, then without: they are dropped from it, nothing is written. Takes up to
    two minutes, less where an epoch is short or --seconds is.
    """
    from sparsestore.bench import measure, picture

    if png is not None:
        picture.check(png)
    steps = {} if step_time is None else {"step_ms": step_time}
    found = measure(
        path,
        batch_size=batch_size,
        layout=layout.value,
        shuffle=shuffle,
        seed=seed,
        repeat=repeat,
        seconds=seconds,
        version=version,
        progress=False if as_json else None,
        **steps,
    )
    if png is not None:
        picture.draw(found, png)
    if as_json:
        _show_json(found.to_json())
        return
    from rich.console import Console

    from sparsestore.bench.table import rendered

    Console(highlight=False, markup=False).print(rendered(found))


@app.command()
@_reported
def verify(
    path: StorePath,
    deep: Annotated[
        bool, typer.Option("--deep", help="Every byte against its checksums, every row against the rules of CSR.")
    ] = False,
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="Every version that is there; what they share is looked at once.")
    ] = False,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Check a store: its documents and the lengths of its files, or with --deep every byte.

    Without --deep no data are read: the manifest and each segment.json are compared with their checksums, and each
    object must be there as a plain file with its length. Lists all problems, and exits with 1 where there are any.
    """
    from sparsestore.integrity import examine
    from sparsestore.storage import open_storage

    with _progress("verifying", as_json) as progress:
        storage = open_storage(path)
        found = examine(storage, version, deep=deep, all_versions=all_versions, progress=progress)
    if as_json:
        _show_json(
            {
                "path": path,
                "version": found.version,
                "versions": found.versions,
                "deep": deep,
                "sound": not found.problems,
                "problems": found.problems,
                "objects": found.objects,
                "bytes": found.n_bytes,
                "seconds": found.seconds,
            }
        )
    else:
        _print(*map(str, found.problems))
        n = len(found.problems)
        verdict = f"{n} problem{'s' * (n > 1)}" if n else "sound"
        if deep:
            looked = f"every byte of {found.objects:,} objects, {found.n_bytes:,} bytes in {found.seconds:.3g} s"
        else:
            looked = f"manifest, and lengths of {found.objects:,} objects; --deep checks every byte"
        _print(f"{path}: {verdict} ({looked})")
    if found.problems:
        raise typer.Exit(1)


EXPORT_HELP = """
Write the rows of a store to a file of another format.

\b
DST is a file of one of these formats:
  format         names that end in             options it knows
  svmlight       .svm .svmlight .libsvm  (+)   --label --zero-based --one-based --qid --no-qid
  matrix_market  .mtx .mm  (+)
  csv            .csv .tsv  (+)  (triples)     --feature-names --delimiter
  npz            .npz (scipy.sparse.load_npz)  --compressed
  parquet        .parquet                      --layout --feature-names
  h5ad           .h5ad (anndata.read_h5ad)     --index
  (+) .gz .bz2 .xz or .zst may follow
Numbers are written so that reading gives them back exactly. What a format can not hold is refused, or left out with a
warning that lists it. On any error nothing is left at DST.

\b
Examples
  sparsestore export clicks.zarr clicks.svm.gz
  sparsestore export cells.zarr cells.h5ad --index barcode
  sparsestore export clicks.zarr some.parquet --layout lists --rows :1000000
"""


@app.command(help=EXPORT_HELP, short_help="Write the rows of a store to a file of another format.")
@_reported
def export(
    path: StorePath,
    dst: Annotated[str, typer.Argument(metavar="DST", help="The file to be written.", show_default=False)],
    format: Annotated[str | None, typer.Option("--format", help="Format of DST, where its name does not tell.")] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="START:STOP", help="Some of the rows, such as 1000:2000.")
    ] = None,
    select: Annotated[
        str | None, typer.Option("--select", help="Some of the features, renumbered, such as 3,7-9.")
    ] = None,
    version: Version = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file at DST.")] = False,
    max_bytes: Annotated[
        str, typer.Option("--max-bytes", help="Memory that may be used, such as 500MB or 2GiB.")
    ] = "256MiB",
    label: Annotated[
        str | None, typer.Option("--label", help="Column with the labels of svmlight; y by default.")
    ] = None,
    zero_based: Annotated[
        bool | None, typer.Option("--zero-based/--one-based", help="Number of the first feature in svmlight; 1.")
    ] = None,
    qid: Annotated[
        bool | None, typer.Option("--qid/--no-qid", help="Whether svmlight gets the column qid; where it is there.")
    ] = None,
    feature_names: Annotated[
        bool | None, typer.Option("--feature-names", help="Triples: names of features in place of their numbers.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option("--delimiter", help="What stands between fields of triples.")] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", help="Of Parquet: triples, or lists with the columns of the store.")
    ] = None,
    index: Annotated[str | None, typer.Option("--index", help="Column of text with the names of h5ad's rows.")] = None,
    compressed: Annotated[bool | None, typer.Option("--compressed", help="Deflate the arrays of an npz file.")] = None,
    as_json: Json = False,
) -> None:
    """Write the rows of a store to a file of another format."""
    from sparsestore.export import export as export_store

    options = given(
        {
            "label": label,
            "zero_based": zero_based,
            "qid": qid,
            "feature_names": feature_names,
            "delimiter": delimiter,
            "layout": layout,
            "index": index,
            "compressed": compressed,
        }
    )
    start = time.perf_counter()
    with _progress("exporting", as_json) as progress:
        found = export_store(
            path,
            dst,
            format=format,
            version=version,
            rows=rows,
            select=select,
            overwrite=overwrite,
            max_bytes=max_bytes,
            progress=progress,
            **options,
        )
    seconds = time.perf_counter() - start
    facts = {
        "path": found.path,
        "format": found.format,
        "rows": found.rows,
        "features": found.features,
        "bytes": found.nbytes,
        "warnings": found.warnings,
        "seconds": round(seconds, 3),
    }
    if as_json:
        _show_json(facts)
        return
    _show_facts(
        {
            "file": f"{found.path} ({found.format})",
            "shape": f"{found.rows:,} rows x {found.features:,} features",
            "bytes": f"{found.nbytes:,}",
            "time": f"{seconds:.1f} s",
        }
    )


@app.command(short_help="Merge many small segments into large ones.")
@_reported
def optimize(
    path: StorePath,
    reshuffle: Annotated[
        bool, typer.Option("--reshuffle", help="Put all rows in random order, exactly; row_id keeps their numbers.")
    ] = False,
    seed: Seed = None,
    profile: Annotated[
        Profile | None,
        typer.Option("--profile", help="Write all that is kept in another profile anew: raw or compact."),
    ] = None,
    max_bytes: MaxBytes = "1GiB",
    as_json: Json = False,
) -> None:
    """Merge many small segments into large ones, as a new version with the same rows, after thousands of appends.

    Rows may be appended meanwhile. Where it was interrupted, the same command goes on. Who has the store open keeps the
    version he opened, and gc removes the old segments. A split with the same seed gives other rows afterwards.
    """
    from sparsestore import maintain

    before = _facts(path)
    start = time.perf_counter()
    with _progress("optimizing", as_json) as progress:
        maintain.optimize(
            path,
            reshuffle=reshuffle,
            seed=seed,
            profile=None if profile is None else profile.value,
            max_bytes=max_bytes,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    after = {**_facts(path), "seconds": round(seconds, 3), "segments_before": before["segments"]}
    if not as_json and after["version"] == before["version"]:
        _print(f"{path}: nothing to merge")
        return
    _print_store(after, as_json)


@app.command(short_help="Remove old versions and unused files.")
@_reported
def gc(
    path: StorePath,
    keep_versions: Annotated[int, typer.Option("--keep-versions", min=1, help="How many versions stay.")] = 1,
    older_than: Annotated[
        str, typer.Option("--older-than", help="Age from which unused files go, such as 24h, 30m or 0s.")
    ] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, remove nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove old versions, and files that no version names and no writer is still writing."""
    from sparsestore import maintain

    removed = maintain.gc(path, keep_versions=keep_versions, older_than=older_than, dry_run=dry_run)
    if as_json:
        _show_json({"path": path, "dry_run": dry_run, "removed": removed})
        return
    _print(*(f"{'would remove' if dry_run else 'removed'} {name}" for name in removed))
    if not removed:
        _print("nothing to remove")


def main() -> None:
    """Run the command line; the console script `sparsestore`."""
    if sys.stdout is None or sys.stderr is None:  # a daemon may have closed them: what is said there goes nowhere
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    _show_log()
    for stream in (sys.stdout, sys.stderr):  # a name may hold bytes that are no text, or letters that a terminal lacks
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with _interrupts_heard():
            app(prog_name="sparsestore")
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(_interrupted())
