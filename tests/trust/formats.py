"""Damaged files of the formats that `parsers` has not: the right rows, or one error that names the file.

What Arrow, HDF5, zarr and SQLite make of damaged bytes is theirs, and is not compared: that they end, in bounded
memory, and that it is one error, is. What this package parses itself is read a second time in other pieces: it must be
the same. Sound files must be read as they were made.
"""

from __future__ import annotations

import faulthandler
import random
import re
import shutil
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

import sparsestore as ss
from sparsestore import csr
from sparsestore.errors import SparsestoreError
from sparsestore.sources import registry
from trust import format_inputs
from trust.campaign import Campaign, Tally
from trust.format_inputs import Made
from trust.parsers import CPU_SECONDS, MAX_BYTES, Fault, _limits, _peak

OWN = (
    *("libffm", "lda_c", "uci", "vw", "csv", "categories", "ranges", "triples", "texts", "arff"),
    "tfrecord",
)
"""Sources that this package parses itself: text, and records."""
OTHERS = ("parquet", "arrow", "sqlite", "hdf5", "h5ad", "tenx", "binsparse")
"""Those that libraries parse: a third as many cases."""
TURNS = (*OWN * 3, *OTHERS)
AGAIN = 3
"""One case of so many is read in other pieces as well."""
CONVERTED = 17
"""One case of so many is converted into a store, and read from it."""
HELD = dict.fromkeys(OWN, MAX_BYTES + (24 << 20)) | dict.fromkeys(OTHERS, MAX_BYTES + (64 << 20))
"""What reading may hold: `max_bytes` and 16 MiB as the sources say, and what an allocator, or a library, keeps."""
HANGS_S = 180

# Why a file is refused in small pieces and not in large ones.
_OF_MEMORY = re.compile("max_bytes|expected at most|takes .* bytes|more than")


@dataclass(frozen=True, eq=False)
class Found:
    """What a source gives."""

    shape: tuple[int, int]
    rows: Any
    features: Any
    values: Any
    columns: dict[str, Any]
    names: list[str] | None


def run(cases: Sequence[int], folder: Path, *, of: Sequence[str] = TURNS, behind: int = 0) -> Tally:
    """Run inputs of these sources by their numbers, which are drawn as those behind so many cases."""
    tally = Tally()
    with warnings.catch_warnings(), _limits():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")  # zarr's, of files that are none
        for case in cases:
            turn, place = divmod(case, len(of))
            source = of[place]
            try:
                outcome = _timed(source, random.Random(behind + case), turn, folder)
            except Fault as fault:
                outcome = "fault"
                tally.fault(case, f"{source}: {fault}")
            tally.outcomes[f"{source}: {outcome}"] += 1
    return tally


def _timed(source: str, rng: random.Random, turn: int, folder: Path) -> str:
    """A case; where a library does not end, which no signal of Python's can end, the process is ended."""
    drawn = rng.getstate()
    for again in (False, True):  # loops that are compiled the first time take long
        rng.setstate(drawn)
        faulthandler.dump_traceback_later(HANGS_S, exit=True)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            return _case(source, rng, turn, folder)
        except Fault as fault:
            if again or "of the processor" not in str(fault):
                raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
    raise AssertionError


def _case(source: str, rng: random.Random, turn: int, folder: Path) -> str:
    made = format_inputs.made(source, rng)
    if isinstance(made.data, bytes) and format_inputs.endless(made.data):
        return "left out: HDF5's library does not end"
    path = _placed(made, folder / f"x{made.suffix}")
    small = int(rng.choice([4096, 65536]))
    found, error = _measured(source, path, made)
    if made.sound and made.x is not None:
        if found is None:
            raise Fault(f"a sound file was refused: {error}")
        _as_made(found, made)
    if turn % AGAIN == 0 and source in OWN:
        again, other = _read(path, made, small)
        if (again is None) != (found is None) and not _OF_MEMORY.search(str(error or other)):
            raise Fault(f"in pieces of {small} bytes it is {other or 'read'}, else {error or 'read'}")
        if again is not None and found is not None:
            _same(again, found)
    if turn % CONVERTED == 0:
        _convert(path, made, found, error)
    return "read" if found else "refused"


def _placed(made: Made, path: Path) -> Path:
    """The file, or the folder; what was there is gone."""
    if path.is_dir():
        shutil.rmtree(path)
    if isinstance(made.data, bytes):
        path.write_bytes(made.data)
        return path
    path.mkdir()
    for name, payload in made.data.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(payload)
    return path


def _measured(source: str, path: Path, made: Made) -> tuple[Found | None, Exception | None]:
    """Read within the bound of memory; what is loaded and compiled the first time is not counted."""
    for attempt in range(2):
        before = _peak(reset=True)
        found, error = _read(path, made, MAX_BYTES)
        if (held := _peak() - before) <= HELD[source]:
            break
        if attempt:
            raise Fault(f"held {held} bytes, expected at most {HELD[source]}")
    return found, error


def _read(path: Path, made: Made, max_bytes: int) -> tuple[Found | None, Exception | None]:
    """What the source gives, or the error it raises."""
    try:
        opened: Any = registry.open_source(path, **made.options)
        if hasattr(opened, "hold"):
            opened.hold(16 << 20)
        parts = list(opened.blocks(max_bytes))
        n_rows = opened.n_rows
        if n_rows is None and not opened.sorted_rows:
            n_rows = max((int(part.rows.max(initial=-1)) + 1 for part in parts), default=0)
        beside: dict[str, Any] = {}
        if not opened.sorted_rows and opened.columns and n_rows < 10**6:  # type: ignore[operator]
            if hasattr(opened, "beside"):
                beside = opened.beside(np.arange(n_rows))
            else:
                with opened.following() as following:
                    beside = following(n_rows)
    except (ValueError, SparsestoreError) as error:
        message = str(error)
        clear = str(path) in message and message.isprintable() and len(message) <= 700 + 2 * len(str(path))
        if not clear:
            raise Fault(f"an error that is not clear: {error!r}") from error
        return None, error
    except Fault:
        raise
    except Exception as error:
        raise Fault(f"{type(error).__name__} instead of ValueError: {error}") from error
    return _found(opened, parts, beside, n_rows or 0), None


