"""Every bit of a small store with names of features flipped; its objects cut, gone, exchanged: an error, or the same.

The store of `flips`, `truncations` and `swaps` has no names, and stays as it is: their cases have numbers.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.sparse as sp

import sparsestore as ss
from sparsestore.manifest import read_manifest
from sparsestore.storage import LocalStorage
from trust import small_store
from trust.answers import OPENED, describe, judge, keys_read, plain, strict
from trust.campaign import Campaign, Tally
from trust.flips import _flipped
from trust.small_store import SmallStore
from trust.swaps import _put
from trust.truncations import _OTHERWISE, _damaged

BYTES = 31 << 10
OBJECTS = 101
VERSIONS = 4
"""Names are those of version 1 in the first two, then there are more features, and more names."""
_WIDTHS = (90, 90, 120)
_CUTS = BYTES + OBJECTS * len(_OTHERWISE)
_COPIES, _EXCHANGES = OBJECTS * (OBJECTS - 1), OBJECTS * (OBJECTS - 1) // 2
_ENDS = (8 * BYTES, 8 * BYTES + _CUTS, 8 * BYTES + _CUTS + _COPIES, 8 * BYTES + _CUTS + _COPIES + _EXCHANGES)
TOTAL = _ENDS[-1] + OBJECTS


def build(root: Path, *, seed: int = 0) -> SmallStore:
    """Build the store; another seed gives other values and names in objects of the same keys."""
    rng = np.random.default_rng(seed)
    matrices, columns = [], []
    for width in _WIDTHS:
        matrices.append(sp.random_array((9, width), density=0.05, rng=rng, dtype=np.float32, format="csr"))
        columns.append({"y": rng.integers(0, 3, 9)})
    names = [f"{'ü' * (i % 3)}name {i} of {seed}" for i in range(_WIDTHS[-1])]
    with small_store._the_same_each_time(8, f"{seed:032x}"), mock.patch("sparsestore.features.COLUMN_CHUNK", 32):
        for number, (x, beside) in enumerate(zip(matrices, columns, strict=True)):
            named = {"feature_names": names[: _WIDTHS[number]]} if number != 1 else {}
            if not number:
                ss.convert(x, root, columns=beside, progress=False, **named).close()
                continue
            grown: dict[str, Any] = {**named, "grow_features": True} if named else {}
            with ss.writer.append_to(root, **grown) as writer:
                writer.append(x, **beside)
    storage = LocalStorage(root)
    last = replace(read_manifest(storage, VERSIONS - 1), version=VERSIONS, attrs={"fill": ""})
    left = BYTES - sum(map(len, small_store.objects(root).values())) - len(small_store._payload(last))
    if left < 0:
        raise ValueError(f"the store has {-left} bytes more than {BYTES}")
    small_store._publish(root, replace(last, attrs={"fill": "x" * left}))
    return SmallStore(root, small_store.objects(root), matrices, columns)


def _names(store: ss.Store) -> Any:
    return list(store.feature_names)


def _selected(store: ss.Store) -> Any:
    return plain(store.select(features=[str(name) for name in store.feature_names[[3, 70, 0]]])[:])


def _rows(store: ss.Store) -> Any:
    return plain(store[:]), plain(store.column("y")[:])


_QUESTIONS: dict[str, Callable[[ss.Store], Any]] = {
    "facts": lambda store: (store.shape, store.nnz, store.version, store.attrs),
    "names": _names,
    "features by name": _selected,
    "rows": _rows,
}
_ASKED = tuple((name, version) for version in (VERSIONS, 1) for name in _QUESTIONS)


class Asker:
    """Asks the sound store once, and damaged ones again.

    Attributes
    ----------
    store : SmallStore
    needed : set of str
        Keys of the objects of the newest version.
    """

    def __init__(self, store: SmallStore) -> None:
        self.store = store
        self._answers: dict[tuple[str, int], Any] = {}
        self._read: dict[tuple[str, int], set[str]] = {}
        for asked in _ASKED:
            with keys_read() as keys:
                self._answers[asked] = self._ask(asked, 0)
            self._read[asked] = keys
        names = [self._answers["names", version] for version in (1, VERSIONS)]
        if names[0] != names[1][: _WIDTHS[0]] or len(names[1]) != _WIDTHS[-1]:
            raise AssertionError("the sound store does not have the names that were put into it")
        with keys_read() as self.needed, ss.open(store.root) as opened:
            if opened.verify(progress=False):
                raise AssertionError("the sound store is not sound")

    def _ask(self, asked: tuple[str, int], way: int) -> Any:
        with ss.open(self.store.root, version=asked[1], **OPENED[way]) as store:
            return _QUESTIONS[asked[0]](store)

    def asked_about(self, keys: Sequence[str], turn: int) -> list[str | None]:
        """What goes wrong with questions that read what changed: "" for an error, None for the same answer."""
        way = turn % len(OPENED)
        touching = [asked for asked in _ASKED if not self._read[asked].isdisjoint(keys)]
        if turn % 8 and touching:
            touching = [touching[turn // 8 % len(touching)]]
        wrong = [self._wrong(asked, way, keys) for asked in touching]
        if not self.needed.isdisjoint(keys) and (turn % 4 == 1 or not touching):
            wrong.append(self._unseen(way))
        return wrong

    def _wrong(self, asked: tuple[str, int], way: int, keys: Sequence[str]) -> str | None:
        try:
            answer = self._ask(asked, way)
        except ss.SparsestoreError as error:
            if len(keys) == 1 and keys[0].startswith("features/") and keys[0] not in str(error):
                return f"{asked}: the error does not name {keys[0]}: {error}"
            return ""
        except Exception as error:
            return f"{asked}: {describe(error)}"
        return None if answer == self._answers[asked] else f"{asked}: another answer, and no error ({OPENED[way]})"

    def _unseen(self, way: int) -> str | None:
        try:
            with ss.open(self.store.root, version=VERSIONS, **OPENED[way]) as store:
                found = store.verify(progress=False)
        except ss.SparsestoreError:
            return ""
        except Exception as error:
            return f"verify: {describe(error)}"
        return "" if found else "verify reports nothing"

    def crash_only(self, key: str) -> str | None:
        """What goes wrong without any check of bytes: answers may be any, errors only those of the package."""
        for asked in [asked for asked in _ASKED if key in self._read[asked]][:2]:
            try:
                with ss.open(self.store.root, version=asked[1], check="never") as store:
                    _QUESTIONS[asked[0]](store)
            except ss.SparsestoreError:
                pass
            except Exception as error:
                return f"{asked}, without checks: {describe(error)}"
        return ""


def run(cases: Sequence[int], folder: Path) -> Tally:
    """Damage the store as each case says, ask, put it back."""
    tally = Tally()
    root = small_store.place(folder)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with strict():
            asker, other = Asker(build(root / "store")), build(root / "other", seed=1)
            for case in cases:
                judge(tally, case, _case(case, asker, other))
    finally:
        gc.collect()
        shutil.rmtree(root, ignore_errors=True)
    return tally


def _case(case: int, asker: Any, other: SmallStore) -> list[str | None]:
    """What went wrong with one case."""
    store, keys = asker.store, asker.store.keys
    if case < _ENDS[0]:
        key, at = store.find(case // 8)
        return _flipped(asker, key, at, case % 8)
    number = case - _ENDS[0]
    if case < _ENDS[1]:
        if number < BYTES:
            key, length = store.find(number)
            return _damaged(asker, key, f"cut to {length}", number)
        which, kind = divmod(number - BYTES, len(_OTHERWISE))
        return _damaged(asker, keys[which], _OTHERWISE[kind], number)
    number = case - _ENDS[1]
    if case < _ENDS[2]:
        i, j = divmod(number, OBJECTS - 1)
        changes = {keys[j + (j >= i)]: store.objects[keys[i]]}
    elif case < _ENDS[3]:
        first, second = list(_pairs(keys))[number - _COPIES]
        changes = {first: store.objects[second], second: store.objects[first]}
    else:
        key = keys[number - _COPIES - _EXCHANGES]
        changes = {key: other.objects[key]}
    with _changed(store, changes):
        different = [key for key, payload in changes.items() if store.objects[key] != payload]
        return asker.asked_about(different, number) if different else [None]  # type: ignore[no-any-return]


def _pairs(keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((first, second) for i, first in enumerate(keys) for second in keys[i + 1 :])


@contextmanager
def _changed(store: SmallStore, changes: dict[str, bytes]) -> Iterator[None]:
    try:
        for key, payload in changes.items():
            _put(store.root / key, payload)
        yield
    finally:
        for key in changes:
            _put(store.root / key, store.objects[key])


CAMPAIGN = Campaign(
    name="names",
    about="as flips, truncations and swaps, of a store with names of features",
    total=TOTAL,
    sample=1000,
    few=60,
    unit=1500,
    run=run,
)
