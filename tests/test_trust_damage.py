"""The campaigns of damage find what they are made for: with a defence taken away, each reports faults."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from trust import flips, mutation, plain, small_store, structure, swaps, truncations
from trust.answers import QUESTIONS, Bench

import sparsestore as ss
from sparsestore import arrays, documents, row_starts, storage
from sparsestore.format import manifest_key
from sparsestore.kernels import offsets

pytestmark = [
    pytest.mark.trust,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="campaigns run on Linux"),
]


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    with Bench(tmp_path) as bench:
        yield bench


@pytest.fixture(params=small_store.PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    return request.param


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are not compared with their checksums."""
    monkeypatch.setattr(arrays.ArrayReader, "_check_encoded", lambda *_: None)
    monkeypatch.setattr(arrays.ArrayReader, "_check_pieces", lambda *_: None)


def first_of(store: small_store.SmallStore, part: str) -> int:
    """Number of the first byte of an object whose key ends so."""
    at = 0
    for key, payload in store.objects.items():
        if key.endswith(part):
            return at
        at += len(payload)
    raise LookupError(part)


# ------------------------------------------------------------------------------------------------ the small store


def test_the_small_store_is_the_same_each_time(tmp_path: Path, profile: str) -> None:
    first, second = (small_store.build(profile, tmp_path / name) for name in "ab")
    assert first.objects == second.objects
    assert sum(map(len, first.objects.values())) == small_store.BYTES
    assert len(first.objects) == small_store.OBJECTS
    assert len(swaps.folder_pairs(first)) == swaps.FOLDERS
    other = small_store.build(profile, tmp_path / "c", seed=1)
    assert other.keys == first.keys
    assert other.objects != first.objects


def test_the_small_store_has_all_that_a_store_can_have(tmp_path: Path, profile: str) -> None:
    store = small_store.build(profile, tmp_path / "s")
    facts = [json.loads(store.objects[f"segments/{name}/segment.json"]) for name in store.segments]
    assert [fact["indices_dtype"] for fact in facts] == ["uint16", "int32", "int64"]
    assert [fact["data_dtype"] for fact in facts] == ["uint8", "float32", "float32"]
    assert [fact["constant"] for fact in facts] == [False, False, True]
    assert any("versions/pages/" in key for key in store.keys)
    assert any(key.endswith("columns/row_id/c/0") for key in store.keys)
    assert any(key.endswith("columns/age.mask/c/0") for key in store.keys)
    assert ss.open(store.root).versions == list(range(1, small_store.ALL + 1))
    assert sorted(store.columns[0]["row_id"]) == list(range(small_store.ROWS[0]))


def test_questions_read_every_object_of_the_newest_version_that_readers_need(bench: Bench, profile: str) -> None:
    asker = bench.asker(profile)
    read = set().union(*asker.read.values())
    # groups' own documents, counts of rows' entries and statistics of masked labels are for others and for verify
    unread = {key for key in asker.needed - read if "/stats/" not in key}
    assert {key.rpartition("/")[2] for key in unread} <= {"zarr.json"}
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS)


# ---------------------------------------------------------------------------------- campaigns without a defence


