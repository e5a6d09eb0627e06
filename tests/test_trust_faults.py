"""The campaigns of faults and losses see what they are made for; with a defence taken away each reports faults."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from trust import disk, faults, losses, scenes, tracing
from trust.scenes import SCENES

from sparsestore import maintain, storage, writer

pytestmark = pytest.mark.skipif(not tracing.AVAILABLE, reason="traces system calls as Linux on x86-64 has them")


# ------------------------------------------------------------------------------------------------------- tracing


def test_calls_are_seen_fail_and_are_cut_short(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def work() -> str:
        told = []
        descriptor = os.open(tmp_path / "a", os.O_CREAT | os.O_WRONLY)
        told.append(os.write(descriptor, b"0123456789"))
        try:
            os.fsync(descriptor)
        except OSError as error:
            told.append(error.errno)
        try:
            os.close(descriptor)
        except OSError as error:
            told.append(error.errno)
        try:
            os.fstat(descriptor)
        except OSError as error:
            told.append(error.errno)
        return str(told)

    def entering(call: tracing.Call) -> Any:
        if call.name == "write":
            return tracing.Short(call.arguments[2] // 2)
        return tracing.Fail(errno.EIO) if call.name in ("fsync", "close") else None

    told = tracing.trace(work, entering, lambda call, result: seen.append((call.name, result)))
    assert told == str([5, errno.EIO, errno.EIO, errno.EBADF])  # closed all the same
    assert (tmp_path / "a").read_bytes() == b"01234"
    assert [found for found in seen if found[0] in ("write", "fsync", "close")] == [
        ("write", 5),
        ("fsync", -errno.EIO),
        ("close", -errno.EIO),
    ]


def test_threads_that_outlive_the_work_are_let_go() -> None:
    def work() -> str:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return "done"

    started = time.monotonic()
    assert [tracing.trace(work, lambda _: None) for _ in range(20)] == ["done"] * 20
    assert time.monotonic() - started < 30


def test_a_child_that_dies_or_goes_round_in_circles_is_told() -> None:
    def circles() -> str:
        while True:
            os.stat("/")  # noqa: PTH116

    assert tracing.trace(lambda: str(os.kill(os.getpid(), signal.SIGTERM)), lambda _: None) == "died: status -15"
    assert tracing.trace(circles, lambda _: None, most=100) == "died: status -9"

    def raises() -> str:
        raise KeyError("x")

    assert "KeyError: 'x'" in tracing.trace(raises, lambda _: None)


# ------------------------------------------------------------------------------------------------------- the disk


def after_losses(steps: list[disk.Step], name: str, seed: int = 0) -> dict[str, bytes | None]:
    found = disk.Disk(disk.Folder())
    for step in steps:
        found.take(step)
    (which,) = (one for one in disk.ALL_LOSSES if one.name == name)
    return dict(found.crashed(random.Random(seed), which))


WRITTEN = [("mkdir", "d"), ("create", "d/f"), ("write", "d/f", 0, b"x" * 600)]


@pytest.mark.parametrize(
    ("steps", "name", "expected"),
    [
        (WRITTEN, "all lost", {}),
        (WRITTEN, "nothing lost", {"d": None, "d/f": b"x" * 600}),
        (WRITTEN, "contents lost, files empty", {"d": None, "d/f": b""}),
        (WRITTEN, "contents lost, zeros there", {"d": None, "d/f": bytes(600)}),
        ([*WRITTEN, ("sync", "d/f")], "all lost", {}),
        ([*WRITTEN, ("sync", "d/f"), ("sync", "d")], "all lost", {}),
        ([*WRITTEN, ("sync", "d/f"), ("sync", "d"), ("sync", "")], "all lost", {"d": None, "d/f": b"x" * 600}),
        ([*WRITTEN, ("sync", "d"), ("sync", "")], "all lost", {"d": None, "d/f": b""}),
        ([*WRITTEN, ("sync", "d/f"), ("link", "d/f", "g"), ("sync", "")], "all lost", {"d": None, "g": b"x" * 600}),
        ([*WRITTEN, ("sync", "d/f"), ("sync", "d"), ("remove", "d/f")], "nothing lost", {"d": None}),
        (
            [*WRITTEN, ("sync", "d/f"), ("sync", "d"), ("sync", ""), ("remove", "d/f")],
            "all lost",
            {"d": None, "d/f": b"x" * 600},
        ),
    ],
)
def test_only_what_was_synced_is_sure_to_be_found(
    steps: list[disk.Step], name: str, expected: dict[str, bytes | None]
) -> None:
    assert after_losses(steps, name) == expected


def test_by_chance_writes_are_lost_one_by_one_or_torn() -> None:
    steps = [("create", "f"), ("sync", ""), ("write", "f", 0, b"a" * 2048), ("write", "f", 2048, b"b" * 2048)]
    found = {after_losses(steps, "by chance 0", seed).get("f") for seed in range(200)}
    assert {b"", b"a" * 2048, b"a" * 2048 + b"b" * 2048, bytes(2048) + b"b" * 2048} <= found
    assert any(content and len(content) % 2048 for content in found)


# ------------------------------------------------------------------------------------- campaigns without a defence


def cases_of(scene: str, kind: str, *, for_ever: bool = False, step: int = 1, most: int = 30) -> list[int]:
    """Some cases of the campaign of faults."""
    found = []
    for case in range(faults.CAMPAIGN.total):
        meant = faults.meaning(case)
        if (meant[0].name, meant[1].name, meant[2]) == (scene, kind, for_ever) and meant[3] % step == 0:
            found.append(case)
    return found[:most]


def test_every_case_of_faults_is_one_of_its_own() -> None:
    ends = [0, *faults._ends()]
    numbers = sorted({case for end in ends for case in (end - 1, end) if 0 <= case < faults.CAMPAIGN.total})
    meant = {(scene.name, kind.name, often, at) for scene, kind, often, at in map(faults.meaning, numbers)}
    assert len(meant) == len(numbers)
    assert len(faults._parts()) == len(SCENES) * len(faults.KINDS) * 2


@pytest.mark.trust
def test_a_short_write_that_is_taken_for_a_whole_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_of("append", "short write", step=6)
    assert faults.run(cases, tmp_path / "sound").faults == []
    monkeypatch.setattr(writer.Writer, "_check_there", lambda _: None)  # which finds it too, by its length
    monkeypatch.setattr(
        storage.ObjectWriter, "_put", lambda self, view: len(view) and os.write(self.descriptor, view) and None
    )
    assert faults.run(cases, tmp_path / "short").faults


@pytest.mark.trust
def test_an_error_that_is_swallowed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_of("append", "ENOSPC", step=40)
    assert faults.run(cases, tmp_path / "sound").faults == []
    publish = writer.Writer.publish

    def careless(self: writer.Writer) -> int:
        try:
            return publish(self)
        except OSError:
            self.abort()
            return 2

    monkeypatch.setattr(writer.Writer, "publish", careless)
    assert "the store is as before it, after done" in str(faults.run(cases, tmp_path / "swallowed").faults)


@pytest.mark.trust
def test_an_error_that_names_no_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_of("append", "EMFILE", step=60)
    assert faults.run(cases, tmp_path / "sound").faults == []
    monkeypatch.setattr(storage, "_named", lambda error, _: error)
    assert "names nothing" in str(faults.run(cases, tmp_path / "unnamed").faults)


def lost(scene: str, moments: range) -> list[int]:
    """The cases of some moments of a scene of the campaign of losses."""
    meant = [(case, *losses.meaning(case)[:2]) for case in range(losses.CAMPAIGN.total)]
    return [case for case, found, moment in meant if found.name == scene and moment in moments]


@pytest.mark.trust
def test_the_power_may_fail_at_any_time(tmp_path: Path) -> None:
    tally = losses.run(lost("append", range(157, 170)), tmp_path)
    assert tally.faults == []
    assert {"append: before", "append: after"} <= set(tally.outcomes)


def at_the_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails when all is done: as moment 1."""
    monkeypatch.setattr(losses, "moments", lambda steps: [0, len(steps)])


