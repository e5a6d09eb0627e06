"""Processes killed at any moment while they convert, append or collect garbage: nothing acknowledged is ever lost.

A case is a store in some state, a forked child that works on it, and SIGKILL. In even cases the parent kills it after a
time drawn from as long as the work usually takes; in odd ones it kills itself before, after or in the middle of a call
that changes the disk, the k-th of as many as the work usually makes: these are the same each time. What the child was
told is done it tells its parent through a pipe. Then all versions must be as they were before or after the work, the
work can be gone on with, and gc leaves nothing that no version names. A killed process loses nothing that it has
written: what a power cut takes is another matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.io
import scipy.sparse as sp

import sparsestore as ss
from sparsestore import maintain, sort, writer
from sparsestore.journal import JournalState, all_journals
from sparsestore.storage import LocalStorage
from trust.campaign import Campaign, Tally
from trust.small_store import place

conversion = sys.modules["sparsestore.convert"]  # the package's own name is that of the function

WIDTH = 60
LONG, SHORT = 220, 40
"""Rows of a source that is converted in several parts, and of one that is not."""
SOURCES = ("svm", "mtx", "npz", "memory")
BLOCK_BYTES = {"svm": 1 << 17, "mtx": 1 << 17, "npz": 1 << 12, "memory": 1 << 12}
"""With these each gives blocks of some dozen rows."""
TURNS = ("convert", "append", "overwrite", "appends", "convert", "append file", "gc")
"""What cases do, by turns."""
CHANGES = ("fsync", "ftruncate", "link", "mkdir", "open", "pwrite", "rename", "replace", "rmdir", "unlink", "write")
"""Calls that change the disk; opening does where it makes a file."""
AGAIN = 0.25
"""Cases in which what goes on after a kill is killed as well."""
LAST = 16
"""Calls at the end of the work, at which every third of the odd cases is killed: there a version is published."""
CHILD_S = 60

_write = os.write


# ------------------------------------------------------------------------------------------- rows, versions, steps


@dataclass(frozen=True, eq=False)
class Given:
    """Rows, and the source that has them."""

    x: sp.csr_array
    y: np.ndarray
    source: Any
    options: dict[str, Any]
    block_bytes: int
    names: list[str] | None = None
    """Of the features, where the store must have some."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """Columns of text."""

    def __len__(self) -> int:
        return len(self.y)


Content = tuple[tuple[Given, bool], ...]
"""What a version must have: rows of sources one after the other, and whether each one's were shuffled."""
Versions = dict[int, Content]


@dataclass(frozen=True, eq=False)
class Step:
    """A call that changes a store.

    Attributes
    ----------
    do : callable
        Gets the path of the store.
    states : callable
        From the versions before to the states that they go through, the last one when the call has ended.
    rows : int
        Of the source that is gone on with where the call was interrupted; 0 where there is none.
    refused : bool
        Whether the call is an error where there is a version.
    collects : bool
        Whether it takes versions away.
    known_again : bool
        Whether the call does nothing where the same one was killed after it published, and left its journal.
    """

    do: Callable[[Path], object]
    states: Callable[[Versions], list[Versions]]
    rows: int = 0
    refused: bool = False
    collects: bool = False
    known_again: bool = False


def _appended(given: Given, shuffled: bool, versions: Versions) -> list[Versions]:
    newest = max(versions)
    return [{**versions, newest + 1: (*versions[newest], (given, shuffled))}]


def _replaced(given: Given, shuffled: bool, versions: Versions) -> list[Versions]:
    return [{**versions, max(versions, default=0) + 1: ((given, shuffled),)}]


def _collected(keep: int, versions: Versions) -> list[Versions]:
    """Versions go from the oldest on."""
    numbers = sorted(versions)
    last = max(len(numbers) - keep, 0)
    return [{number: versions[number] for number in numbers[at:]} for at in range(1, last + 1)]


