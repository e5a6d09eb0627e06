"""The campaign of kills sees faults: writers whose defences are taken away have some, as they are they have none."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trust import kills
from trust.kills import Bench, Moment, Step, Work

from sparsestore import maintain
from sparsestore.checksum import crc32c
from sparsestore.journal import Journal
from sparsestore.storage import LocalStorage, ObjectWriter
from sparsestore.writer import Writer, append_to

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and kills as Linux has them")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with kills.bench(tmp_path / "bench") as made:
        yield made


def an_append(bench: Bench) -> Work:
    return Work("append", ("append",), 1, "raw", [kills.append(bench.given("memory", kills.SHORT))])


def a_conversion(bench: Bench) -> Work:
    given = bench.given("memory", kills.LONG)
    return Work("convert", ("convert",), 0, "raw", [kills.convert(given, {"profile": "raw"})])


def a_collection(bench: Bench) -> Work:
    return Work("gc", ("gc",), 4, "raw", [kills.collect(1)])


def faults(
    bench: Bench, work: Work, *, first: int = 1, last: int | None = None, step: int = 1, how: str = "before"
) -> Iterator[str]:
    """What goes wrong when the work is killed at each call from one to another; from the end where negative."""
    calls = bench.usual(work.key, work.steps, work.profile, work.state).calls
    first = calls + first if first < 0 else first
    for call in range(first, (calls if last is None else last) + 1, step):
        yield from bench.tried(work, [Moment(call=call, how=how)])[1]


@pytest.mark.parametrize("how", ["before", "half", "after"])
def test_a_version_that_is_published_as_it_is_has_none(bench: Bench, how: str) -> None:
    assert list(faults(bench, an_append(bench), first=-8, how=how)) == []


def test_a_gc_as_it_is_has_none(bench: Bench) -> None:
    assert list(faults(bench, a_collection(bench), last=8)) == []


def test_a_manifest_that_is_written_in_place_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "publish", lambda self, key, payload, _: self.put(key, payload))
    found = next(faults(bench, an_append(bench), first=-12, how="half"), "")
    assert "version 2: CorruptStoreError: " in found


def put_late(monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    """Let segment.json be written after a part was noted, or after a version was published."""
    late: list[tuple[LocalStorage, str, bytes]] = []
    put, publish, note = LocalStorage.put, LocalStorage.publish, Journal.note

    def later(self: LocalStorage, key: str, payload: bytes, **options: Any) -> ObjectWriter:
        if not key.endswith("/segment.json"):
            return put(self, key, payload, **options)
        late.append((self, key, payload))
        return ObjectWriter(key, self.path(key), -1, lambda _: None, len(payload), crc32c(payload))

    def put_now() -> None:
        while late:
            put(*late.pop())

    def publishing(self: LocalStorage, *arguments: Any) -> None:
        if after == "part":
            put_now()
        publish(self, *arguments)
        put_now()

    def noting(self: Journal, kind: str, value: Any, **options: Any) -> None:
        note(self, kind, value, **options)
        if kind == after:
            put_now()

    monkeypatch.setattr(LocalStorage, "put", later)
    monkeypatch.setattr(LocalStorage, "publish", publishing)
    monkeypatch.setattr(Journal, "note", noting)
    monkeypatch.setattr(Writer, "_check_there", lambda _: None)  # which would find it before it is published


def test_a_version_that_is_published_before_it_is_whole_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    put_late(monkeypatch, "publish")
    found = next(faults(bench, an_append(bench), first=-12), "")
    assert "version 2: CorruptStoreError: " in found
    assert "the object is missing" in found


def test_a_part_that_is_noted_before_it_is_whole_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    put_late(monkeypatch, "part")
    found = next(faults(bench, a_conversion(bench), first=200, step=3), "")
    assert "segment.json is missing: what was done of this conversion can not be used" in found


def test_a_part_that_is_not_noted_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Journal.note
    monkeypatch.setattr(Journal, "note", lambda self, kind, value, **o: kind == "part" or note(self, kind, value, **o))
    found = next(faults(bench, a_conversion(bench), first=-30), "")
    assert "rows were durable in whole parts, the journal has 0 of them" in found


def test_rows_that_are_written_again_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills.conversion, "_behind", lambda blocks, _: blocks)
    found = next(faults(bench, a_conversion(bench), first=-30), "")
    assert "rows were written, with" in found


def test_a_conversion_that_starts_from_zero_again_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills.conversion._Conversion, "unfinished", lambda self, *_: (self, None, None))
    found = next(faults(bench, a_conversion(bench), first=-30), "")
    assert "rows were written, with" in found


def test_a_gc_that_removes_segments_before_versions_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gc = maintain.gc

    def backwards(path: Path, **options: Any) -> None:
        for key in reversed(gc(path, **options, dry_run=True)):
            LocalStorage(path).remove(key)

    monkeypatch.setattr(maintain, "gc", backwards)
    assert any("is missing" in fault for fault in faults(bench, a_collection(bench), first=5))


def test_garbage_that_gc_leaves_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintain, "DRAWN", ("segments", "features", "versions/pages"))
    assert "gc leaves ['writers/" in next(faults(bench, an_append(bench), first=-30), "")


def test_what_is_left_beside_the_store_is_found(bench: Bench) -> None:
    def do(path: Path) -> None:
        (path.parent / "left").write_text("")
        append.do(path)

    append = an_append(bench).steps[0]
    work = Work("append", ("left",), 1, "raw", [Step(do, append.states)])
    assert "left outside the store" in " ".join(bench.tried(work, [Moment(call=9)])[1])


def test_a_version_that_is_acknowledged_before_it_is_there_is_found(bench: Bench) -> None:
    given = bench.given("memory", kills.SHORT)

    def do(path: Path) -> None:
        writer = append_to(path)
        writer.append(given.x, y=given.y)
        threading.Timer(5, writer.publish).start()

    work = Work("append", ("early",), 1, "raw", [Step(do, an_append(bench).steps[0].states)])
    assert "versions [1] are there, expected [1, 2]" in bench.tried(work, [Moment(call=10**9)])[1][0]
