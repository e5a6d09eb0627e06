"""What a store answers to everything that a user can ask, and how an answer out of a damaged store is judged.

A question is asked of a fresh open of the store. Which objects a question reads is found out once, on the sound store:
one that does not read an object runs the same, step by step, whatever is in it, and is not asked when only that object
changes. One that looks at an object's length alone ends there, as all do that open the same segment.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.sparse as sp

import sparsestore as ss
from sparsestore.format import manifest_key
from sparsestore.storage import LocalStorage
from trust import small_store
from trust.campaign import Tally
from trust.small_store import ALL, ALONE, FIRST, ROWS, SmallStore

OPENED = (
    {"check": "first"},
    {"check": "always"},
    {"check": "first", "mmap": False},
    {"check": "always", "mmap": False},
)
"""The ways to open a store whose answers must never be wrong."""


@dataclass(frozen=True)
class Question:
    """Something asked of one version of a store; the answer is made of plain values that can be compared."""

    name: str
    ask: Callable[[ss.Store], Any]
    version: int | None = None
    """The newest where None."""


def plain(values: Any) -> Any:
    """An array, masked or not, or a sparse matrix as something that is equal only where all of it is, dtypes too."""
    if isinstance(values, np.ma.MaskedArray):
        missing = np.ma.getmaskarray(values)
        kept = np.where(missing, np.zeros((), values.dtype), values.data)
        return "masked", plain(kept), missing.tobytes()
    if sp.issparse(values):
        return values.shape, plain(values.indptr), plain(values.indices), plain(values.data)
    values = np.asarray(values)
    content = tuple(values.tolist()) if values.dtype == object else values.tobytes()
    return values.dtype.str, values.shape, content


def _facts(store: ss.Store) -> Any:
    return store.shape, store.nnz, store.dtype, store.columns, store.version, store.attrs, len(store)


def _some(store: ss.Store) -> Any:
    n = len(store)
    return plain(store[[n - 1, 0, n // 2, 0]]), plain(store.column("y")[[n - 1, 0]]), store.select(rows=[1, 3]).nnz


def _batches(store: ss.Store, layout: str) -> Any:
    loader = store.loader(7, shuffle=True, seed=5, layout=layout, columns=[*store.columns], block_rows=4)
    names = list(store.columns)
    return [(plain(batch.x), plain(batch.row_ids), [plain(batch.columns[name]) for name in names]) for batch in loader]


def _plan(store: ss.Store) -> Any:
    return str(store.plan(batch_size=8, seed=0, columns=["y"])), str(store.plan(batch_size=8, shuffle=False))


def _statistics(name: str, store: ss.Store) -> Any:
    found = store._reader.label_statistics(name)
    return None if found is None else [plain(part) for part in found.to_arrays()[0]] + [str(found.to_arrays()[1])]


def _rows(start: int, stop: int, store: ss.Store) -> Any:
    return plain(store[start:stop])


def _column(name: str, start: int, stop: int, store: ss.Store) -> Any:
    return plain(store.column(name)[start:stop])


def questions() -> list[Question]:
    """All there is to ask, of the small store."""
    ends = list(accumulate(ROWS))
    ranges = list(zip([0, *ends[:-1]], ends, strict=True))
    found = [Question("facts", _facts)]
    found += [Question(f"rows of segment {i}", partial(_rows, *part)) for i, part in enumerate(ranges)]
    for name in ("y", "name", "price", "age", "two", "row_id"):
        found += [Question(f"{name} of segment {i}", partial(_column, name, *part)) for i, part in enumerate(ranges)]
    found += [Question(f"statistics of {name}", partial(_statistics, name)) for name in ("y", "name", "price", "two")]
    found += [Question("plan", _plan), Question("some rows", _some)]
    for i, version in enumerate(ALONE):
        found.append(Question(f"batches of segment {i}", partial(_batches, layout="sparse"), version))
    found.append(Question("dense batches", partial(_batches, layout="dense"), FIRST))
    found.append(Question("batches", partial(_batches, layout="sparse")))
    return found


QUESTIONS = questions()


def expected_rows(store: SmallStore) -> Any:
    """The answers about rows and columns, from what was put into the store alone."""
    answers = {}
    for i, (matrix, columns) in enumerate(zip(store.rows, store.columns, strict=True)):
        rows = sp.csr_array(
            (matrix.data, matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)),
            shape=(matrix.shape[0], small_store.FEATURES),
        )
        answers[f"rows of segment {i}"] = plain(rows)
        answers |= {f"{name} of segment {i}": plain(values) for name, values in columns.items()}
    return answers


class Asker:
    """Asks questions of one store and judges the answers.

    Attributes
    ----------
    answers : dict of (str, int) to object
        Of the sound store, by question and by which of `OPENED` it was opened in: a plan tells what is held in memory.
    read : dict of str to set of str
        Keys of the objects whose bytes each question reads.
    """

    def __init__(self, store: SmallStore) -> None:
        self.store = store
        self._newest = store.root / manifest_key(ALL)
        self.answers: dict[tuple[str, int], Any] = {}
        self.read: dict[str, set[str]] = {}
        for question in QUESTIONS:
            self.read[question.name] = set()
            for way in range(len(OPENED)):
                with keys_read() as keys:
                    self.answers[question.name, way] = self._ask(question, way)
                self.read[question.name] |= keys
        for name, answer in expected_rows(store).items():
            if any(self.answers[name, way] != answer for way in range(len(OPENED))):
                raise AssertionError(f"{name}: the sound store does not have what was put into it")
        for version in (ALL, *ALONE):
            if ss.open(store.root, version=version).verify():
                raise AssertionError("the sound store is not sound")
        self.needed = self._needed()
        self.segment_of = {key: store.segment_of(key) for key in store.keys}

    def _ask(self, question: Question, way: int) -> Any:
        version = question.version
        if version is None and not os.path.lexists(self._newest):
            version = ALL  # without its manifest the newest version is the one before: nobody can tell
        with ss.open(self.store.root, version=version, **OPENED[way]) as store:
            return question.ask(store)

    def _needed(self) -> set[str]:
        """Keys of the objects that the newest version needs."""
        others = {key for key in self.store.keys if key.startswith("versions/") and "pages" not in key}
        return set(self.store.keys) - others | {manifest_key(ALL)}

    def touching(self, key: str) -> list[Question]:
        """Questions that read an object."""
        return [question for question in QUESTIONS if key in self.read[question.name]]

    def wrong(self, question: Question, way: int, *, naming: Sequence[str] = ()) -> str | None:
        """What is wrong with the answer to a question: None for the right one, "" for an error as it should be."""
        try:
            answer = self._ask(question, way)
        except ss.SparsestoreError as error:
            missing = [part for part in naming if part not in str(error)]
            return f"{question.name}: the error does not name {missing}: {error}" if missing else ""
        except Exception as error:
            return f"{question.name}: {describe(error)}"
        if answer != self.answers[question.name, way]:
            return f"{question.name}: another answer, and no error ({OPENED[way]})"
        return None

    def unseen(self, version: int | None, way: int, *, naming: Sequence[str] = ()) -> str | None:
        """What is wrong with `verify`, deep: None where it reports damage, or the version can not be opened for it."""
        try:
            with ss.open(self.store.root, version=version, **OPENED[way]) as store:
                found = store.verify()
        except ss.SparsestoreError as error:
            found = [str(error)]
        except Exception as error:
            return f"verify: {describe(error)}"
        if not found:
            return f"verify of version {version} reports nothing"
        named = any(all(part in problem for part in naming) for problem in found)
        return None if named else f"verify does not name {naming}: {found}"

    def asked_about(self, keys: Sequence[str], turn: int) -> list[str | None]:
        """What goes wrong with questions about objects that changed: "" for an error, None for the same answers.

        `turn` is any number: cases take turns in the way a store is opened, in which of the questions that read the
        same objects is asked, and in asking more than one, those that take long, and `verify`; which is always asked
        where no question reads what changed.
        """
        way = turn % 8 if turn % 8 < len(OPENED) else 0
        wrong: list[str | None] = []
        for version in sorted(int(key[9:17]) for key in keys if key.startswith("versions/0")):
            found = self.wrong(Question("facts", lambda store: store.shape, version), way, naming=[str(version)])
            wrong.append(f"version {version} opens with a damaged manifest" if found is None else found)
        naming = keys if len(keys) == 1 and not keys[0].startswith("versions/0") else []
        touching = [question for question in QUESTIONS if not self.read[question.name].isdisjoint(keys)]
        unread = not touching
        light = [question for question in touching if not question.name.startswith(HEAVY)]
        if turn % 64 and touching:
            asked = light or touching
            touching = asked if turn % 16 == 0 else [asked[turn // 8 % len(asked)]]
        rows = ["rows "] * (naming != [] and naming[0].startswith("segments/"))
        wrong += [self.wrong(question, way, naming=[*naming, *rows]) for question in touching]
        if self.needed.isdisjoint(keys) or not (unread or turn % 8 == 5):
            return wrong
        segments = {self.segment_of.get(key) for key in keys}
        alone = segments.pop() if len(segments) == 1 else None
        return [*wrong, self.unseen(ALL if alone is None or turn % 16 == 13 else ALONE[alone], way, naming=naming)]

    def crash_only(self, key: str) -> str | None:
        """What goes wrong without any check of bytes: answers may be any, errors only those of the package."""
        for question in [found for found in self.touching(key) if not found.name.startswith(HEAVY)][:2]:
            for mmap in (True, False):
                try:
                    with ss.open(self.store.root, version=question.version, check="never", mmap=mmap) as store:
                        question.ask(store)
                except ss.SparsestoreError:
                    pass
                except Exception as error:
                    return f"{question.name}, without checks: {describe(error)}"
        return ""


def describe(error: BaseException) -> str:
    """An error that must not be, with the place it came from."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"


