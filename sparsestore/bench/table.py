"""A report as a table for people: one column a state of the page cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsestore.bench.report import Epochs, Report, Spread

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["count", "gigabytes", "remarks", "rendered", "share", "spent", "the_machine", "the_run", "the_store"]

NONE = "-"


def count(value: float) -> str:
    """A number in three digits.

    Examples
    --------
    >>> count(3_630_567), count(131.2e9), count(999.6), count(12)
    ('3.63 M', '131 G', '1.00 k', '12.0')
    """
    for unit in ("", " k", " M", " G", " T"):
        if value < 999.5 or unit == " T":
            break
        value /= 1000
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{unit}"


def gigabytes(value: float) -> str:
    """Bytes, or bytes a second, in thousand millions.

    Examples
    --------
    >>> gigabytes(1.147e9), gigabytes(2.5e6)
    ('1.15', '0.0025')
    """
    billions = value / 1e9
    return f"{billions:.3g}" if billions < 100 else f"{billions:,.0f}"


def spent(seconds: float) -> str:
    """A time in the unit that suits it.

    Examples
    --------
    >>> spent(12.34), spent(0.0123), spent(0.000045)
    ('12.3 s', '12.3 ms', '0.045 ms')
    """
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def share(value: float) -> str:
    """A share in percent.

    Examples
    --------
    >>> share(0.734), share(0.0123), share(0.0001)
    ('73 %', '1.2 %', '<0.1 %')
    """
    percent = 100 * value
    if 0 < percent < 0.1:
        return "<0.1 %"
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0 else f"{percent:.1f} %"


def _around(text: Callable[[float], str], found: Spread) -> str:
    spread = "" if found.lowest == found.highest else f" ({text(found.lowest)} - {text(found.highest)})"
    return f"{text(found.median)}{spread}"


def _megabytes(value: int | None) -> str:
    return NONE if value is None else f"{value / 1e6:,.0f} MB"


def the_store(report: Report) -> str:
    """What was measured."""
    store = report.store
    order = "shuffled once" if store["shuffled"] else "rows in the order of their source"
    return (
        f"{store['path']}, version {store['version']}: {store['rows']:,} rows x {store['features']:,} features, "
        f"{count(store['nnz'] / store['rows'])} entries a row; profile {store['profile']}, {order}; "
        f"an epoch reads {store['epoch_bytes'] / 1e6:,.0f} MB"
    )


def the_run(report: Report) -> str:
    """How it was measured."""
    settings = report.settings
    order = f"shuffled with seed {settings['seed']}" if settings["shuffle"] else "in stored order"
    epochs = "one epoch" if settings["repeat"] == 1 else f"medians of {settings['repeat']} epochs, each"
    return (
        f"batches of {settings['batch_size']:,} rows, {settings['layout']} {settings['dtype']}, {order}; "
        f"{epochs} in a process of its own"
    )


def the_machine(report: Report) -> str:
    """On what it was measured."""
    machine = report.machine
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("sparsestore", "numpy", "scipy") if machine[name] is not None
    )
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_bytes'] / 1e9:.0f} GB of memory, "
        f"load {machine['load_average_1min']:.1f} at the start; {machine['system']}, Python {machine['python']}, "
        f"{versions}"
    )


def _column(report: Report, state: str) -> list[str]:
    """The cells of a state, in the order of `_NAMES` and then one for each length of step."""
    found = report.epochs.get(state)
    waits = {wait.step_ms: wait for wait in report.waiting if wait.state == state}
    if found is None:
        return [NONE] * (len(_NAMES) + len(report.settings["step_ms"]))
    reading = report.rates.sequential_read_bytes_per_s[state].median
    return [
        _around(count, found.rows_per_s),
        count(found.nnz_per_s.median),
        gigabytes(found.x_bytes_per_s.median),
        f"{share(found.memcpy_share)} of {gigabytes(report.rates.memcpy_bytes_per_s.median)}",
        gigabytes(found.stored_bytes_per_s.median),
        f"{share(found.sequential_read_share)} of {gigabytes(reading)}",
        _around(spent, found.first_batch_s),
        NONE if found.batch_ms is None else spent(found.batch_ms.median / 1e3),
        f"{spent(found.cpu_s_per_million_rows.median)}, {found.cores_busy:.1f} cores busy",
        _memory(found),
        _disk(found, report.store["epoch_bytes"]),
        *(_waiting(waits[step].share, waits[step].longest_wait_ms) for step in report.settings["step_ms"]),
    ]


_NAMES = (
    "rows/s",
    "nnz/s",
    "GB/s of batches",
    "  against memcpy",
    "GB/s of the store",
    "  against reading",
    "first batch",
    "a batch every",
    "CPU a million rows",
    "peak memory",
    "read from disk",
)
_SECTIONS = (5, 7, 10)  # a line after these


def _memory(found: Epochs) -> str:
    if found.peak_anonymous_bytes is None:
        return f"{_megabytes(found.peak_resident_bytes)}, files included"
    beyond = (found.peak_beyond_imports_bytes or 0) / 1e6
    return f"{_megabytes(found.peak_anonymous_bytes)} ({beyond:,.0f} over imports)"


def _disk(found: Epochs, epoch_bytes: int) -> str:
    if found.read_bytes is None:
        return NONE
    times = f", {found.read_bytes / epoch_bytes:.2f} x" if found.complete and found.read_bytes else ""
    return f"{_megabytes(found.read_bytes)}{times}"


def _waiting(part: float | None, longest_ms: float) -> str:
    return NONE if part is None else f"{share(part)}, longest {spent(longest_ms / 1e3)}"


def remarks(report: Report) -> list[str]:
    """What could not be measured, or not whole."""
    found = [f"{state} not measured: {reason}" for state, reason in report.not_measured.items()]
    short = [state for state, epochs in report.epochs.items() if not epochs.complete]
    if short:
        found.append(f"{' and '.join(short)} epochs were cut short after {report.settings['seconds']:g} s")
    return found


def rendered(report: Report) -> RenderableType:
    """The report for ``rich.console.Console.print``; plain text where that is no terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("warm page cache")
    table.add_column("cold page cache")
    names = [*_NAMES, *(f"wait at {step:g} ms steps" for step in report.settings["step_ms"])]
    for number, cells in enumerate(zip(names, _column(report, "warm"), _column(report, "cold"), strict=True)):
        table.add_row(*cells, end_section=number in _SECTIONS)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in (("store", the_store(report)), ("epochs", the_run(report)), ("machine", the_machine(report))):
        facts.add_row(name, Text(text))
    return Group(facts, table, *map(Text, remarks(report)))
