"""A report as a picture: rates beside those of the machine, and how long a training step waits for data."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import wrap
from typing import Any

from sparsestore.bench.report import Report
from sparsestore.bench.table import count, gigabytes, remarks, share, spent, the_machine, the_run

__all__ = ["check", "draw"]

COLOURS = {"warm": "#d1622b", "cold": "#2b6cb0", "machine": "#9aa5b1"}  # told apart by the colour-blind, and in grey


def check(path: str | os.PathLike[str]) -> None:
    """Refuse what `draw` would fail at, before minutes are spent on measuring.

    Raises
    ------
    ImportError
        Where matplotlib is not installed; it names the extra.
    FileNotFoundError, IsADirectoryError
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError('a picture needs matplotlib: pip install "sparsestore[bench]"') from error
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder, expected a file to write the picture to")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {target.parent} to write the picture to")


def draw(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the report as a PNG.

    Raises
    ------
    ImportError
        Where matplotlib is not installed.
    """
    check(path)
    from matplotlib.figure import Figure  # without pyplot: no window system, nothing global
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    steps = any(wait.share is not None for wait in report.waiting)
    bars = max(3 + 2 * len(report.epochs), len(report.waiting))
    figure = Figure(figsize=(12, 2.2 + 0.45 * bars), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    rates = figure.add_subplot(1, 2 if steps else 1, 1)
    _draw_rates(rates, report)
    if steps:
        _draw_waiting(figure.add_subplot(1, 2, 2), report)
    store = report.store
    name = Path(store["path"]).name or store["path"]
    figure.suptitle(
        f"{name}: {store['rows']:,} rows x {store['features']:,} features, "
        f"{count(store['nnz'] / store['rows'])} entries a row",
        fontsize=14,
        parse_math=False,  # a path may have a $
    )
    below = [line for text in (the_run(report), the_machine(report), *remarks(report)) for line in wrap(text, 170)]
    figure.supxlabel("\n".join(below), fontsize=7.5, color="#52606d", parse_math=False)
    figure.savefig(path, format="png")


def _draw_rates(axes: Any, report: Report) -> None:
    """Bars of GB/s: batches below a copy of memory, then what an epoch reads below a sequential read."""
    rates, epochs = report.rates, report.epochs
    groups = [[("memcpy", rates.memcpy_bytes_per_s.median, "machine", "")]]
    for state, found in epochs.items():
        text = f" ({share(found.memcpy_share)}), {count(found.rows_per_s.median)} rows/s"
        groups[0].append((f"batches, {state}", found.x_bytes_per_s.median, state, text))
    for state, found in epochs.items():
        reading = rates.sequential_read_bytes_per_s[state].median
        text = f" ({share(found.sequential_read_share)})"
        groups.append([(f"sequential read, {state}", reading, "machine", "")])
        groups[-1].append((f"an epoch's reads, {state}", found.stored_bytes_per_s.median, state, text))
    labels, y = [], 0.0
    for group in groups:
        for name, rate, kind, text in group:
            axes.barh(y, rate / 1e9, color=COLOURS[kind], height=0.75)
            _write(axes, rate / 1e9, y, f"{gigabytes(rate)}{text}")
            labels.append((y, name))
            y += 1
        y += 0.6
    axes.set_yticks([place for place, _ in labels], [name for _, name in labels])
    axes.set_xlim(0, 1.25 * max(rate for group in groups for _, rate, _, _ in group) / 1e9)
    axes.set_xlabel("GB/s")
    axes.set_title("Speed, beside that of the machine", fontsize=12)
    _tidy(axes)


def _draw_waiting(axes: Any, report: Report) -> None:
    """A bar a length of step and state: the share of training in colour is waiting, the rest is steps."""
    labels, y = [], 0.0
    for step in report.settings["step_ms"]:
        for wait in (wait for wait in report.waiting if wait.step_ms == step and wait.share is not None):
            part = 100 * (wait.share or 0.0)
            axes.barh(y, 100, color="#e9edf1", height=0.75)
            axes.barh(y, part, color=COLOURS[wait.state], height=0.75)
            _write(
                axes,
                part,
                y,
                f"{share(part / 100)} (longest wait {spent(wait.longest_wait_ms / 1e3)})",
                inside=part > 60,
            )
            labels.append((y, f"{step:g} ms steps, {wait.state}"))
            y += 1
        y += 0.6
    axes.set_yticks([place for place, _ in labels], [name for _, name in labels])
    axes.set_ylim(-0.6, max(y, 5.0) - 1.0)  # a single bar is no wall
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the time of training")
    axes.set_title("How long training waits for data", fontsize=12)
    _tidy(axes)


def _write(axes: Any, x: float, y: float, text: str, *, inside: bool = False) -> None:
    """A label after the end of a bar, or before it where there is no room after."""
    place = {"xytext": (-4, 0), "ha": "right", "color": "white"} if inside else {"xytext": (4, 0), "ha": "left"}
    axes.annotate(text, (x, y), textcoords="offset points", va="center", fontsize=9, **place)


def _tidy(axes: Any) -> None:
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dde2e7", linewidth=0.8)
    axes.set_axisbelow(True)
