"""How far long work has come: a bar on a terminal, a log line now and then elsewhere. A leaf."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["Progress", "shown"]

Progress = Callable[[int, int | None, str], None]
"""Called with how far a pass has come, its total where that is known, and the unit, "bytes" or "rows"."""

BAR_AFTER_S = 0.5
LOG_EVERY_S = 10.0

log = logging.getLogger("sparsestore")


@contextmanager
def shown(what: str, progress: Progress | bool | None = None) -> Iterator[Progress]:
    """Give the function to call as work goes on, and take what it shows away at the end.

    Parameters
    ----------
    what : str
        "converting", say.
    progress : callable, bool or None
        A callable is used as it is. False shows nothing. None and True show a bar on standard error where that is a
        terminal, once the work has taken half a second; elsewhere a line goes to the logger "sparsestore" (level INFO)
        every ten seconds, with the rate and the time left.
    """
    if callable(progress):
        yield progress
    elif progress is False:
        yield _nothing
    else:
        with ExitStack() as stack:
            terminal = sys.stderr is not None and sys.stderr.isatty()  # a process without one has None
            yield _bar(what, stack) if terminal else _lines(what)


def _nothing(*_: object) -> None:
    return


def _bar(what: str, stack: ExitStack) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=None)
    begin = time.monotonic()

    def move(position: int, total: int | None, _unit: str) -> None:
        if not bar.live.is_started and time.monotonic() - begin > BAR_AFTER_S:
            stack.enter_context(bar)
        bar.update(task, completed=position, total=total)

    return move


def _lines(what: str) -> Progress:
    begin = said = time.monotonic()
    before = 0

    def move(position: int, total: int | None, unit: str) -> None:
        nonlocal begin, said, before
        now = time.monotonic()
        if position < before:  # another pass
            begin = now
        before = position
        if now - said < LOG_EVERY_S:
            return
        said = now
        rate = position / max(now - begin, 1e-9)
        pace = f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.2g} a second"
        line = f"{what}: {position:,} {unit}, {pace}"
        if total:
            line = f"{what}: {position:,} of {total:,} {unit} ({position / total:.0%}), {pace}"
            line += f", {max(total - position, 0) / max(rate, 1e-9):,.0f} s left"
        log.info(line)

    return move
