"""Files that are damaged in every way, read as each format: the right rows, or one error that says where."""

from __future__ import annotations

import io
import random
import re
import resource
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.io import mmread
from sklearn.datasets import load_svmlight_file

import sparsestore as ss
from sparsestore import csr
from sparsestore.errors import SparsestoreError
from sparsestore.kernels import tokenise
from sparsestore.sources import registry
from sparsestore.sources.base import Source
from trust import inputs, oracles
from trust.campaign import Campaign, Tally

SOURCES = ("svmlight", "matrix_market", "npy", "npz")
SUFFIX = {"svmlight": ".svm", "matrix_market": ".mtx", "npy": ".npy", "npz": ".npz"}
MAX_BYTES = 1 << 20
BOUND = MAX_BYTES + (24 << 20)
"""What reading may hold: `max_bytes` and 16 MiB as the sources say, and what an allocator keeps for later."""
CPU_SECONDS = 10
BOMBS = 499  # one input of so many is a bomb
CONVERTED = 101  # one input of so many is converted into a store, and read from it

# Why a file is refused that other programs read: each a line of docs/limits.md.
POLICIES = re.compile(
    "|".join(
        (
            "is beyond float32",
            "is a whole number that float32 lacks",
            "stands twice in the row",
            "none of the .* has an entry",
            "there are no rows",
            "starts with a byte order mark",
            "label .*, expected a whole number from 0",
            "features, expected at most n_features",
            "the line has at least",
            "damaged .* data before byte",
            "cut short: the file ends at byte",
            r"has \d+ bytes, expected \d+ for",
            "not a .npy header",
            "can not be stored",
            "expected 2 dimensions",
            "holds Python objects",
            "Fortran order",
            "not a sound .npz archive",
            "is in the archive twice",
            "expected names as of numpy",
            "compression method",
            "members, expected at most",
            "entries, expected at most",
            "is encrypted",
            "damaged",
            "declares .* bytes, more than",
            r"(indptr|indices|row|col|offsets|shape|data) (has|is)",
            "has shape",
            r"has \d+ features, expected at most",
            "give a wider dtype",
            "do not divide",
            "is in scipy's format",
            "format is of dtype",
            r"declares \d+ (rows|entries)",
            "numbers from",
            "no row has a label",
            "goes up to",
        )
    )
)


# what scipy is asked to read: its reader crashes on some others
_CALM = re.compile(
    rb"%%MatrixMarket (matrix )[a-z -]+\n(?:%[ -~]*\n)*[0-9]{1,4} [0-9]{1,4}(?: [0-9]{1,4})?\n"
    rb"(?:[1-9][0-9]{0,4} [1-9][0-9]{0,4}(?: [-+.0-9e]{1,30})?\n)*(?:[-+.0-9e]{1,30}\n)*"
)


class Fault(Exception):  # noqa: N818
    """What must never be."""


def run(cases: Sequence[int], folder: Path) -> Tally:
    """Run inputs by their numbers."""
    tally = Tally()
    with warnings.catch_warnings(), _limits():
        warnings.simplefilter("error")
        for case in cases:
            source = SOURCES[case % len(SOURCES)]
            try:
                outcome = _timed(source, case, folder)
            except Fault as fault:
                outcome = "fault"
                tally.fault(case, f"{source}: {fault}")
            tally.outcomes[f"{source}: {outcome}"] += 1
    return tally