def convert(given: Given, how: dict[str, Any], *, overwrite: bool = False) -> Step:
    """A conversion."""

    def do(path: Path) -> None:
        with mock.patch.object(conversion, "BLOCK_BYTES", given.block_bytes):
            ss.convert(given.source, path, overwrite=overwrite, progress=False, **how, **given.options).close()

    return Step(do, partial(_replaced, given, bool(how.get("shuffle"))), len(given), refused=not overwrite)


def append(given: Given) -> Step:
    """Rows in memory, appended."""

    def do(path: Path) -> None:
        with ss.open(path) as store:
            store.append(given.x, y=given.y).close()

    return Step(do, partial(_appended, given, False))


def append_file(given: Given, how: dict[str, Any]) -> Step:
    """A source, appended as the command line does it."""

    def do(path: Path) -> None:
        with mock.patch.object(conversion, "BLOCK_BYTES", given.block_bytes):
            conversion.append_source(given.source, path, progress=False, **how, **given.options)

    states = partial(_appended, given, bool(how.get("shuffle")))
    return Step(do, states, len(given), known_again=how.get("resume", True))


def collect(keep: int) -> Step:
    """All garbage removed, whatever its age."""

    def do(path: Path) -> None:
        maintain.gc(path, keep_versions=keep, older_than=0)

    return Step(do, partial(_collected, keep), collects=True)


@dataclass(frozen=True, eq=False)
class Work:
    """What a child does.

    Attributes
    ----------
    name : str
        What is counted.
    key : tuple
        Works of one key take as long, and make the same calls.
    state : int
        Versions that the store has before; 0 for no store.
    profile : str
        Of the store.
    steps : list of Step
        One call after the other, each acknowledged.
    wreck : Step or None
        What another child did before, until it was killed.
    anew : Step or None
        The same as the first step, but what was begun is thrown away.
    usual : list of Step, or None
        What is done where nobody kills it, if it is not the same: the calls of a shuffle depend on its seed.
    """

    name: str
    key: tuple[Any, ...]
    state: int
    profile: str
    steps: list[Step]
    wreck: Step | None = None
    anew: Step | None = None
    usual: list[Step] | None = None


# --------------------------------------------------------------------------------------------------------- children


@dataclass(frozen=True)
class Moment:
    """When a child is killed: after so many seconds, or at a call.

    Attributes
    ----------
    seconds : float or None
    call : int
        Number of a call that changes the disk, from 1.
    how : {"before", "half", "after"}
        "half": after half of the bytes were written, where it writes some.
    """

    seconds: float | None = None
    call: int = 0
    how: str = "before"

    def __str__(self) -> str:
        return f"after {self.seconds * 1000:.1f} ms" if self.seconds is not None else f"{self.how} call {self.call}"


@dataclass
class Told:
    """What a child told before it was killed.

    Attributes
    ----------
    done : int
        Steps that were acknowledged.
    parts : int
        Rows of whole parts of the step that it was at, durable.
    calls : int
        That it made, where it came to the end.
    seconds : float
        That it worked, where it came to the end.
    problem : str
        Empty where it was killed as planned.
    """

    done: int = 0
    parts: int = 0
    calls: int = 0
    seconds: float = 0
    problem: str = ""


