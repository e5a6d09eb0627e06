"""python -m trust: run campaigns. From the folder tests; `make soak` and `make test-trust` do."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from trust.campaign import Campaign, State, Tally, run, run_unit

NAMES: tuple[str, ...] = (
    "flips",
    "truncations",
    "swaps",
    "structure",
    "stateful",
    "stateful_long",
    "appenders",
    "appenders_long",
    "parsers",
    "faults",
    "losses",
    "kills",
    "formats",
    "names",
    "faults_more",
    "losses_more",
    "kills_more",
    "interrupts",
    "formats_more",
)


def campaign(name: str) -> Campaign:
    """A campaign by its name."""
    found: Campaign = importlib.import_module(f"trust.{name}").CAMPAIGN
    return found


def main() -> int:
    """Parse, run, tell; 1 where there were faults."""
    parser = argparse.ArgumentParser(prog="python -m trust", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    unit = commands.add_parser("unit", help="run the cases given as JSON on standard input, in this process")
    unit.add_argument("name")
    case = commands.add_parser("case", help="run some cases again, in this process")
    case.add_argument("name")
    case.add_argument("numbers", type=int, nargs="+")
    for name, about in (("sample", "a sample of each campaign"), ("soak", "every case of each campaign: hours")):
        command = commands.add_parser(name, help=about)
        command.add_argument("--only", default=",".join(NAMES), help="campaigns, separated by commas")
        command.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    command.add_argument("--state", type=Path, default=Path("../.soak"), help="where finished units are noted")
    command.add_argument("--minutes", type=float, default=float("inf"), help="stop after that time; resumes later")
    report = commands.add_parser("report", help="what a soak found so far")
    report.add_argument("--state", type=Path, default=Path("../.soak"))
    given = parser.parse_args()

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    if given.command in ("unit", "case"):
        cases = json.load(sys.stdin) if given.command == "unit" else given.numbers
        tally = run_unit(campaign(given.name), cases)
        sys.stdout.write(json.dumps({"outcomes": tally.outcomes, "faults": tally.faults}) + "\n")
        return int(given.command == "case" and bool(tally.faults))
    faults = 0
    if given.command in ("sample", "soak"):
        for name in given.only.split(","):
            chosen = campaign(name)
            whole = given.command == "soak"
            cases = range(chosen.total) if whole else chosen.drawn(chosen.sample)
            state = State(given.state) if whole else None
            until = time.time() + 60 * given.minutes if whole else float("inf")
            tally = run(chosen, cases, workers=given.workers, state=state, until=until, tell=tell)
            faults += len(tally.faults)
    if given.command in ("soak", "report"):
        for name in NAMES:
            lines = list(State(given.state).done(name))
            tally = Tally()
            for line in lines:
                tally.add(Tally(Counter(line["outcomes"]), list(line["faults"])))  # type: ignore[arg-type,call-overload]
            faults += len(tally.faults)
            seconds = sum(float(str(line["seconds"])) for line in lines)
            commits = sorted({str(line["commit"]) for line in lines})
            sys.stdout.write(
                f"{name}: {tally.cases:,} of {campaign(name).total:,} cases, {len(tally.faults)} faults, "
                f"{dict(tally.outcomes)}, {seconds:.0f} s of processes, commits {commits}\n"
            )
            sys.stdout.writelines(f"  {fault}\n" for fault in tally.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