def _found(opened: Any, parts: list[Any], beside: dict[str, Any], n_rows: int) -> Found:
    """What was read, checked for what all sources promise."""
    names = None if getattr(opened, "feature_names", None) is None else [str(name) for name in opened.feature_names]
    if not opened.sorted_rows:
        rows, features, values = (
            np.concatenate([getattr(part, name) for part in parts] or [np.empty(0, int)])
            for name in ("rows", "features", "values")
        )
        width = opened.n_features or getattr(opened, "width", 0) or int(features.max(initial=-1)) + 1
        shape = n_rows, width
        if len(rows) and not (
            0 <= rows.min() <= rows.max() < shape[0] and 0 <= features.min() <= features.max() < shape[1]
        ):
            raise Fault(f"entries are not inside of the shape {shape}")
        return Found(shape, rows, features, values, beside, names)
    for part in parts:
        try:
            csr.check(part.x, canonical=True)
        except ValueError as error:
            raise Fault(f"rows that are none: {error}") from error
        if wrong := [name for name, values in part.columns.items() if len(values) != len(part.x)]:
            raise Fault(f"columns {wrong} have not a value for each row")
    lengths = np.concatenate([np.diff(part.x.indptr) for part in parts] or [np.empty(0, int)])
    features = np.concatenate([part.x.indices for part in parts] or [np.empty(0, int)])
    values = np.concatenate([part.x.data for part in parts] or [np.empty(0)])
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in opened.columns if parts}
    width = opened.n_features or max([len(names or ()), *(part.x.n_features for part in parts)])
    if opened.n_rows not in (None, len(lengths)):
        raise Fault(f"{len(lengths)} rows, expected {opened.n_rows}")
    return Found((len(lengths), width), np.repeat(np.arange(len(lengths)), lengths), features, values, columns, names)


def _entries(found: Found) -> sparse.csr_array:
    """A matrix; entries at one place are summed, and zeros left out."""
    with np.errstate(invalid="ignore", over="ignore"):
        x = sparse.csr_array((found.values.astype(float), (found.rows, found.features)), shape=found.shape)
        x.sum_duplicates()
    x.eliminate_zeros()
    return x


def _as_made(found: Found, made: Made) -> None:
    """Compare with what was put into the file."""
    x = _entries(found).toarray()
    if made.rows is not None:
        order = [list(found.columns["r"]).index(row) for row in made.rows]
        x = x[order]
    if made.names is not None:
        if sorted(found.names or []) != sorted(made.names):
            raise Fault(f"features are called {found.names}, expected {made.names}")
        x = x[:, [(found.names or []).index(name) for name in made.names]]
    if not np.array_equal(x, made.x):  # type: ignore[arg-type]
        raise Fault(f"values differ from those put in: {x[:5]!r}, expected {made.x[:5]!r}")  # type: ignore[index]


def _same(a: Found, b: Found) -> None:
    """The same rows, columns and names."""
    if a.shape != b.shape or a.names != b.names:
        raise Fault(f"in other pieces {a.shape} {a.names}, else {b.shape} {b.names}")
    if a.shape[0] < 10**7:
        x, y = _entries(a), _entries(b)
        for part in ("indptr", "indices", "data"):
            if not np.array_equal(getattr(x, part), getattr(y, part), equal_nan=part == "data"):
                raise Fault(f"in other pieces {part} are {getattr(x, part)[:9]}, else {getattr(y, part)[:9]}")
    for name, values in a.columns.items():
        if not np.array_equal(values, b.columns[name], equal_nan=values.dtype.kind == "f"):
            raise Fault(f"in other pieces column {name} differs")


def _convert(path: Path, made: Made, found: Found | None, error: Exception | None) -> None:
    """The same through a whole conversion, which leaves nothing where it fails."""
    if found is not None and found.shape[0] > 10**5:
        return  # each row is written: not here
    folder = path.parent / "stores"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with ss.convert(path, folder / "s.zarr", progress=False, max_bytes="24MiB", **made.options) as store:
            if found is None:
                raise Fault(f"was converted, though the source says {error}")
            x, y = sparse.csr_array(store[:].astype(float)), _entries(found)
            x.eliminate_zeros()
            parts = [(x.indices, y.indices), (x.data, y.data)]
            same = all(np.allclose(np.sort(a), np.sort(b), equal_nan=True) for a, b in parts if len(a) == len(b))
            if x.shape != y.shape or x.nnz != y.nnz or not same:
                raise Fault(f"the store has {x.shape} and {x.nnz} entries, expected {y.shape} and {y.nnz}")
            if problems := store.verify(progress=False):
                raise Fault(f"the store is not sound: {problems}")
    except (ValueError, SparsestoreError) as failure:
        if left := [entry.name for entry in folder.iterdir()]:
            raise Fault(f"{left} was left: {failure}") from failure
        if found is not None:
            raise Fault(f"was not converted: {failure!r}") from failure
    except Fault:
        raise
    except Exception as failure:
        raise Fault(f"converting: {type(failure).__name__}: {failure}") from failure


CAMPAIGN = Campaign(
    name="formats",
    about="damaged files of all other formats: one error that names the file, or the same rows however they are read",
    total=40 * 40_000,
    sample=1_600,
    few=120,
    unit=4_000,
    run=run,
    limit_s=1800,
)