class _Calls:
    """Counts the calls of this process that change the disk, and kills it at one of them."""

    def __init__(self, moment: Moment) -> None:
        self.n = 0
        self._moment = moment

    def watch(self) -> None:
        """From now on, for as long as this process lives."""
        for name in CHANGES:
            real = getattr(os, name)
            watched = partial(self._call, name, real)
            setattr(os, name, watched)
            for supporting in (os.supports_dir_fd, os.supports_follow_symlinks):
                if real in supporting:  # or another way would be taken
                    supporting.add(watched)

    def _call(self, name: str, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if name == "open" and not arguments[1] & os.O_CREAT:
            return real(*arguments, **options)
        self.n += 1
        if self.n != self._moment.call:
            return real(*arguments, **options)
        if self._moment.how == "half" and name in ("write", "pwrite"):
            descriptor, payload, *rest = arguments
            view = memoryview(payload).cast("B")
            real(descriptor, view[: len(view) // 2], *rest)
        elif self._moment.how == "after":
            with contextlib.suppress(OSError):  # making a folder that is there, say
                real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def _child(steps: Sequence[Step], path: Path, moment: Moment, pipe: int) -> None:
    """Do the steps, tell of each, and wait for the end."""

    def tell(what: str) -> None:
        _write(pipe, f"{what}\n".encode())

    finish = writer.Writer._finish_part

    def finish_part(self: writer.Writer) -> None:
        finish(self)
        if self._job is not None:
            tell(f"part {self.n_rows}")

    writer.Writer._finish_part = finish_part  # type: ignore[method-assign]
    signal.alarm(CHILD_S)
    calls = _Calls(moment)
    calls.watch()
    tell("begun")
    began = time.perf_counter()
    for step in steps:
        step.do(path)
        tell("done")
    tell(f"calls {calls.n}")
    tell(f"seconds {time.perf_counter() - began}")
    if moment.seconds is None:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        signal.pause()


def killed(steps: Sequence[Step], path: Path, moment: Moment) -> Told:
    """Fork a child that does the steps, and kill it; what it told."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            _child(steps, path, moment, writing)
        except BaseException:
            _write(writing, f"error {json.dumps(traceback.format_exc()[-800:])}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        lines.readline()  # it has begun
        if moment.seconds is not None:
            time.sleep(moment.seconds)
            os.kill(child, signal.SIGKILL)
        told = Told()
        for line in lines.read().decode().splitlines():
            what, _, value = line.partition(" ")
            if what == "done":
                told.done, told.parts = told.done + 1, 0
            elif what == "part":
                told.parts = int(value)
            elif what == "calls":
                told.calls = int(value)
            elif what == "seconds":
                told.seconds = float(value)
            elif what == "error":
                told.problem = f"the call failed: {json.loads(value)}"
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended != -signal.SIGKILL and not told.problem:
        told.problem = f"the process ended with {ended}, not by the kill"
    return told


# -------------------------------------------------------------------------------------------------------- one store


@dataclass
class Life:
    """One store, what it must have, and what was wrong.

    Attributes
    ----------
    path : Path
    versions : dict of int to tuple
        What each version that is there must have.
    todo : list of Step
        What was not done yet, the first one perhaps begun.
    begun : JournalState or None
        What can be gone on with.
    faults : list of str
    outcome : str
        Of the last kill.
    """

    path: Path
    versions: Versions
    todo: list[Step]
    begun: JournalState | None = None
    faults: list[str] = field(default_factory=list)
    outcome: str = ""

    def kill(self, moment: Moment, first: Step | None = None) -> Told:
        """Let a child do what is to be done, or another first step, kill it, and look at what it leaves."""
        step = first or self.todo[0]
        states = self.states(step)
        told = killed([step, *self.todo[1:]], self.path, moment)
        if told.problem:
            self.faults.append(told.problem)
        for number in range(told.done):
            states = self.todo[number].states(self.versions) if number else states
            self.versions = [self.versions, *states][-1]
        self.todo = self.todo[told.done :]
        ahead = [] if not self.todo else self.todo[0].states(self.versions) if told.done else states
        there = self.numbers()
        for at, state in enumerate([self.versions, *ahead]):  # noqa: B007 - where it breaks
            if sorted(state) == there:
                break
        else:
            possible = " or ".join(str(sorted(state)) for state in (self.versions, *ahead))
            self.faults.append(f"versions {there} are there, expected {possible}")
            return told
        self.versions = state
        self.outcome = self.how_far(at, len(ahead))
        self.begun = self.journal()
        rows = self.begun.parts[-1]["rows"] if self.begun else 0
        if not at and told.parts > rows:
            self.faults.append(f"{told.parts} rows were durable in whole parts, the journal has {rows} of them")
        if rows and not at and self.todo and self.todo[0].rows:
            self.outcome = "gone on with from whole parts"
        self.look(all_versions=True)
        return told

    def states(self, step: Step) -> list[Versions]:
        """What a step goes through, which may be over already."""
        storage, newest = LocalStorage(self.path), max(self.versions, default=None)
        if step.known_again and newest is not None:
            named = {f"segments/{id}" for id in segments(self.path, newest)}
            for key in all_journals(storage):
                state = JournalState.parse(storage.read(key))
                if state.job is not None and state.segments & named:
                    return []
        return step.states(self.versions)

    def how_far(self, at: int, last: int) -> str:
        """What a kill was, at a state of so many."""
        if not self.todo:
            return "after it was acknowledged"
        if not self.todo[0].collects:
            return "published, not acknowledged" if at else "before it was published"
        if not at:
            return "before a version went"
        return "some versions gone" if at < last else "all versions gone, not acknowledged"

    def numbers(self) -> list[int]:
        """Numbers of the versions that are there."""
        folder = self.path / "versions"
        names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
        return sorted(int(name[:-5]) for name in names if name.endswith(".json"))

    def journal(self) -> JournalState | None:
        """That of an interrupted conversion that has parts and is in no version."""
        storage = LocalStorage(self.path)
        named = {f"segments/{id}" for number in self.versions for id in segments(self.path, number)}
        for key in all_journals(storage):
            state = JournalState.parse(storage.read(key))
            if state.parts and not state.segments & named:
                return state
        return None

    def look(self, *, all_versions: bool) -> None:
        """Compare versions with what they must have, and verify the newest."""
        for number in sorted(self.versions, reverse=True)[: None if all_versions else 1]:
            try:
                with ss.open(self.path, version=number) as store:
                    problem = differs(store, self.versions[number])
                    problems = store.verify(deep=True, progress=False) if number == max(self.versions) else []
            except Exception as error:
                problem, problems = f"{type(error).__name__}: {error}", []
            if problem or problems:
                self.faults.append(f"version {number}: {problem or problems[:2]}")
        if not self.versions:
            try:
                ss.open(self.path).close()
                self.faults.append("a store that has no version was opened")
            except FileNotFoundError:
                pass

    def go_on(self) -> None:
        """Do the rest in this process."""
        for step in self.todo:
            begun, self.begun = self.begun, None
            refused = step.refused and bool(self.versions)
            states = self.states(step)
            try:
                with rows_written() as written:
                    step.do(self.path)
                if refused:
                    self.faults.append("a store that is there was converted again")
                    return
            except FileExistsError:
                if not refused:
                    raise
                continue
            self.versions = [self.versions, *states][-1]
            if begun and step.rows:
                rows = begun.parts[-1]["rows"]
                if sum(written) != step.rows - rows:
                    self.faults.append(f"{sum(written)} of {step.rows} rows were written, with {rows} rows in parts")
                kept = {line[0] for part in begun.parts for line in part["lines"]}
                if lost := kept - set(segments(self.path, max(self.versions))):
                    self.faults.append(f"{len(lost)} of {len(kept)} segments of whole parts were made again")
        if self.numbers() != sorted(self.versions):
            self.faults.append(f"in the end versions {self.numbers()} are there, expected {sorted(self.versions)}")
            return
        self.look(all_versions=False)

    def clear(self) -> None:
        """Collect garbage: only what the newest version names may be left."""
        maintain.gc(self.path, older_than=0)
        newest = max(self.versions)
        if self.numbers() != [newest]:
            self.faults.append(f"after gc versions {self.numbers()} are there, expected {[newest]}")
            return
        files, folders = below(self.path)
        wanted = named(self.path, newest)
        kept = {parent.as_posix() for key in wanted for parent in Path(key).parents}
        kept |= {"segments", "versions", "versions/pages", "writers", "features"}
        if left := sorted((files - wanted) | (folders - kept)):
            self.faults.append(f"gc leaves {left[:3]}")
        if lost := sorted(wanted - files):
            self.faults.append(f"gc removed {lost[:3]}")


def differs(store: ss.Store, content: Content) -> str:
    """How the rows of a version are not what they must be."""
    rows = sum(len(given) for given, _ in content)
    if store.shape != (rows, WIDTH):
        return f"shape is {store.shape}, expected {(rows, WIDTH)}"
    found, y, row_id = store[:], store.column("y")[:], store.column("row_id")[:]
    matrices, labels, numbers, start = [], [], list[Any](), 0
    for given, shuffled in content:
        stop = start + len(given)
        order = row_id[start:stop] - start
        if not np.array_equal(np.sort(order) if shuffled else order, np.arange(len(given))):
            return f"rows {start} to {stop} are not every row of the source once"
        matrices.append(given.x[order])
        labels.append(given.y[order])
        numbers.append(order)
        start = stop
    expected = sp.vstack(matrices, format="csr")
    same = all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in ("indptr", "indices", "data"))
    if not same or not np.array_equal(y, np.concatenate(labels)):
        return "rows are not those of the source"
    names = None if store.feature_names is None else list(store.feature_names)
    if names != content[-1][0].names:
        return f"features are called {names}, expected {content[-1][0].names}"
    for name in content[0][0].texts:
        wanted = [given.texts[name][at] for (given, _), rows in zip(content, numbers, strict=True) for at in rows]
        if store.column(name)[:].tolist() != wanted:
            return f"the column {name} is not that of the source"
    return ""


def _lines(path: Path, number: int) -> tuple[set[str], list[str]]:
    """Objects and segments that a version names, as the page on the format says."""
    manifest = json.loads((path / f"versions/{number:08}.json").read_bytes())
    keys, lines = {"zarr.json", f"versions/{number:08}.json"}, []
    for key, *_ in manifest["pages"]:
        keys.add(key)
        lines += json.loads((path / key).read_bytes())["segments"]
    return keys, [line[0] for line in lines + manifest["segments"]]


def segments(path: Path, number: int) -> list[str]:
    """Ids of the segments of a version; none where its manifest can not be read."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _lines(path, number)[1]
    return []


def named(path: Path, number: int) -> set[str]:
    """Keys of all objects that a version names."""
    keys, ids = _lines(path, number)
    for id in ids:
        keys.add(f"segments/{id}/segment.json")
        document = json.loads((path / f"segments/{id}/segment.json").read_bytes())
        keys |= {f"segments/{id}/{key}" for key, *_ in document["objects"]}
    if features := json.loads((path / f"versions/{number:08}.json").read_bytes())["features"]:
        prefix = f"features/{features[0]}"
        document = json.loads((path / f"{prefix}/features.json").read_bytes())
        keys |= {f"{prefix}/features.json", *(f"{prefix}/{key}" for key, *_ in document["objects"])}
    return keys


def below(root: Path, but: Path | None = None) -> tuple[set[str], set[str]]:
    """Files and folders below one, all that is below another left out."""
    files, folders, start = set(), set(), len(str(root)) + 1
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if Path(folder, name) != but] if but else inner
        folders |= {f"{folder}/{name}"[start:] for name in inner}
        files |= {f"{folder}/{name}"[start:] for name in names}
    return files, folders


@contextlib.contextmanager
def rows_written() -> Iterator[list[int]]:
    """Numbers of rows that writers of this process get meanwhile."""
    written: list[int] = []
    real = writer.Writer.write

    def write(self: writer.Writer, rows: Any, columns: Any, **named: Any) -> None:
        written.append(len(rows))
        real(self, rows, columns, **named)

    with mock.patch.object(writer.Writer, "write", write):
        yield written


# ------------------------------------------------------------------------------------------------------------ cases


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Parts of some dozen rows, pages of two segments, bucket files for as little as that."""

    def in_little_memory(real: Callable[..., Any], items: Any, *arguments: Any, **options: Any) -> Any:
        return real(items, *arguments, **{**options, "max_bytes": 20_000})

    with contextlib.ExitStack() as stack:
        for where, name, value in (
            (writer, "PART_BYTES", 6_000),
            (writer, "HOLD_BYTES", 1_000),
            (writer, "INLINE_SEGMENTS", 2),
            (conversion, "WRITER_BYTES", 2_000),
            (conversion, "shuffled_blocks", partial(in_little_memory, sort.shuffled_blocks)),
            (conversion, "sorted_rows", partial(in_little_memory, sort.sorted_rows)),
        ):
            stack.enter_context(mock.patch.object(where, name, value))
        yield


class Bench:
    """Sources, stores in several states, and how long works take, made once for all cases of a process."""

    turns: tuple[str, ...] = TURNS

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sources", "states", "case", "temporary"):
            (folder / name).mkdir(parents=True)
        self._given: dict[tuple[str, int], Given] = {}
        self._states: dict[tuple[str, int], Versions] = {}
        self._usual: dict[tuple[Any, ...], Told] = {}
        self.seed = 0
        """Of shuffles for which none is given: another each time, or going on would have the right one by chance."""

    def given(self, kind: str, rows: int) -> Given:
        """The source of a kind that has so many rows."""
        if (kind, rows) not in self._given:
            self._given[kind, rows] = self._made(kind, rows)
        return self._given[kind, rows]

    def _made(self, kind: str, rows: int) -> Given:
        rng = np.random.default_rng([SOURCES.index(kind), rows])
        dense = rng.integers(1, 200, (rows, WIDTH)) / (2 if kind in ("svm", "memory") else 1)
        dense[rng.random((rows, WIDTH)) < 0.8] = 0
        dense[rng.integers(0, rows, 3)] = 0
        x = sp.csr_array(dense.astype(np.float32))
        y = rng.permutation(rows).astype(np.float32)
        path = self.folder / f"sources/{rows}.{kind}"
        options: dict[str, Any] = {"columns": {"y": y}}
        source: Any = path
        if kind == "memory":
            source = x
        elif kind == "npz":
            sp.save_npz(path, x)
        elif kind == "mtx":
            scipy.io.mmwrite(path, sp.coo_array(x))
        else:
            options = {"n_features": WIDTH}
            lines = [
                " ".join([f"{int(y[row])}", *(f"{j + 1}:{dense[row, j]}" for j in np.flatnonzero(dense[row]))])
                for row in range(rows)
            ]
            path.write_text("\n".join(lines) + "\n", encoding="ascii")
        return Given(x, y, source, options, BLOCK_BYTES[kind])

    def state(self, profile: str, n: int) -> tuple[Path, Versions]:
        """A store of n versions, and what they have."""
        path = self.folder / f"states/{profile}-{n}"
        if (profile, n) not in self._states:
            first, second = self.given("svm", SHORT), self.given("memory", SHORT)
            steps = [
                convert(first, {"profile": profile}),
                append(second),
                convert(second, {"profile": profile, "shuffle": True, "seed": 1}, overwrite=True),
                append(first),
                append(second),
            ]
            versions: Versions = {}
            for step in steps[:n]:
                step.do(path)
                versions = step.states(versions)[-1]
            self._states[profile, n] = versions
        return path, self._states[profile, n]

    def work(self, turn: str, rng: np.random.Generator) -> Work:
        """What is done in a case."""
        kind, profile = str(rng.choice(SOURCES)), str(rng.choice(["raw", "compact"]))
        shuffle, state = bool(rng.random() < 0.5), int(rng.choice([1, 1, 2, 3]))
        seed = None if rng.random() < 0.3 else int(rng.integers(100))
        how: dict[str, Any] = {"shuffle": True, "seed": seed} if shuffle else {}
        usual = {**how, "seed": 0} if shuffle else {}
        long, short = self.given(kind, LONG), self.given(kind, SHORT)
        if turn == "convert":
            how |= {"profile": profile}
            anew = convert(long, {**how, "resume": False})
            key, steps = (turn, kind, shuffle), [convert(long, how)]
            return Work("convert", key, 0, profile, steps, anew=anew, usual=[convert(long, usual)])
        if turn == "overwrite":
            key, steps = (turn, kind, shuffle), [convert(long, {"profile": profile, **how}, overwrite=True)]
            again = [convert(long, usual, overwrite=True)]
            return Work("convert into a new version", key, 1, profile, steps, usual=again)
        if turn == "append":
            return Work("append", (turn, state), state, profile, [append(short)])
        if turn == "append file":
            anew = append_file(long, {**how, "resume": False})
            key, steps = (turn, kind, shuffle), [append_file(long, how)]
            return Work("append a source", key, 1, profile, steps, anew=anew, usual=[append_file(long, usual)])
        if turn == "appends":
            each = [append(self.given(str(rng.choice(SOURCES)), SHORT)) for _ in range(3)]
            return Work("several appends", (turn, state), state, profile, each)
        keep, state = int(rng.integers(1, 4)), int(rng.integers(4, 6))
        wreck = append_file(long, how) if rng.random() < 0.5 else None
        return Work("gc", (turn, keep, state), state, profile, [collect(keep)], wreck)

    def usual(self, key: tuple[Any, ...], steps: Sequence[Step], profile: str, state: int) -> Told:
        """What a child tells that is not killed before its end."""
        if key not in self._usual:
            life = self.begin(profile, state, steps)
            life.go_on()  # compiles the loops: children would do that again and again, and keep them on the disk
            self.end(life)
            life = self.begin(profile, state, steps)
            told = killed(steps, life.path, Moment())
            self.end(life)
            if life.faults or told.problem or not told.calls:
                raise RuntimeError(f"{key} fails where nobody kills it: {life.faults or told.problem}")
            self._usual[key] = told
        return self._usual[key]

    def begin(self, profile: str, state: int, steps: Sequence[Step], *, deep: bool = False) -> Life:
        """A store in some state."""
        path = self.folder / ("case/new/s.zarr" if deep else "case/s.zarr")
        versions: Versions = {}
        if state:
            template, versions = self.state(profile, state)
            shutil.copytree(template, path)
        return Life(path, dict(versions), list(steps))

    def end(self, life: Life) -> None:
        """Remove it; what was made elsewhere is a fault."""
        files, folders = below(self.folder / "case", life.path)
        own = {"new"} if life.path.parent.name == "new" else set()
        left = [*files, *(folders - own), *(entry.name for entry in (self.folder / "temporary").iterdir())]
        if left:
            life.faults.append(f"left outside the store: {left[:3]}")
        shutil.rmtree(self.folder / "case")
        (self.folder / "case").mkdir()

    def case(self, number: int) -> tuple[str, list[str]]:
        """What came of a case, and what was wrong."""
        rng = np.random.default_rng([number, 1])
        work = self.work(self.turns[number // 2 % len(self.turns)], rng)
        self.seed = number << 4
        usual = self.usual(work.key, work.usual or work.steps, work.profile, work.state)
        exact = bool(number % 2)
        moments = [_drawn(rng, usual, exact)]
        if rng.random() < AGAIN:
            moments.append(_drawn(rng, _after(usual, moments[0]), exact))
        wreck = None
        if work.wreck is not None:
            steps = [append_file(self.given("memory", LONG), {})]
            calls = self.usual(("append file", "memory", False), steps, work.profile, 1).calls
            wreck = Moment(call=int(rng.integers(1, calls * 2 // 3)))  # other sources make fewer
        return self.tried(work, moments, wreck, deep=bool(rng.random() < 0.5), rework=bool(rng.random() < 0.5))

    def tried(
        self,
        work: Work,
        moments: Sequence[Moment],
        wreck: Moment | None = None,
        *,
        deep: bool = False,
        rework: bool = False,
    ) -> tuple[str, list[str]]:
        """Do a work, killed at some moments, and go on with it; with `rework` with what was wrecked before instead."""
        life = self.begin(work.profile, work.state, work.steps, deep=deep and not work.state)
        told = [str(moment) for moment in moments]
        try:
            if work.wreck is not None and wreck is not None:
                life.todo = [work.wreck]
                life.kill(wreck)
                told.insert(0, f"an append {wreck}")
                life.todo = list(work.steps)
            for moment in moments:
                over = not life.todo or (life.todo[0].refused and life.versions)
                if not over and not life.faults:
                    self.seed += 1
                    first = moment is moments[0]
                    end = life.kill(moment, work.anew if rework and not first else None)
                    if first and end.seconds and work.key in self._usual:  # so that few come to their end
                        usual = self._usual[work.key]
                        usual.seconds = min(usual.seconds, end.seconds)
            if not life.faults:
                if rework and work.wreck is not None:
                    life.begun, life.todo = life.journal(), [work.wreck]
                self.seed += 1
                life.go_on()
            if not life.faults:
                life.clear()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            life.faults.append(
                f"going on: {type(error).__name__}: {str(error)[:400]} ({Path(where.filename).name}:{where.lineno})"
            )
        self.end(life)
        outcome = "fault" if life.faults else life.outcome
        return f"{work.name}: {outcome}", [f"{work.key}, killed {', '.join(told)}: {fault}" for fault in life.faults]


def _drawn(rng: np.random.Generator, usual: Told, exact: bool) -> Moment:
    """A moment of a work that takes as long as usual."""
    if not exact:
        return Moment(seconds=float(rng.uniform(0, 1.1 * usual.seconds)))
    first = usual.calls - LAST if rng.random() < 1 / 3 else 0
    call = int(rng.integers(max(first, 0), usual.calls)) + 1
    return Moment(call=call, how=str(rng.choice(["before", "half", "after"])))


def _after(usual: Told, moment: Moment) -> Told:
    """What is left at least of a work that was killed at a moment."""
    return Told(calls=max(usual.calls - moment.call, 1), seconds=max(usual.seconds - (moment.seconds or 0), 0.001))


@contextlib.contextmanager
def bench(folder: Path, kind: type[Bench] = Bench) -> Iterator[Bench]:
    """A bench in a folder, in memory where there is one, and all that children inherit."""
    root = place(folder)
    try:
        made = kind(root)
        temporary = str(root / "temporary")
        with (
            small(),
            mock.patch.object(tempfile, "tempdir", temporary),
            mock.patch.dict(os.environ, TMPDIR=temporary),
            mock.patch("secrets.randbits", lambda _: made.seed),
        ):
            yield made
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(cases: Sequence[int], folder: Path) -> Tally:
    """Kill as each case says."""
    return run_on(Bench, cases, folder)


def run_on(kind: type[Bench], cases: Sequence[int], folder: Path) -> Tally:
    """The same on another bench."""
    tally = Tally(Counter())
    with bench(folder / "bench", kind) as made:
        for number in cases:
            outcome, faults = made.case(number)
            tally.outcomes[outcome] += 1
            for fault in faults:
                tally.fault(number, fault)
    return tally


CAMPAIGN = Campaign(
    name="kills",
    about="kill -9 at any moment of conversions, appends and gc",
    total=10_000,
    sample=100,
    few=4,
    unit=250,
    run=run,
    limit_s=1800,
)
