"""Whole lives of a store, drawn at random: all that its users do to it, against a model in numpy.

A case is the seed of one life. The model keeps every row that was ever made in one table, and of each version which of
these rows it has, in order; all answers of the store are compared with that.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import scipy.sparse as sp
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import sparsestore as ss
from sparsestore.writer import append_to
from trust.campaign import Campaign, Tally

WIDTH = 48
DTYPES = ("uint8", "int16", "int32", "float32", "float64")
ACTIONS = (
    *("append", "append_blocks", "abort", "crash", "convert", "gc"),
    *("read", "read_version", "split", "load", "resume", "pin", "read_pin", "read_pin", "verify"),
)
_seeds = st.integers(0, 2**32 - 1)  # all of a step that is drawn: hypothesis gives a life of 500 steps 8 KiB of chance


@dataclass
class Version:
    """What a version must say."""

    rows: np.ndarray
    """Its rows, as places in the table."""
    width: int
    line: int
    """Versions of one line have been made from each other by appends."""


@dataclass
class Table:
    """Every row ever made."""

    x: np.ndarray = field(default_factory=lambda: np.zeros((0, WIDTH)))
    y: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    v: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    name: np.ndarray = field(default_factory=lambda: np.zeros(0, object))
    m: Any = field(default_factory=lambda: np.ma.masked_array(np.zeros(0, np.int16), np.zeros(0, bool)))

    def make(self, rng: np.random.Generator, n: int, width: int) -> tuple[np.ndarray, sp.csr_array, dict[str, Any]]:
        """New rows: their places, and what a user has of them."""
        dtype = str(rng.choice(DTYPES))
        kind = rng.integers(3)
        x = rng.integers(1, 200 if dtype == "uint8" else 30_000, (n, width)).astype(np.float64)
        x = np.ones((n, width)) if kind == 0 else x + 0.5 if kind == 1 and dtype.startswith("f") else x
        x[rng.random((n, width)) < rng.choice([0.0, 0.7, 0.95, 1.0])] = 0
        first = len(self.y)
        columns = {
            "y": rng.integers(-3, 4, n),
            "v": rng.standard_normal((n, 2)).astype(np.float32),
            "name": np.array([f"row {first + i}" * int(rng.integers(3)) for i in range(n)], object).reshape(n),
            "m": np.ma.masked_array(rng.integers(-9, 9, n).astype(np.int16), rng.random(n) < 0.3),
        }
        self.x = np.concatenate([self.x, np.pad(x, ((0, 0), (0, WIDTH - width)))])
        for name, values in columns.items():
            join = np.ma.concatenate if name == "m" else np.concatenate
            setattr(self, name, join([getattr(self, name), values]))
        return np.arange(first, first + n), sp.csr_array(x.astype(dtype)), columns


def same(found: Any, expected: Any) -> bool:
    """Whether arrays are equal, missing values too."""
    missing = np.ma.getmaskarray(expected)
    if found.shape != expected.shape or not np.array_equal(np.ma.getmaskarray(found), missing):
        return False
    return bool((np.ma.getdata(found) == np.ma.getdata(expected))[~missing].all())


class Life(RuleBasedStateMachine):
    """One store from its making on. `folder` and `note` are set by the campaign."""

    folder: Path
    note: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / "s.zarr"
        self.table = Table()
        self.versions: dict[int, Version] = {}
        self.pins: list[tuple[ss.Store, Version]] = []
        self.splits: dict[tuple[Any, ...], tuple[int, list[np.ndarray]]] = {}
        self.states: list[tuple[dict[str, Any], dict[str, Any], np.ndarray]] = []
        self.line = 0

    def teardown(self) -> None:
        for store, _ in self.pins:
            store.close()
        shutil.rmtree(self.path, ignore_errors=True)

    # ---- what holds

    @property
    def newest(self) -> Version:
        return self.versions[max(self.versions)]

    def open(self) -> ss.Store:
        store = ss.open(self.path)
        assert store.version == max(self.versions), f"newest is {store.version}, expected {max(self.versions)}"
        assert store.shape == (len(self.newest.rows), self.newest.width), f"shape is {store.shape}"
        return store

    def expect(self, view: Any, model: Version, positions: Any, found: Any = None, features: Any = None) -> None:
        """Compare rows of a store, or what was read, with the model's."""
        rows = np.atleast_1d(model.rows[positions])
        found = view[positions] if found is None else found
        x = self.table.x[rows, : model.width]
        x = x if features is None else x[:, features]
        dense = found.toarray() if sp.issparse(found) else np.asarray(found)
        assert dense.shape == x.shape, f"{dense.shape} rows and features, expected {x.shape}"
        assert np.array_equal(dense, x.astype(dense.dtype)), "values differ"
        if sp.issparse(found):
            found.check_format(full_check=True)
            assert found.nnz == np.count_nonzero(x), "zeros are stored, or entries lost"

    def published(self, version: int, rows: np.ndarray, width: int, line: int | None = None) -> None:
        assert version not in self.versions
        assert version > max(self.versions, default=0), f"version {version} after {max(self.versions)}"
        self.versions[version] = Version(rows, width, self.line if line is None else line)

    # ---- making versions

    @initialize(seed=_seeds)
    def create(self, seed: int) -> None:
        hypothesis.assume(seed)  # hypothesis tries the simplest life first: it is always the same
        rng = np.random.default_rng(seed)
        width = int(rng.integers(1, 20))
        schema = {"y": "int64", "v": ("float32", 2), "name": "string", "m": "int16"}
        rows = []
        profile = str(rng.choice(["raw", "compact"]))
        with ss.create(self.path, n_features=width, columns=schema, profile=profile, max_bytes=4096) as writer:
            for _ in range(rng.integers(3)):
                places, x, columns = self.table.make(rng, int(rng.integers(0, 30)), width)
                writer.append(x, **columns)
                rows.append(places)
        self.published(1, np.concatenate([np.zeros(0, np.int64), *rows]), width)

    @rule(seed=_seeds)
    def step(self, seed: int) -> None:
        """Anything at all. Of several rules hypothesis would leave out about half in each life."""
        rng = np.random.default_rng([seed, 1])
        getattr(self, str(rng.choice(ACTIONS)))(seed)

    def append(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        width, grow = self.width(rng)
        places, x, columns = self.table.make(rng, int(rng.choice([0, 1, 7, 40])), width)
        with self.open() as store:
            grown = store.append(x, grow_features=grow, **columns)
            assert store.version == max(self.versions)  # it stays with its own
            self.published(grown.version, np.append(self.newest.rows, places), max(self.newest.width, width))
            grown.close()

    def width(self, rng: np.random.Generator) -> tuple[int, bool]:
        """Of rows to append, and whether that has to be asked for."""
        if rng.random() < 0.2:
            return int(rng.integers(self.newest.width, WIDTH + 1)), True
        return self.newest.width, False

    def write(self, rng: np.random.Generator) -> tuple[Any, np.ndarray, int]:
        """A writer that has not published yet, and the rows and width that its version will have."""
        width, grow = self.width(rng)
        rows = [self.newest.rows]
        writer = append_to(self.path, grow_features=grow, max_bytes=int(rng.choice([2048, 1 << 20])))
        for _ in range(rng.integers(4)):
            places, x, columns = self.table.make(rng, int(rng.integers(0, 20)), width)
            writer.append(x.toarray() if rng.random() < 0.2 else x, **columns)
            rows.append(places)
        return writer, np.concatenate(rows), max(width if len(rows) > 1 else 0, self.newest.width)

    def append_blocks(self, seed: int) -> None:
        writer, rows, width = self.write(np.random.default_rng(seed))
        self.published(writer.publish(), rows, width)

    def abort(self, seed: int) -> None:
        writer, _, _ = self.write(np.random.default_rng(seed))
        with contextlib.suppress(ZeroDivisionError), writer:
            raise ZeroDivisionError
        self.open().close()

    def crash(self, seed: int) -> None:
        """A writer ends at once, at one of its fsyncs or just before or after them."""
        rng = np.random.default_rng(seed)
        left = int(rng.integers(0, 40))
        fsync = os.fsync

        def failing(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        # the rows are made here too, so that both know them
        before = self.table
        child = os.fork()
        if not child:
            try:
                with mock.patch("os.fsync", failing):
                    writer, _, _ = self.write(rng)
                    if rng.random() < 0.8:
                        writer.publish()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        with mock.patch("trust.stateful.append_to", mock.MagicMock()):
            _, rows, width = self.write(rng)
        assert before is self.table
        with ss.open(self.path) as store:
            if store.version != max(self.versions):
                self.published(store.version, rows, width)
        self.open().close()

    def convert(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        width = int(rng.integers(1, 20))
        n = int(rng.integers(1, 60)) if rng.random() < 0.9 else 256 * int(rng.integers(1, 3))  # marks end with the rows
        places, x, columns = self.table.make(rng, n, width)
        shuffle = bool(rng.random() < 0.5)
        profile = str(rng.choice(["raw", "compact"]))
        options: dict[str, Any] = {"shuffle": True, "seed": seed} if shuffle else {}
        options |= {"profile": profile, "overwrite": True, "progress": False}
        store = ss.convert(x, self.path, columns=columns, **options)
        with store:
            if shuffle:
                order = store.column("row_id")[:]
                assert np.array_equal(np.sort(order), np.arange(len(places))), "row_id is no permutation"
                places = places[order]
            self.line += 1
            self.published(store.version, places, width)
        self.splits.clear()

    # ---- reading

    def read(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with self.open() as store:
            self.read_somewhere(rng, store, self.newest)

    def read_somewhere(self, rng: np.random.Generator, store: ss.Store, model: Version) -> None:
        n = len(model.rows)
        bounds = [None if rng.random() < 0.3 else int(rng.integers(-n - 3, n + 4)) for _ in range(2)]
        keys: list[Any] = [
            slice(*bounds, int(rng.choice([-7, -2, -1, 1, 2, 5]))),
            rng.random(n) < rng.random(),
            rng.integers(-n, n, int(rng.integers(0, 9))) if n else np.zeros(0, np.int64),
        ]
        for key in [keys[rng.integers(3)], *([int(rng.integers(-n, n))] if n else [])]:
            self.expect(store, model, key)
            name = str(rng.choice(["y", "v", "name", "m"]))
            rows = model.rows[key]
            if np.ndim(rows):
                assert same(store.column(name)[key], getattr(self.table, name)[rows]), f"column {name} differs"
        features = rng.integers(0, model.width, int(rng.integers(1, 5)))
        features = np.unique(features) if rng.random() < 0.5 else features[np.sort(np.unique(features, True)[1])]
        view = store.select(rows=keys[2], features=features)
        self.expect(None, model, keys[2], view[:], features)
        assert view.nnz == np.count_nonzero(self.table.x[model.rows[keys[2]]][:, features])

    def read_version(self, seed: int) -> None:
        """Any version that is there, in this process or a fork, from a pickle or not."""
        rng = np.random.default_rng(seed)
        number = int(rng.choice(list(self.versions)))
        mmap, check = bool(rng.random() < 0.7), str(rng.choice(["first", "always", "never"]))
        with ss.open(self.path, version=number, mmap=mmap, check=check) as store:
            assert store.versions == sorted(self.versions)
            if rng.random() < 0.3:
                store = pickle.loads(pickle.dumps(store))
            if rng.random() < 0.8:
                self.read_somewhere(rng, store, self.versions[number])
                return
            child = os.fork()
            if not child:
                status = 1
                try:
                    signal.alarm(60)
                    self.read_somewhere(rng, store, self.versions[number])
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0, "a forked child read something else"

    def split(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        how = [{}, {"stratify": "y"}, {"group": "y"}][rng.integers(3)]
        key = (int(rng.integers(2)), *how)
        if self.splits and rng.random() < 0.7:  # one that was made before an append, perhaps
            key = list(self.splits)[rng.integers(len(self.splits))]
            how = {key[1]: "y"} if len(key) > 1 else {}
        with self.open() as store:
            n = len(self.newest.rows)
            parts = store.split([0.5, 0.3, 0.2], seed=key[0], **how)
            found = [np.asarray(part._selection.rows(np.arange(len(part)))) for part in parts]
            together = np.concatenate(found)
            assert len(np.unique(together)) == len(together) == n, "splits overlap, or leave rows out"
            before, members = self.splits.get(key, (0, [np.zeros(0, np.int64)] * 3))
            for rows, earlier in zip(found, members, strict=True):
                assert np.array_equal(rows[rows < before], earlier), "an append moved rows between splits"
            self.splits[key] = n, found
            part = int(rng.integers(3))
            self.expect(None, self.newest, found[part], parts[part][:])

    def batches(self, loader: Any, model: Version, skip: int = 0) -> Iterator[np.ndarray]:
        for number, batch in enumerate(loader, skip):
            self.expect(None, model, batch.row_ids, batch.x)
            assert same(batch.y, self.table.y[model.rows[batch.row_ids]]), f"y of batch {number} differs"
            yield batch.row_ids

    def load(self, seed: int) -> None:
        """Epochs of a loader, one of them left at any batch and gone on with by another loader."""
        rng = np.random.default_rng(seed)
        n = len(self.newest.rows)
        if not n:
            return
        partitions = int(rng.integers(1, 4)) if rng.random() < 0.3 else 1
        options: dict[str, Any] = {
            "batch_size": int(rng.integers(1, 24)),
            "shuffle": bool(rng.random() < 0.8),
            "seed": int(rng.integers(5)),
            "layout": str(rng.choice(["sparse", "dense"])),
            "drop_remainder": bool(rng.random() < 0.3),
            "allow_poor_shuffle": True,
            "n_partitions": partitions,
        }
        if partitions > 1 or (options["drop_remainder"] and n < options["batch_size"]):
            options |= {"batch_size": 1}
        if rng.random() < 0.3:
            options["window_rows"] = options["batch_size"] * int(rng.integers(1, 5))
            options["block_rows"] = int(rng.integers(1, 9))
        if n < partitions:
            return
        with self.open() as store:
            loaders = [store.loader(**options, partition=p) for p in range(partitions)]
            epochs = [[list(self.batches(loader, self.newest)) for loader in loaders] for _ in range(2)]
            for epoch in epochs:
                assert len({len(share) for share in epoch}) == 1, "partitions differ in length"
                ids = np.concatenate([rows for share in epoch for rows in share])
                whole = n // options["batch_size"] // partitions * partitions * options["batch_size"]
                expected = n if not options["drop_remainder"] and partitions == 1 else None
                assert len(np.unique(ids)) == len(ids), "a row came twice"
                assert expected is None or len(ids) == expected, "not every row came"
                assert len(ids) >= min(whole, n - partitions + 1), "too few rows came"
            first = loaders[0]
            first.load_state_dict({**first.state_dict(), "epoch": 0, "batch": 0})
            at, batches = int(rng.integers(0, len(first))), iter(first)
            for _ in range(at):
                next(batches)
            state = first.state_dict()
            batches.close()
            other = store.loader(**{**options, "seed": 9}, partition=0)
            other.load_state_dict(state)
            rest = list(self.batches(other, self.newest, at))
            expected_rest = epochs[0][0][at:]
            assert len(rest) == len(expected_rest), "resumed with another number of batches"
            assert all(map(np.array_equal, rest, expected_rest)), "resumed in another order"
            self.states = [*self.states[-3:], (state, options, np.concatenate([np.zeros(0, int), *expected_rest]))]

    def resume(self, seed: int) -> None:
        """Go on from a state saved earlier, in the version that it is of; where that is gone, it must be refused."""
        if not self.states:
            return
        rng = np.random.default_rng(seed)
        state, options, expected = self.states[rng.integers(len(self.states))]
        there = state["version"] in self.versions
        with ss.open(self.path, version=state["version"] if there else None) as store:
            if not there and not len(store):
                return
            options = options if there else {**options, "batch_size": 1, "n_partitions": 1}
            options = options if there else {name: options[name] for name in ("batch_size", "layout")}
            loader = store.loader(**options)
            try:
                loader.load_state_dict(state)
            except ValueError as error:
                if there or "not there any more" not in str(error):
                    raise
                return
            assert there, f"a state of version {state['version']} was taken by version {store.version}"
            found = np.concatenate([np.zeros(0, int), *self.batches(loader, self.versions[store.version])])
            assert np.array_equal(found, expected), "another order than when the state was saved"

    # ---- pinned views, gc, verify

    def pin(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        if len(self.pins) >= 4:
            store, model = self.pins.pop(int(rng.integers(4)))
            store.close()
        number = int(rng.choice(list(self.versions)))
        store, model = ss.open(self.path, version=number), self.versions[number]
        if rng.random() < 0.5:
            self.expect(store, model, slice(None))
        self.pins.append((store, model))

    def read_pin(self, seed: int) -> None:
        if not self.pins:
            return
        rng = np.random.default_rng(seed)
        store, model = self.pins[rng.integers(len(self.pins))]
        try:
            self.read_somewhere(rng, store, model)
        except ss.CorruptStoreError as error:
            if store.version in self.versions:
                raise
            if "gc removed it" not in str(error):
                raise AssertionError(f"the message does not say why: {error}") from None

    def gc(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        keep, age = int(rng.integers(1, 5)), ["0s", "24h"][int(rng.random() < 0.3)]
        with self.open() as store:
            planned = store.gc(keep_versions=keep, older_than=age, dry_run=True)
            assert store.versions == sorted(self.versions), "a dry run removed versions"
            if rng.random() < 0.4:
                return
            assert store.gc(keep_versions=keep, older_than=age) == planned, "it removed something else than was shown"
            self.versions = {number: self.versions[number] for number in sorted(self.versions)[-keep:]}
            assert store.versions == sorted(self.versions), "other versions stayed"
            if age != "0s":
                return
            named = set()
            for number in self.versions:
                with ss.open(self.path, version=number) as kept:
                    named |= {line.id for line in kept._reader.lines}
            there = {entry.name for entry in (self.path / "segments").glob("*")}
            assert there == named, f"segments left {there - named}, segments lost {named - there}"
            left = [*(self.path / "writers").glob("*")]
            assert left == [], f"left in writers: {left}"

    def verify(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        number = max(self.versions) if rng.random() < 0.5 else int(rng.choice(list(self.versions)))
        with ss.open(self.path, version=number) as store:
            problems = store.verify(deep=bool(rng.random() < 0.5))
            assert problems == [], f"version {number} is not sound: {problems[:3]}"
            self.expect(store, self.versions[number], slice(None))


def live(number: int, steps: int, folder: Path, machine: type[Life] = Life) -> tuple[str, str]:
    """One life: what came of it, and what went wrong."""
    told: dict[str, Any] = {"folder": folder, "note": Counter()}
    one = type("OneLife", (machine,), told)
    settings = hypothesis.settings(
        max_examples=1,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
        report_multiple_bugs=False,
    )
    try:
        with warnings.catch_warnings(), mock.patch("sparsestore.writer.INLINE_SEGMENTS", 5):
            warnings.simplefilter("ignore")
            run_state_machine_as_test(hypothesis.seed(number)(one), settings=settings)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "fault", f"{type(error).__name__}: {str(error)[:300]} ({Path(last.filename).name}:{last.lineno})"
    return "lived", ""


def lives(steps: int) -> Callable[[Sequence[int], Path], Tally]:
    """Run cases of so many steps."""

    def run(cases: Sequence[int], folder: Path) -> Tally:
        tally = Tally()
        for number in cases:
            outcome, fault = live(number, steps, folder)
            tally.outcomes[outcome] += 1
            if fault:
                tally.fault(number, fault)
        return tally

    return run


ABOUT = "create, append, convert, abort, crash, read, split, load, resume, pin, gc, reopen, verify in any order"
CAMPAIGN = Campaign("stateful", f"{ABOUT}: 75 steps", total=200, sample=200, few=2, unit=10, run=lives(75))
