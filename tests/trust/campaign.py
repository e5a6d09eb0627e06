"""What a campaign is, and running one: in processes of their own, by units that can be resumed.

A campaign is a number of cases, and a case is its number alone: the same number is the same damage, fault or mutation
on any machine. A unit is some cases that one process runs; a process that dies or hangs is a fault of the case at which
it did.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

_TESTS = Path(__file__).parent.parent


@dataclass
class Tally:
    """What came of some cases.

    Attributes
    ----------
    outcomes : Counter of str
        Cases by what came of them, e.g. "CorruptStoreError" or "same answer".
    faults : list of str
        What must never be: a line each, which starts with the number of its case.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, case: int, what: str) -> None:
        """Note that a case went wrong."""
        self.faults.append(f"case {case}: {what}")

    def add(self, other: Tally) -> None:
        """Take up what came of other cases."""
        self.outcomes.update(other.outcomes)
        self.faults += other.faults

    @property
    def cases(self) -> int:
        """Cases counted."""
        return self.outcomes.total()


@dataclass(frozen=True)
class Campaign:
    """A kind of damage or fault, and its cases.

    Attributes
    ----------
    name : str
        Also that of its module.
    about : str
        What is done to a store, in a line.
    total : int
        Cases of the whole: numbers 0 to this.
    sample : int
        Cases of `make test-trust`, drawn from all.
    few : int
        Cases of `make test`: a second's worth.
    unit : int
        Cases of one process: ten seconds' worth or more.
    run : callable (cases, folder) -> Tally
        Runs the cases in an empty folder of its own. Each case counts once in `outcomes`.
    limit_s : float
        A process that takes longer hangs.
    alone : bool
        Whether a unit needs all cores.
    """

    name: str
    about: str
    total: int
    sample: int
    few: int
    unit: int
    run: Callable[[Sequence[int], Path], Tally]
    limit_s: float = 600
    alone: bool = False

    def drawn(self, n: int) -> list[int]:
        """The numbers of n cases, spread at random over all, always the same."""
        return sorted(random.Random(0).sample(range(self.total), min(n, self.total)))

    def units(self, cases: Sequence[int]) -> list[Sequence[int]]:
        """Cases as processes get them, those of a whole campaign: always the same, so that it can be resumed."""
        return [cases[at : at + self.unit] for at in range(0, len(cases), self.unit)]

    def shares(self, cases: Sequence[int], workers: int) -> list[Sequence[int]]:
        """Cases of a sample, in units of like size that keep all workers busy to the end."""
        n = -(-len(cases) // self.unit)
        n = min(-(-n // workers) * workers, len(cases))
        return [cases[i::n] for i in range(n)]  # neighbours mostly take as long as each other


def in_process(campaign: Campaign, cases: Sequence[int]) -> Tally:
    """Run cases in a process of their own; if it dies or hangs, find the case at which it does."""
    command = [sys.executable, "-m", "trust", "unit", campaign.name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_TESTS.parent), str(_TESTS)])}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(list(cases)),
            capture_output=True,
            text=True,
            check=False,
            timeout=campaign.limit_s,
            cwd=_TESTS,
            env=environment,
        )
        if done.returncode == 0:
            told = json.loads(done.stdout.splitlines()[-1])
            return Tally(Counter(told["outcomes"]), told["faults"])
        how = f"the process ended with {done.returncode}: {done.stderr[-600:]}"
    except subprocess.TimeoutExpired:
        how = f"the process did not end in {campaign.limit_s:.0f} s"
    if len(cases) == 1:
        return Tally(Counter({"crash": 1}), [f"case {cases[0]}: {how}"])
    tally, half = Tally(), len(cases) // 2
    tally.add(in_process(campaign, cases[:half]))
    tally.add(in_process(campaign, cases[half:]))
    if not tally.faults:
        tally.fault(cases[0], f"cases {cases[0]} to {cases[-1]} together, though not by halves: {how}")
    return tally


def run_unit(campaign: Campaign, cases: Sequence[int]) -> Tally:
    """Run cases in this process, in memory where the machine has such a folder: it is not the disk that is tried."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(prefix=f"trust-{campaign.name}-", dir=memory) as folder:
        return campaign.run(cases, Path(folder))


class State:
    """What has been run already: a file of JSON lines, one a unit, for each campaign. Another commit starts anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=_TESTS
        ).stdout.strip()
        folder.mkdir(parents=True, exist_ok=True)

    def done(self, name: str) -> Iterator[dict[str, object]]:
        """Units of a campaign that were run, of any commit."""
        path = self.folder / f"{name}.jsonl"
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)

    def note(self, name: str, unit: int, seconds: float, tally: Tally) -> None:
        """Write down what came of a unit."""
        line = {
            "unit": unit,
            "commit": self.commit,
            "seconds": round(seconds, 2),
            "outcomes": dict(tally.outcomes),
            "faults": tally.faults,
        }
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def run(
    campaign: Campaign,
    cases: Sequence[int],
    *,
    workers: int,
    state: State | None = None,
    until: float = float("inf"),
    tell: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Run cases in processes, those units left out that `state` has; stop before the next one at time `until`."""
    workers = 1 if campaign.alone else workers
    units = campaign.units(cases) if state else campaign.shares(cases, workers)
    known = {int(str(line["unit"])) for line in state.done(campaign.name)} if state else set()
    total, began = Tally(), time.monotonic()

    def work(number: int) -> None:
        if time.time() > until:
            return
        start = time.monotonic()
        tally = in_process(campaign, units[number])
        if state:
            state.note(campaign.name, number, time.monotonic() - start, tally)
        total.add(tally)
        for fault in tally.faults:
            tell(f"{campaign.name}: FAULT {fault}")
        tell(f"{campaign.name}: {total.cases} cases, {len(total.faults)} faults, {time.monotonic() - began:.0f} s")

    todo = [number for number in range(len(units)) if number not in known]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, todo))
    return total
