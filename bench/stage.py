"""What the benches share: data sets, processes of their own, anonymous memory, and tables of figures.

Data sets are those of `peers/data.py`, made once under ``--home``: the folder that the comparison with rivals uses too.
Stores are made anew by each run, in a temporary folder on the same disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

PEERS = Path(__file__).parent / "peers"
sys.path.append(str(PEERS))

import measure  # noqa: E402
from data import Source  # noqa: E402

__all__ = ["Source", "measure"]  # of peers/, for the benches

MIB = 2**20
Results = dict[str, Any]

# Conversions of sorted labels say so, which is what some of the benches are about.
logging.getLogger("sparsestore").setLevel(logging.ERROR)


class Figure:
    """A figure measured several times: its median and its range."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, other: Figure) -> float:
        """Ratio of the medians."""
        return self.median / other.median

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return short(self.median) + (f" ({short(low)} to {short(high)})" if low != high else "")

    def to_json(self) -> Results:
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "runs": len(self.values)}


def short(value: Any) -> str:
    """Text of a number: three digits and a bit, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def figures(runs: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    """One figure for each key of repeated runs."""
    return {key: Figure([run[key] for run in runs]) for key in runs[0]}


class PeakMemory:
    """Anonymous memory of this process, in MiB, while the block runs: `before` it, and the `peak`. Linux."""

    def __init__(self, every_s: float = 0.002) -> None:
        self.every_s = every_s
        self.before = self.peak = 0.0

    def __enter__(self) -> Self:
        self.before = self.peak = anonymous_mib()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(self.every_s):
            self.peak = max(self.peak, anonymous_mib())

    def __exit__(self, *_: object) -> None:
        self.peak = max(self.peak, anonymous_mib())
        self._done.set()
        self._thread.join()

    @property
    def beyond(self) -> float:
        return self.peak - self.before


def anonymous_mib() -> float:
    """RssAnon of this process."""
    with Path("/proc/self/status").open(encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


# ---------------------------------------------------------------------------------------------- data sets


@contextmanager
def scratch(home: Path) -> Iterator[Path]:
    """A folder for stores, gone afterwards."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=home) as folder:
        yield Path(folder)


def data_set(home: Path, name: str, scale: float) -> Path:
    """Folder of a data set, made first where it is not there."""
    folder = home / "data" / (name if scale == 1 else f"{name}@{scale:g}")
    if not (folder / "meta.json").exists():
        print(f"making {folder.name}, once", file=sys.stderr, flush=True)
        command = [sys.executable, PEERS / "data.py", home / "data", name, "--scale", str(scale)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


# ---------------------------------------------------------------------------------------------- processes


class ChildError(RuntimeError):
    """A process that was to give a result gave none; `late` where its time was up."""

    late = False


def environment() -> dict[str, str]:
    """Of a child: it finds the modules of `peers/`, and says nothing but its results."""
    search = os.pathsep.join(filter(None, [str(PEERS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": search, "PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"}


def python(*arguments: Any, watch: bool = False, limit_s: float | None = None) -> Results:
    """Run a Python that prints its result as JSON on its last line; to `watch` it adds the peak of its memory."""
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        sampler = measure.MemorySampler(process.pid)
        if watch:
            sampler.start()
        try:
            out, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            error = ChildError(f"{' '.join(command)} was not done after {limit_s} s")
            error.late = True
            raise error from None
        finally:
            peaks = sampler.finish() if watch else {}
    if process.returncode or not out:
        raise ChildError(f"{' '.join(command)} ended with status {process.returncode}\n{errors}")
    found: Results = json.loads(out.splitlines()[-1].removeprefix("RESULT "))
    return {**found, "peak anon MB": peaks["peak_anon_mb"]} if watch else found


def in_child(step: str, *, watch: bool = False, limit_s: float | None = None, **options: Any) -> Results:
    """Run a step of this script in a process of its own; see `run`."""
    return python(sys.argv[0], "--step", json.dumps([step, options], default=str), watch=watch, limit_s=limit_s)


class Child:
    """A process that runs a step of this script each time that it is asked to, until the block ends; see `run`."""

    def __init__(self, step: str, **options: Any) -> None:
        command = [sys.executable, sys.argv[0], "--serve", "--step", json.dumps([step, options], default=str)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )

    def ask(self, **options: Any) -> Results:
        """Result of the step with these options too."""
        if not (self._process.stdin and self._process.stdout):
            raise RuntimeError("a child without pipes")
        self._process.stdin.write(json.dumps(options) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ChildError(f"a child ended with status {self._process.wait()}")
        found: Results = json.loads(line)
        return found

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.__exit__(*error)  # closes its input, at which it ends


def arguments(document: str | None, *, scale: float = 1.0, rounds: int = 5) -> argparse.ArgumentParser:
    """Parser of the options that all benches have; the module's docstring is its help."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = os.environ.get("PEERS_HOME", "~/.cache/sparsestore-peers")
    parser.add_argument("--home", type=Path, default=home, help="folder of data sets (or $PEERS_HOME)")
    parser.add_argument("--scale", type=float, default=scale, help=f"share of the rows of a data set ({scale:g})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"runs of everything, in turns ({rounds})")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


def run(
    parser: argparse.ArgumentParser,
    bench: Callable[[argparse.Namespace], list[Results]],
    steps: Mapping[str, Callable[..., Results]] | None = None,
) -> list[Results]:
    """Run a bench and print its tables, or, in a process that `in_child` or `Child` started, one of its steps.

    A table is a dict of `title`, `rows` (each a dict by column heading) and, where there is more to say, `note`.
    """
    given = parser.parse_args()
    if given.step:
        step, options = json.loads(given.step)
        for line in sys.stdin if given.serve else ["{}"]:
            print(json.dumps((steps or {})[step](**options, **json.loads(line))), flush=True)
        return []
    given.home = Path(given.home).expanduser().resolve()
    tables = bench(given)
    if given.json:
        print(json.dumps({"machine": machine(), "tables": tables}, indent=1, default=lambda figure: figure.to_json()))
    else:
        print(f"Machine: {machine()}. Medians, (lowest to highest) of {given.rounds} runs.\n")
        print("\n".join(markdown(table) for table in tables))
    return tables


# ---------------------------------------------------------------------------------------------- documents


def machine() -> str:
    """Processor, cores, memory and versions, on one line."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("model name")[2].partition("\n")[0].strip(" \t:")
    names = ("sparsestore", "numpy", "scipy", "tensorflow", "keras")
    versions = [f"Python {platform.python_version()}", *(f"{name} {release(name)}" for name in names if release(name))]
    return f"{cpu or platform.machine()}, {measure.machine()}; {', '.join(versions)}"


def release(name: str) -> str | None:
    """Installed version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def markdown(table: Results) -> str:
    """One table, ready to paste."""
    headings = list(dict.fromkeys(heading for row in table["rows"] for heading in row))
    lines = [f"### {table['title']}", ""]
    if table.get("note"):
        lines += [table["note"], ""]
    if headings:  # a case that can not be tried here has a note alone
        lines += [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in table["rows"]:
        lines.append(f"| {' | '.join(short(row.get(heading)) for heading in headings)} |")
    return "\n".join([*lines, ""])
