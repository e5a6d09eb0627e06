"""Contents of objects exchanged, copied or brought from another store; folders exchanged; versions renamed.

Every checksum of what is moved holds where it came from.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from sparsestore.format import manifest_key
from trust.answers import Bench, judge, strict
from trust.campaign import Campaign, Tally
from trust.small_store import ALL, OBJECTS, PROFILES, SmallStore

FOLDERS = 4162
"""Pairs of folders of the small store of which neither holds the other."""
_COPIES, _EXCHANGES = OBJECTS * (OBJECTS - 1), OBJECTS * (OBJECTS - 1) // 2
_RENAMED = ALL * ALL  # a manifest to the place of another, or to that of the next version
_OF_ONE = _COPIES + _EXCHANGES + OBJECTS + FOLDERS + _RENAMED + 1
"""Cases of one profile."""


def run(cases: Sequence[int], folder: Path) -> Tally:
    """Move what each case says, ask, put it back."""
    tally = Tally()
    others: dict[str, SmallStore] = {}
    with Bench(folder) as bench, strict():
        for case in cases:
            number, name = case % _OF_ONE, PROFILES[case // _OF_ONE]
            asker = bench.asker(name)
            if name not in others:
                others[name] = bench.other(name)
            with _moved(asker.store, others[name], number) as moved:
                changed = [key for key, payload in moved.items() if asker.store.objects.get(key) != payload]
                judge(tally, case, asker.asked_about(changed, number) if changed else [None])
    return tally


@contextlib.contextmanager
def _moved(store: SmallStore, other: SmallStore, number: int) -> Iterator[dict[str, bytes | None]]:
    """What is where something else was, None for nothing; all is as it was when the block ends."""
    root, keys = store.root, store.keys
    if number < _COPIES:
        i, j = divmod(number, OBJECTS - 1)
        changes: dict[str, bytes | None] = {keys[j + (j >= i)]: store.objects[keys[i]]}
    elif number < _COPIES + _EXCHANGES:
        first, second = _pair(keys, number - _COPIES)
        changes = {first: store.objects[second], second: store.objects[first]}
    elif number < _COPIES + _EXCHANGES + OBJECTS:
        key = keys[number - _COPIES - _EXCHANGES]
        changes = {key: other.objects[key]}
    elif number < _OF_ONE - _RENAMED - 1:
        first, second = folder_pairs(store)[number - _COPIES - _EXCHANGES - OBJECTS]
        with _folders_exchanged(root / first, root / second):
            yield _exchanged(store, first, second)
        return
    elif number < _OF_ONE - 1:
        i, j = divmod(number - (_OF_ONE - _RENAMED - 1), ALL)
        places = [manifest_key(n) for n in range(1, ALL + 2)]
        changes = {places[i]: None, places[j + (j >= i)]: store.objects[places[i]]}
    else:  # the manifest of another store, and its zarr.json
        changes = {key: other.objects[key] for key in (manifest_key(ALL), "zarr.json")}
    try:
        for key, payload in changes.items():
            _put(root / key, payload)
        yield changes
    finally:
        for key in changes:
            _put(root / key, store.objects.get(key))


def _put(path: Path, payload: bytes | None) -> None:
    if payload is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(payload)


def _exchanged(store: SmallStore, first: str, second: str) -> dict[str, bytes | None]:
    """What is where once two folders have changed places."""
    changes: dict[str, bytes | None] = {}
    for here, there in ((first, second), (second, first)):
        moved = {key: payload for key, payload in store.objects.items() if key.startswith(f"{here}/")}
        changes |= {key: None for key in moved if key not in changes}
        changes |= {there + key[len(here) :]: payload for key, payload in moved.items()}
    return changes


def _pair(keys: Sequence[str], number: int) -> tuple[str, str]:
    """One of all pairs, in the order of `itertools.combinations`."""
    i = 0
    while number >= len(keys) - 1 - i:
        number -= len(keys) - 1 - i
        i += 1
    return keys[i], keys[i + 1 + number]


@functools.cache
def folder_pairs(store: SmallStore) -> list[tuple[str, str]]:
    """Pairs of groups and arrays of which neither holds the other."""
    folders = sorted(key.rpartition("/")[0] for key in store.keys if key.endswith("/zarr.json"))
    return [(a, b) for a, b in combinations(folders, 2) if not b.startswith(f"{a}/")]


@contextlib.contextmanager
def _folders_exchanged(first: Path, second: Path) -> Iterator[None]:
    aside = first.parent / ".aside"

    def exchange() -> None:
        first.rename(aside)
        second.rename(first)
        aside.rename(second)

    exchange()
    try:
        yield
    finally:
        exchange()


CAMPAIGN = Campaign(
    name="swaps",
    about="objects, folders and versions in the places of others",
    total=2 * _OF_ONE,
    sample=1600,
    few=60,
    unit=1500,
    run=run,
)