@contextmanager
def _limits() -> Iterator[None]:
    """Address space of 4 GiB more than now, and an alarm by time of the processor (other processes may slow us)."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def ring(*_: object) -> None:
        raise Fault(f"took more than {CPU_SECONDS} s of the processor")

    before = signal.signal(signal.SIGPROF, ring)
    resource.setrlimit(resource.RLIMIT_AS, (now + (4 << 30), hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _timed(source: str, case: int, folder: Path) -> str:
    rng = random.Random(case)
    if case // len(SOURCES) % BOMBS == BOMBS - 1:
        return _bomb(source, rng, folder)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return _input(source, rng, folder, through_store=case // len(SOURCES) % CONVERTED == 0)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _input(source: str, rng: random.Random, folder: Path, through_store: bool) -> str:
    """One damaged file, read and compared."""
    suffix, data = SUFFIX[source], getattr(inputs, source)(rng)
    text: bytes | None = None
    if source in ("svmlight", "matrix_market"):
        text = data = inputs.damaged_text(rng, data)
        if rng.random() < 0.3:
            packing = rng.choice(list(inputs.PACK))
            data = inputs.packed(rng, text, packing)
            text, suffix = oracles.unpacked(data, packing), suffix + packing
    options = _options(source, rng)
    path = folder / f"x{suffix}"
    path.write_bytes(data)
    found, error, opened = _read(path, options, rng.choice([4096, MAX_BYTES]))
    compare = {"svmlight": _svmlight, "matrix_market": _matrix_market, "npy": _npy, "npz": _npz}[source]
    outcome = compare(path, data if text is None and source[0] == "n" else text, options, found, error, opened)
    if through_store:
        _convert(path, options, found, error)
    return outcome


def _options(source: str, rng: random.Random) -> dict[str, Any]:
    given = {
        "n_features": rng.choice([*[None] * 7, 3, 200, 10**9]),
        "dtype": rng.choice([None, "float32", "float64"]) if source[0] == "n" else rng.choice(["float32", "float64"]),
    }
    if source == "svmlight":
        given |= {
            "zero_based": rng.random() < 0.3,
            "multilabel": rng.choice([False, False, False, True, 4]),
            "qid": rng.choice([None, None, True, False]),
            "sort": rng.random() < 0.4,
        }
    return {name: value for name, value in given.items() if value is not None}


Found = tuple[tuple[int, int], Any, Any, Any, dict[str, Any]]
"""Shape; row, feature and value of each entry in the order read; columns."""


def _read(path: Path, options: dict[str, Any], max_bytes: int) -> tuple[Found | None, ValueError | None, Source | None]:
    """What the source gives, or the error it raises."""
    opened = None
    try:
        opened = registry.open_source(path, **options)
        parts = list(opened.blocks(max_bytes))
    except ValueError as error:
        message = str(error)
        if not message.startswith(str(path)) or not message.isprintable() or len(message) > 600 + len(str(path)):
            raise Fault(f"an error that is not clear: {error!r}") from error
        return None, error, opened
    except Fault:
        raise
    except Exception as error:
        raise Fault(f"{type(error).__name__} instead of ValueError: {error}") from error
    if not opened.sorted_rows:
        joined = [
            np.concatenate([getattr(part, n) for part in parts] or [np.empty(0, int)])
            for n in ("rows", "features", "values")
        ]
        return ((opened.n_rows or 0, opened.n_features or 0), *joined, {}), None, opened  # type: ignore[return-value]
    for part in parts:
        try:
            csr.check(part.x, canonical=True)
        except ValueError as error:
            raise Fault(f"rows that are none: {error}") from error
    lengths = np.concatenate([np.diff(part.x.indptr) for part in parts] or [np.empty(0, int)])
    features = np.concatenate([part.x.indices for part in parts] or [np.empty(0, int)])
    values = np.concatenate([part.x.data for part in parts] or [np.empty(0)])
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in opened.columns if parts}
    width = opened.n_features or max((part.x.n_features for part in parts), default=0)
    return ((len(lengths), width), np.repeat(np.arange(len(lengths)), lengths), features, values, columns), None, opened


def _same(what: str, found: Any, wanted: Any) -> None:
    if not np.array_equal(found, wanted, equal_nan=np.asarray(wanted).dtype.kind == "f"):
        raise Fault(f"{what} differ: {np.asarray(found)[:20]!r}, expected {np.asarray(wanted)[:20]!r}")


def _refused(path: Path, error: ValueError, sound: bool, line: int = 0) -> str:
    """A file that was refused: for a reason, if it is sound, and else at the line that another reader finds."""
    message = str(error)
    if POLICIES.search(message):
        return "refused by a documented limit" if sound else "refused"
    if sound:
        raise Fault(f"a sound file was refused: {message}")
    if line and not message.startswith(f"{path}:{line}: "):
        raise Fault(f"the offence is in line {line}: {message}")
    return "refused"


def _svmlight(
    path: Path, text: bytes | None, options: dict[str, Any], found: Found | None, error: Any, opened: Any
) -> str:
    if text is None:
        if found is not None:
            raise Fault("compressed data were read that Python's own modules refuse")
        return "refused"
    if opened is None:
        if not POLICIES.search(str(error)) and not re.search(r":\d+: ", str(error)):
            raise Fault(f"no line: {error}")
        return "refused"
    raw = np.frombuffer(text + b"\n", np.uint8)
    how = {
        "base": 0 if options["zero_based"] else 1,
        "limit": options.get("n_features", 10**18) - 1,
        "ascending": not options["sort"],
        "multilabel": options["multilabel"] is not False,
        "qid": opened._qid,
    }
    lines, twin = tokenise.svmlight(raw, **how), tokenise.svmlight_numpy(raw, **how)
    if (lines.status, lines.offset) != (twin.status, twin.offset):
        raise Fault(f"the kernel says {lines[:2]}, its twin {twin[:2]}")
    if error is not None:
        return _refused(path, error, twin.status == tokenise.OK, 1 + text.count(b"\n", 0, twin.offset))
    if twin.status != tokenise.OK or found is None:
        raise Fault(f"a bad file was read: {twin[:2]}")
    for name, a, b in zip(twin._fields, lines, twin, strict=True):
        _same(f"kernel and twin, {name},", a, b)
    _, rows, features, values, columns = found
    wanted = np.repeat(np.arange(len(twin.starts)), np.diff(twin.indptr))
    order = np.lexsort((twin.indices, wanted))
    _same("rows", rows, wanted)
    _same("features", features, twin.indices[order])
    _same("values", values, twin.values[order].astype(options["dtype"]))
    if options["multilabel"] is False and len(twin.starts):
        _same("labels", columns["y"], twin.labels.astype(options["dtype"]))
    return _as_scikit_learn(path, text, options, found)


def _as_scikit_learn(path: Path, text: bytes, options: dict[str, Any], found: Found) -> str:
    """Compare with scikit-learn's reader, where it reads the file."""
    _, rows, features, values, columns = found
    try:
        x, y = load_svmlight_file(
            io.BytesIO(text),
            zero_based=options["zero_based"],
            multilabel=options["multilabel"] is not False,
            dtype=options["dtype"],
            n_features=options.get("n_features"),
        )
    except Exception:  # it is stricter in places: indices beyond int32, rows that it sorts not
        return "read, which scikit-learn does not"
    if b"qid:" in text:
        return "read, qid"
    _same("scikit-learn's features", features, x.indices)
    _same("scikit-learn's rows", rows, np.repeat(np.arange(x.shape[0]), np.diff(x.indptr)))
    _same("scikit-learn's values", values, x.data)
    if options["multilabel"] is False and len(y):
        _same("scikit-learn's labels", columns["y"], y.astype(options["dtype"]))
    elif len(y):
        _same("scikit-learn's numbers of labels", columns["y"].sum(axis=1), [len(set(labels)) for labels in y])
    return "read as scikit-learn does"