@pytest.mark.trust
def test_files_that_are_not_synced_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(self: storage.ObjectWriter) -> None:
        self._flush()
        self.discard()

    at_the_end_alone(monkeypatch)
    assert losses.run(lost("append", range(1, 2)), tmp_path / "sound").faults == []
    monkeypatch.setattr(storage.ObjectWriter, "sync", sync)
    assert losses.run(lost("append", range(1, 2)), tmp_path / "unsynced").faults


@pytest.mark.trust
@pytest.mark.parametrize("which", ["the version's", "all others"])
def test_names_that_are_not_synced_are_found(tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = storage.LocalStorage.sync

    def forgetful(self: storage.LocalStorage, folder: str | None = None) -> None:
        if (folder is None) == (which == "the version's"):
            sync(self, folder)

    at_the_end_alone(monkeypatch)
    monkeypatch.setattr(storage.LocalStorage, "sync", forgetful)
    assert losses.run(lost("append", range(1, 2)), tmp_path).faults


@pytest.mark.trust
def test_a_gc_whose_removals_come_in_any_order_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert losses.run(lost("gc", range(1, 4)), tmp_path / "sound").faults == []
    monkeypatch.setattr(maintain.LocalStorage, "sync", lambda *_: None)
    monkeypatch.setattr(losses, "moments", lambda steps: [len(steps) * i // 8 for i in range(9)])
    assert losses.run(lost("gc", range(3, 6)), tmp_path / "any").faults


@pytest.mark.trust
@pytest.mark.parametrize("scene", [*SCENES, *scenes.MORE_SCENES], ids=lambda scene: scene.name)
def test_no_scene_makes_more_calls_than_there_are_cases_for(tmp_path: Path, scene: scenes.Scene) -> None:
    counts = dict.fromkeys((kind.name for kind in faults.KINDS), 0)

    def entering(call: tracing.Call) -> None:
        for kind in faults.KINDS:
            counts[kind.name] += kind.meets(call)

    with scenes.small(), scenes.stage(scene, tmp_path / "stage") as fresh:
        folder = fresh()
        assert tracing.trace(lambda: str(scene.work(folder)), entering) == "None"
    found = list(zip(counts.values(), faults.MOST[scene.name], strict=True))
    assert all(count <= most for count, most in found), counts
