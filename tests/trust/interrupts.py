"""A KeyboardInterrupt at every place where Python hears a signal, while something is done to a store or it is read.

A signal's handler runs where the interpreter looks for one: as a function begins or a generator goes on, when a loop
jumps back, and behind a call of compiled code. The places of a scene are recorded once: the first two times that each
is reached from the same two callers, so that loops do not make most of them. A case is the k-th of these.

What an interrupt may leave is less than what a fault may: without a `gc` nothing is there that nobody needs, but where
it is one that was interrupted, and where a conversion keeps its whole parts to be gone on with.
"""

from __future__ import annotations

import dis
import gc
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

from sparsestore.journal import JournalState, all_journals
from sparsestore.storage import LocalStorage
from trust import scenes
from trust.answers import describe
from trust.campaign import Campaign, Tally
from trust.scenes import MORE_SCENES, SCENES, STORE, Export, Scene

OF = (*SCENES, *MORE_SCENES)
MOST = {
    "convert": 6_400,
    "shuffle and overwrite": 7_300,
    "append": 5_100,
    "gc": 2_000,
    "read mapped": 10_200,
    "read": 10_200,
    "optimize": 10_000,
    "export": 4_600,
    "export over a file": 4_600,
}
"""More places than each scene has: the rest of the cases find none."""
CALLERS, VISITS = 2, 2
_CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"})
# of a function in Python they go on in its frame, which looks for signals itself, as does nobody when it returns
_INLINED = _CALLS if sys.version_info >= (3, 12) else frozenset({"CALL"})
_HEARD = _CALLS | {"JUMP_BACKWARD", "RESUME"}
_FROM_C = ("__init__", "__new__", "__call__")  # these are called by compiled code


@dataclass(frozen=True)
class Place:
    """Where a signal is heard: before the step-th instruction in the frame of the call-th call of a function."""

    call: int
    step: int
    code: CodeType
    at: int


@cache
def _instructions(code: CodeType) -> dict[int, str]:
    """Those behind which a signal may be heard."""
    return {
        one.offset: one.opname
        for one in dis.get_instructions(code)
        if one.opname in _HEARD and not (one.opname == "RESUME" and (one.arg or 0) > 1)  # of yield from, and await
    }


def _tell(frame: FrameType, within: Callable[[FrameType, str, Any], Any]) -> None:
    """Have a function told of the instructions of a frame, and of its end."""
    frame.f_trace, frame.f_trace_lines = within, False
    frame.f_trace_opcodes = True  # from 3.13 on it is heeded where there is somebody to be told


def _trace(function: Callable[[FrameType, str, Any], Any], work: Callable[[], object]) -> None:
    """Do some work, of whose calls a function is told; no garbage is collected, which comes at any moment."""
    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # 3.12 heeds it where somebody asked before it begins
    gc.collect()
    gc.disable()
    sys.settrace(function)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()