def _matrix_market(
    path: Path, text: bytes | None, options: dict[str, Any], found: Found | None, error: Any, opened: Any
) -> str:
    if text is None:
        if found is not None:
            raise Fault("compressed data were read that Python's own modules refuse")
        return "refused"
    try:
        wanted = oracles.matrix_market(text, options["dtype"], options.get("n_features"))
    except oracles.Wrong as wrong:
        if found is not None:
            raise Fault(f"a bad file was read, {wrong}") from None
        return _refused(path, error, False, wrong.line)
    if error is not None or found is None:
        return _refused(path, error, True)
    _same_entries(found, wanted)
    # it takes the 1 of 1e5 for a whole number
    spelt = b" integer " in text[:60] and re.search(rb"[0-9.]e", text)
    if _CALM.fullmatch(text) and not spelt and found[0][0] * found[0][1] < 10**6:
        try:
            x = sparse.coo_array(mmread(path, spmatrix=False))
        except Exception:  # of its own grammar: tabs, blanks in places, numbers that it takes or does not
            return "read, which scipy does not"
        dense = np.zeros(found[0])
        np.add.at(dense, (found[1], found[2]), found[3].astype(float))
        theirs = np.zeros((found[0][0], max(found[0][1], x.shape[1])))
        np.add.at(theirs, (x.row, x.col), x.data.astype(options["dtype"]).astype(float))
        with np.errstate(invalid="ignore"):
            if not np.allclose(dense, theirs[:, : found[0][1]], rtol=1e-6, equal_nan=True):
                raise Fault("scipy reads other values")
        return "read as scipy does"
    return "read"


def _same_entries(found: Found, wanted: oracles.Matrix) -> None:
    """The same shape and entries; those at one place summed on both sides, zeros out."""
    if found[0] != wanted[0]:
        raise Fault(f"shape {found[0]}, expected {wanted[0]}")
    both = []
    for rows, features, values in (found[1:4], wanted[1:4]):
        order = np.lexsort((features, rows))
        with np.errstate(invalid="ignore"):  # a nan that signals
            rows, features, values = rows[order].astype(int), features[order].astype(int), values[order].astype(float)
        first = np.ones(len(rows), bool)
        first[1:] = (rows[1:] != rows[:-1]) | (features[1:] != features[:-1])
        with np.errstate(invalid="ignore", over="ignore"):
            sums = np.add.reduceat(values, np.flatnonzero(first)) if len(values) else values
        kept = sums != 0
        both.append((rows[first][kept], features[first][kept], sums[kept]))
    _same("rows", both[0][0], both[1][0])
    _same("features", both[0][1], both[1][1])
    if not np.allclose(both[0][2], both[1][2], rtol=1e-6, atol=0, equal_nan=True):
        raise Fault(f"values {both[0][2][:20]}, expected {both[1][2][:20]}")


