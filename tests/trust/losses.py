"""The power fails just before and just after every fsync of a conversion, an append and a gc, and what was not synced
is lost, in whole or in part, in any order: there is the old version or the new one.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

import sparsestore as ss
from trust import scenes
from trust.answers import describe
from trust.campaign import Campaign, Tally
from trust.disk import ALL_LOSSES, Disk, Losses, Recorder, Step, taken
from trust.scenes import SCENES, SOURCE, STORE, Scene
from trust.tracing import trace

MOST: dict[str, int] = {"convert": 140, "shuffle and overwrite": 100, "append": 90, "gc": 4, "optimize": 200}
"""More fsyncs than each scene makes: the rest of the cases find none."""


WRITING = SCENES[:4]
"""Scenes that write."""


@cache
def _ends(of: tuple[Scene, ...] = WRITING) -> list[int]:
    return list(accumulate(len(ALL_LOSSES) * (2 * MOST[scene.name] + 1) for scene in of))


def total(of: tuple[Scene, ...]) -> int:
    """Cases of some scenes."""
    return _ends(of)[-1]


def meaning(case: int, of: tuple[Scene, ...] = WRITING) -> tuple[Scene, int, Losses]:
    """Scene, which moment of it, and what is lost."""
    part = next(i for i, end in enumerate(_ends(of)) if case < end)
    moment, which = divmod(case - (_ends(of)[part - 1] if part else 0), len(ALL_LOSSES))
    return of[part], moment, ALL_LOSSES[which]


def moments(steps: Sequence[Step]) -> list[int]:
    """Numbers of steps at which the power fails: before and after each sync, and at the end."""
    return [at for i, step in enumerate(steps) if step[0] == "sync" for at in (i, i + 1)] + [len(steps)]


def run(cases: Sequence[int], folder: Path, of: tuple[Scene, ...] = WRITING) -> Tally:
    """Record each scene once, then lose of it what the cases say."""
    tally = Tally()
    for scene, numbers, fresh in scenes.staged(cases, lambda case: meaning(case, of)[0], folder, of):
        _scene(scene, {case: meaning(case, of) for case in numbers}, fresh(), tally)
    return tally


def _scene(scene: Scene, cases: dict[int, tuple[Scene, int, Losses]], folder: Path, tally: Tally) -> None:
    disk, recorder = Disk(taken(folder)), Recorder(folder)
    told = trace(lambda: scene.work(folder) or "done", lambda _: None, recorder.leaving)
    if told != "done":
        raise AssertionError(f"{scene.name}: {told}")
    cuts, done = moments(recorder.steps), 0
    if len(cuts) > 2 * MOST[scene.name] + 1:
        raise AssertionError(f"{scene.name} has {len(cuts) // 2} fsyncs: more than MOST says")
    for case, (_, moment, losses) in cases.items():
        if moment >= len(cuts):
            tally.outcomes["no such fsync"] += 1
            continue
        while done < cuts[moment]:
            disk.take(recorder.steps[done])
            done += 1
        _placed(folder, disk, random.Random(case), losses)
        state, wrong = _judged(scene, folder, moment, acknowledged=moment == len(cuts) - 1)
        tally.outcomes[f"{scene.name}: {state}" if not wrong else "fault"] += 1
        for what in wrong:
            tally.fault(case, f"{scene.name}, moment {moment} of {len(cuts)}, {losses.name}: {what}")


def _placed(folder: Path, disk: Disk, rng: random.Random, losses: Losses) -> None:
    """What is found when the power is back; the source's file, which nobody writes, is as it was."""
    shutil.rmtree(folder / STORE, ignore_errors=True)
    for path, content in disk.crashed(rng, losses):
        if path == SOURCE:
            continue
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def _judged(scene: Scene, folder: Path, moment: int, *, acknowledged: bool) -> tuple[str, list[str]]:
    try:
        state, wrong = scene.state(folder)
        if wrong:
            return "", [wrong]
        if acknowledged and state != "after":
            return "", [f"it was acknowledged, and is as {state}"]
        if state == "after" or scene.before is not None:
            with ss.open(folder / STORE) as store:
                problems = store.verify()
                for version in store.versions[:-1]:
                    with ss.open(folder / STORE, version=version) as older:
                        problems += older.verify()
            if problems:
                return "", [f"verify: {problems[:3]}"]
    except Exception as error:
        return "", [describe(error)]
    return state, scenes.gone_on(scene, folder, state, moment)


CAMPAIGN = Campaign(
    name="losses",
    about="the power fails before or after an fsync, and what was not synced is lost as it happens",
    total=total(WRITING),
    sample=300,
    few=12,
    unit=200,
    run=run,
)