def places(work: Callable[[], object]) -> list[Place]:
    """Where signals are heard in some work, as it goes by itself."""
    found: list[Place] = []
    visits: Counter[Any] = Counter()
    calls = 0
    returned: FrameType | None = None

    def called(frame: FrameType, _event: str, _: Any) -> Any:
        nonlocal calls
        calls += 1
        call, step = calls, 0
        instructions = _instructions(frame.f_code)
        before = instructions.get(frame.f_lasti, "")

        def within(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal step, before, returned
            if event == "return":
                returned = frame
            if event != "opcode":
                return within
            step += 1
            last, before = before, instructions.get(frame.f_lasti, "")
            callee, returned = returned, None
            in_its_frame = callee is not None and callee.f_back is frame and callee.f_code.co_name not in _FROM_C
            if last and not (last in _INLINED and in_its_frame):
                key = _callers(frame)
                visits[key] += 1
                if visits[key] <= VISITS:
                    found.append(Place(call, step, frame.f_code, frame.f_lasti))
            return within

        _tell(frame, within)
        return within

    _trace(called, work)
    return found


def places_of_a_second(work: Callable[[], object], undo: Callable[[], object]) -> list[Place]:
    """The same where some work was done before, and with it what is done but once; it is undone each time."""
    work()
    undo()
    found = places(work)
    undo()
    return found


def _callers(frame: FrameType) -> tuple[Any, ...]:
    """An instruction and those that called it."""
    key: list[Any] = []
    each: FrameType | None = frame
    while each is not None and len(key) < 2 * (CALLERS + 1):
        key += [each.f_code, each.f_lasti]
        each = each.f_back
    return tuple(key)


def interrupted(work: Callable[[], object], place: Place) -> tuple[bool, bool]:
    """Do some work, and raise a KeyboardInterrupt in it; whether the place was reached, and whether the work ended."""
    calls, reached = 0, False

    def called(frame: FrameType, _event: str, _: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != place.call or frame.f_code is not place.code:
            return None
        step = 0

        def within(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal step, reached
            if event == "opcode":
                step += 1
                if step == place.step and frame.f_lasti == place.at:
                    reached = True
                    raise KeyboardInterrupt
            return within

        _tell(frame, within)
        return within

    try:
        _trace(called, work)
    except KeyboardInterrupt:
        if not reached:
            raise
        return True, False
    return reached, True


# ----------------------------------------------------------------------------------------------------------- the cases


@cache
def _ends() -> list[int]:
    return list(accumulate(MOST[scene.name] for scene in OF))


def meaning(case: int) -> tuple[Scene, int]:
    """Scene, and which of its places."""
    part = next(i for i, end in enumerate(_ends()) if case < end)
    return OF[part], case - (_ends()[part - 1] if part else 0)


def run(cases: Sequence[int], folder: Path) -> Tally:
    """Interrupt at the places that the cases say, judge what is told and what is there."""
    tally = Tally()
    for scene, numbers, fresh in scenes.staged(cases, lambda case: meaning(case)[0], folder, OF):
        found = _places(scene, fresh)
        if len(found) > MOST[scene.name]:
            tally.fault(numbers[0], f"{scene.name}: {len(found)} places, of which {MOST[scene.name]} are cases")
        gc.freeze()  # what there is by now is not looked at again with each case
        for case in numbers:
            at = meaning(case)[1]
            if at >= len(found):
                tally.outcomes["no such place"] += 1
                continue
            label, wrong = _case(scene, found[at], at, fresh())
            tally.outcomes[f"{scene.name}: {label}" if not wrong else "fault"] += 1
            for what in wrong:
                code = found[at].code
                line = next((line for start, end, line in code.co_lines() if start <= found[at].at < end), None)
                where = f"{Path(code.co_filename).name}, line {line}, {code.co_qualname}"
                tally.fault(case, f"{scene.name}, interrupted in {where}: {what}")
    return tally


def _places(scene: Scene, fresh: Callable[[], Path]) -> list[Place]:
    """Those of a scene, done once more before: what is asked of types is kept from then on."""
    _trace(lambda *_: None, partial(scene.work, fresh()))
    return places(partial(scene.work, fresh()))


def _case(scene: Scene, place: Place, at: int, folder: Path) -> tuple[str, list[str]]:
    """What came of one case, and what is wrong with it."""
    unraisable: list[BaseException | None] = []
    with mock.patch.object(sys, "unraisablehook", lambda found: unraisable.append(found.exc_value)):
        try:
            reached, ended = interrupted(partial(scene.work, folder), place)
        except BaseException as error:
            return "", [f"it ended with {describe(error)}"]
        gc.collect()  # what the interrupt's traceback held
    if not reached:
        return "another way", []
    swallowed = any(isinstance(error, KeyboardInterrupt) for error in unraisable)
    # a file whose owner was interrupted before it knew it is closed when it goes, which warns
    strange = [error for error in unraisable if not isinstance(error, (KeyboardInterrupt, ResourceWarning))]
    if strange:
        return "", [f"not raised: {describe(error)}" for error in strange if error is not None]
    if ended and not swallowed:
        return "", ["it went on as if there had been no interrupt"]
    state, wrong = scene.state(folder)
    if wrong:
        return "", [wrong]
    if ended and state != "after":
        return "", [f"it ended, and the store is as {state} it"]
    found = [] if _has_parts(folder) or scene.name == "gc" else _left(scene, folder, state)
    found += scenes.gone_on(scene, folder, state, at)
    return ("swallowed by Python" if swallowed else f"as {state} it"), found


def _left(scene: Scene, folder: Path, state: str) -> list[str]:
    """What an interrupt has left that nobody needs."""
    names = scenes.unneeded(scene, folder)
    if state == "before" and scene.before is None and not isinstance(scene, Export):
        names += [STORE] * (folder / STORE).exists()
    return [f"left by the interrupt: {len(names)}, {names[-3:]}"] if names else []


def _has_parts(folder: Path) -> bool:
    """Whether a journal says what can be gone on with."""
    storage = LocalStorage(folder / STORE)
    return any(JournalState.parse(storage.read(key)).parts for key in all_journals(storage))


def main() -> None:
    """Print how many places each scene has: for `MOST`."""
    with tempfile.TemporaryDirectory() as folder:
        for scene, _, fresh in scenes.staged(range(len(OF)), lambda case: OF[case], Path(folder), OF):
            sys.stdout.write(json.dumps({scene.name: len(_places(scene, fresh))}) + "\n")


CAMPAIGN = Campaign(
    name="interrupts",
    about="a KeyboardInterrupt at every place where Python hears a signal, of all that is done to a store",
    total=sum(MOST.values()),
    sample=200,
    few=8,
    unit=200,
    run=run,
    limit_s=180,
)

if __name__ == "__main__":
    main()