def _npy(path: Path, data: bytes, options: dict[str, Any], found: Found | None, error: Any, opened: Any) -> str:
    array = oracles.npy(data)
    if error is not None or found is None:
        return _refused(path, error, array is not None and array.ndim == 2 and array.dtype.kind in "biuf")
    if array is None:
        raise Fault("read, which numpy does not")
    rows, features = np.nonzero(array)
    shape = (array.shape[0], options.get("n_features", array.shape[1]))
    _same_entries(found, (shape, rows, features, _cast(array[rows, features], opened)))
    return "read as numpy does"


def _npz(path: Path, data: bytes, options: dict[str, Any], found: Found | None, error: Any, opened: Any) -> str:
    wanted = oracles.npz(data)
    if error is not None or found is None:
        return _refused(path, error, wanted is not None)
    if wanted is None:
        raise Fault("read, which is no matrix of numpy's arrays")
    if opened.dtype == bool:  # of several entries at a place scipy makes one: true and true is true
        found, wanted = (_distinct(part) for part in (found, wanted))
    shape = (wanted[0][0], options.get("n_features", wanted[0][1]))
    _same_entries(found, (shape, wanted[1], wanted[2], _cast(wanted[3], opened)))
    return "read as numpy does"


def _distinct(matrix: Any) -> Any:
    shape, rows, features, values = matrix[:4]
    places = sorted({(int(r), int(f)) for r, f, v in zip(rows, features, values, strict=True) if v})
    at = np.array(places, int).reshape(-1, 2)
    return shape, at[:, 0], at[:, 1], np.ones(len(at), bool), {}


def _cast(values: Any, opened: Any) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(opened.dtype)


def _convert(path: Path, options: dict[str, Any], found: Found | None, error: ValueError | None) -> None:
    """The same through a whole conversion, which leaves nothing where it fails."""
    folder = path.parent / "stores"
    folder.mkdir(exist_ok=True)
    dst = folder / f"{len(list(folder.iterdir()))}.zarr"
    before = sorted(folder.iterdir())
    try:
        with ss.convert(path, dst, progress=False, max_bytes="24MiB", **options) as store:
            if found is None:
                raise Fault(f"was converted, though the source says {error}")
            x = sparse.csr_array(store[:])
            rows = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
            _same_entries((x.shape, rows, x.indices, x.data, {}), found[:4])
            if store.verify():
                raise Fault(f"the store is not sound: {store.verify()}")
    except (ValueError, SparsestoreError) as failure:
        if sorted(folder.iterdir()) != before:
            raise Fault(f"something was left at {dst}: {failure}") from failure
        if found is not None and "sum of its duplicates" not in str(failure):
            raise Fault(f"was not converted: {failure!r}") from failure


def _bomb(source: str, rng: random.Random, folder: Path) -> str:
    """A file made to fill the memory, read within the bound; what it says is not compared."""
    suffix, data = inputs.bomb(rng, source)
    path = folder / f"bomb{suffix}"
    path.write_bytes(data)
    del data
    before = _peak(reset=True)
    signal.setitimer(signal.ITIMER_PROF, 6 * CPU_SECONDS)
    try:
        for _ in registry.open_source(path).blocks(MAX_BYTES):
            pass
        outcome = "bomb read in bounded memory"
    except ValueError as error:
        if not str(error).startswith(str(path)):
            raise Fault(f"an error without a name: {error}") from error
        outcome = "bomb refused"
    except Fault:
        raise
    except Exception as error:
        raise Fault(f"bomb: {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.unlink()
    bound = BOUND + ((64 << 20) if suffix.endswith(".zst") else 0)
    if (peak := _peak() - before) > bound:
        raise Fault(f"bomb{suffix}: held {peak} bytes, expected at most {bound}")
    return outcome


def _peak(reset: bool = False) -> int:
    """The most resident memory since the last reset (proc(5): clear_refs, VmHWM)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


CAMPAIGN = Campaign(
    name="parsers",
    about="damaged files of every format: what other readers read, or one error with file and line",
    total=1_400_000,
    sample=12_000,
    few=300,
    unit=4_000,
    run=run,
    limit_s=900,
)