@contextlib.contextmanager
def keys_read() -> Iterator[set[str]]:
    """Keys of the objects whose bytes are read meanwhile."""
    keys: set[str] = set()

    def watched(name: str) -> Any:
        real = getattr(LocalStorage, name)

        def method(self: LocalStorage, key: Any, *given: Any, **named: Any) -> Any:
            keys.update([key] if isinstance(key, str) else [part[0] for part in key])
            return real(self, key, *given, **named)

        return mock.patch.object(LocalStorage, name, method)

    with contextlib.ExitStack() as stack:
        for name in ("read", "read_range", "read_into", "crc32c", "map"):
            stack.enter_context(watched(name))
        yield keys


HEAVY = ("batches", "some rows", "dense", "statistics", "plan")
"""Questions that are asked of some cases alone, where others read the same objects: they take a millisecond each."""


class Bench:
    """A sound small store of each profile, and who asks it; files are put back after each case."""

    def __init__(self, folder: Path) -> None:
        self._folder = small_store.place(folder)
        self._askers: dict[str, Asker] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        gc.collect()
        shutil.rmtree(self._folder, ignore_errors=True)

    def asker(self, profile: str) -> Asker:
        """For one profile; the store is built when it is first asked for."""
        if profile not in self._askers:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._askers[profile] = Asker(small_store.build(profile, self._folder / profile))
        return self._askers[profile]

    def other(self, profile: str) -> SmallStore:
        """A store of equal shape with other values in objects of the same names."""
        root = self._folder / f"other-{profile}"
        return small_store.build(profile, root, seed=1)


def judge(tally: Tally, case: int, wrong: list[str | None]) -> None:
    """Count a case by what came of its questions: faults, else an error where there was one, else the same answers."""
    faults = [found for found in wrong if found]
    for fault in faults:
        tally.fault(case, fault)
    tally.outcomes["fault" if faults else "error" if "" in wrong else "same answer"] += 1


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Warnings are errors, and all is done by one thread: to start others would cost more than a case does."""
    with warnings.catch_warnings(), mock.patch("sparsestore.parallel.n_cores", return_value=1):
        warnings.simplefilter("error")
        yield
    gc.collect()