def test_flips_are_found_where_checksums_are_not_compared(
    bench: Bench, tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = small_store.PROFILES.index(profile) * 8 * small_store.BYTES
    at = first_of(bench.asker(profile).store, "X/data/c/0")
    cases = [start + 8 * (at + i) + 1 for i in range(0, 64, 2)]
    assert flips.run(cases, tmp_path / "sound").faults == []
    unchecked(monkeypatch)
    assert "another answer, and no error" in str(flips.run(cases, tmp_path / "unchecked").faults)


def test_links_are_found_where_they_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = len(truncations._OTHERWISE)
    cases = [small_store.BYTES + which * kinds + truncations._OTHERWISE.index("link") for which in (20, 40, 60)]
    assert truncations.run(cases, tmp_path / "sound").faults == []
    monkeypatch.setattr(storage, "_PLAIN", os.O_CLOEXEC)
    monkeypatch.setattr(storage.LocalStorage, "length", lambda self, key: self.path(key).stat().st_size)
    assert "reports nothing" in str(truncations.run(cases, tmp_path / "followed").faults)


def test_cuts_are_found_where_an_error_is_of_another_kind(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: Any, key: str) -> bytes:
        payload: bytes = self.path(key).read_bytes()
        return payload[0:1] + payload[1:] if payload[0] else payload

    cases = [first_of(bench.asker("raw").store, manifest_key(small_store.ALL))]
    assert truncations.run(cases, tmp_path / "sound").faults == []
    monkeypatch.setattr(storage.LocalStorage, "read", read)
    assert "IndexError" in str(truncations.run(cases, tmp_path / "cut").faults)


def test_objects_of_another_store_are_found_where_checksums_are_not_compared(
    bench: Bench, tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = bench.asker(profile).store, bench.other(profile)
    alike = [
        i
        for i, (key, payload) in enumerate(store.objects.items())
        if "/columns/two/c/0" in key and "checksums" not in key and len(other.objects[key]) == len(payload)
    ]
    start = small_store.PROFILES.index(profile) * swaps._OF_ONE + swaps._COPIES + swaps._EXCHANGES
    cases = [start + i for i in alike]
    assert cases
    assert swaps.run(cases, tmp_path / "sound").faults == []
    unchecked(monkeypatch)
    assert "another answer, and no error" in str(swaps.run(cases, tmp_path / "unchecked").faults)


@pytest.mark.parametrize("kind", ["offsets", "keys that come twice", "feature numbers", "order"])
def test_structures_are_found_where_a_rule_is_not_kept(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {
        "offsets": ("offsets", (offsets, "narrow", lambda *_: 1)),
        "keys that come twice": ("manifest", (documents, "_each_key_once", dict)),
        "feature numbers": ("array", (arrays.ArrayReader, "_check_features", lambda *_: None)),
        "order": ("store", (row_starts.RowStarts, "inside", lambda *_: np.zeros(0, np.int64))),
    }
    name, (place, defence, none) = kinds[kind]
    numbers = [number for number, (found, _) in enumerate(structure._KINDS) if found == name]
    repeats = {"keys that come twice": 150, "order": 80}.get(kind, 40)
    cases = [50 * i + number for i in range(repeats) for number in numbers]
    assert structure.run(cases, tmp_path / "sound").faults == []
    monkeypatch.setattr(place, defence, none)
    assert structure.run(cases, tmp_path / "broken").faults != []


# ------------------------------------------------------------------------------------------------ their own tools


@pytest.mark.filterwarnings("ignore:Object at segment.json")
def test_the_plain_reader_reads_what_zarr_reads(tmp_path: Path, profile: str) -> None:
    store = small_store.build(profile, tmp_path / "s")
    for segment in store.segments:
        group = zarr.open_group(store.root / "segments" / segment, mode="r")
        for path in ("X/indptr", "X/indices", "X/data", "columns/y", "columns/name", "columns/two", "stats/nnz"):
            expected = group[path][:]
            found = plain.array(store.objects, f"segments/{segment}/{path}")
            assert found.tolist() == expected.tolist()
            rows = np.array([len(expected) - 1, 0])
            assert plain.array(store.objects, f"segments/{segment}/{path}", rows).tolist() == expected[[-1, 0]].tolist()


def test_a_mutation_is_its_number_alone() -> None:
    document = {"a": [1, 2.5, "x"], "b": {"c": None, "d": True}}
    first, second = ([mutation.document(random.Random(i), document) for i in range(300)] for _ in range(2))
    assert repr(first) == repr(second)
    assert len({repr(found) for found in first}) > 150
    payload = b'{"a":[1,2.5,"x"]}'
    assert [mutation.mutated(random.Random(i), payload) for i in range(99)] == [
        mutation.mutated(random.Random(i), payload) for i in range(99)
    ]
    assert document == {"a": [1, 2.5, "x"], "b": {"c": None, "d": True}}


@pytest.mark.parametrize(("first", "second"), [(1, 1.0), (1, True), (0, False), ([1], [1.0]), ({"a": 1}, {"a": True})])
def test_numbers_of_another_type_are_not_the_same(first: Any, second: Any) -> None:
    assert first == second
    assert not plain.same(first, second)
    assert plain.same(first, first)
