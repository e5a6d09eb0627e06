"""What was measured, as plain values: medians and ratios in, JSON out. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["STATES", "Epochs", "Rates", "Report", "Run", "Spread", "Waiting", "spread", "summary"]

STATES = ("warm", "cold")
"""Of the page cache: it holds all that an epoch reads, or nothing of it."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    lowest: float
    highest: float


def spread(values: Iterable[float]) -> Spread:
    """Median, lowest and highest.

    Examples
    --------
    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, lowest=1.0, highest=3.0)
    """
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


@dataclass(frozen=True, slots=True)
class Run:
    """One epoch, or the part of it that was read before it was cut short, in a process of its own.

    Attributes
    ----------
    rows, batches, nnz : int
        Received. With dense batches nnz is the rows' share of all entries.
    x_bytes : int
        Of the arrays of `x` that the consumer received: indptr, indices and data, or the dense array.
    complete : bool
        False where it was cut short.
    seconds : float
        From before the store was opened to the last batch.
    first_batch_s : float
        The part of these before the first batch was there.
    waited_s, longest_wait_s : float
        What the consumer waited for the batches after the first, together and for one of them.
    cpu_s : float
        Of all threads, user and system.
    read_bytes : int or None
        From disk; None where the system does not tell.
    import_anonymous_bytes, peak_anonymous_bytes : int or None
        Memory that is no file's: before the store was opened, and at most. Linux only.
    peak_resident_bytes : int or None
        At most, files included: where the system does not tell them apart.
    """

    rows: int
    batches: int
    nnz: int
    x_bytes: int
    complete: bool
    seconds: float
    first_batch_s: float
    waited_s: float
    longest_wait_s: float
    cpu_s: float
    read_bytes: int | None
    import_anonymous_bytes: int | None
    peak_anonymous_bytes: int | None
    peak_resident_bytes: int | None

    @property
    def waiting_share(self) -> float | None:
        """Share of the time since the first batch in which the consumer waited; None where there was no second one."""
        return self.waited_s / (self.seconds - self.first_batch_s) if self.batches > 1 else None


@dataclass(frozen=True, slots=True)
class Rates:
    """What the machine does by itself, with one thread.

    Attributes
    ----------
    memcpy_bytes_per_s : Spread
        Copying memory that was touched before; a byte copied counts once.
    sequential_read_bytes_per_s : dict of str to Spread
        Reading the store's largest files front to back, 4 MiB at a time: "warm" from the page cache, "cold" from the
        disk, which is missing where it could not be measured.
    sequential_read_sample_bytes : int
        How much was read for that.
    """

    memcpy_bytes_per_s: Spread
    sequential_read_bytes_per_s: dict[str, Spread]
    sequential_read_sample_bytes: int


@dataclass(frozen=True, slots=True)
class Epochs:
    """Several runs with the page cache in one state.

    Attributes
    ----------
    rows_per_s, nnz_per_s : Spread
        Opening and the first batch included.
    x_bytes_per_s : Spread
        Bytes of `x` handed to the consumer.
    stored_bytes_per_s : Spread
        Bytes on disk of the rows received.
    memcpy_share : float
        `x_bytes_per_s` by the rate at which the machine copies memory.
    sequential_read_share : float
        `stored_bytes_per_s` by the rate at which the machine reads the same files from the same place.
    first_batch_s : Spread
        From before the store was opened.
    batch_ms : Spread
        Time a batch, after the first: a consumer whose step takes longer need not wait, on average.
    cpu_s_per_million_rows : Spread
    cores_busy : float
        CPU time by time.
    peak_anonymous_bytes, peak_beyond_imports_bytes, peak_resident_bytes : int or None
        The highest of all runs.
    read_bytes : int or None
        Read from disk, median.
    complete : bool
        Whether all were whole epochs.
    runs : tuple of Run
    """

    rows_per_s: Spread
    nnz_per_s: Spread
    x_bytes_per_s: Spread
    stored_bytes_per_s: Spread
    memcpy_share: float
    sequential_read_share: float
    first_batch_s: Spread
    batch_ms: Spread | None
    cpu_s_per_million_rows: Spread
    cores_busy: float
    peak_anonymous_bytes: int | None
    peak_beyond_imports_bytes: int | None
    peak_resident_bytes: int | None
    read_bytes: int | None
    complete: bool
    runs: tuple[Run, ...]


def summary(runs: Sequence[Run], bytes_a_row: float, memcpy: float, sequential_read: float) -> Epochs:
    """Figures of several runs.

    Parameters
    ----------
    runs : sequence of Run
        At least one.
    bytes_a_row : float
        On disk, of all that an epoch reads.
    memcpy, sequential_read : float
        Bytes a second that the machine copies, and reads from where the runs read.
    """
    x = spread(run.x_bytes / run.seconds for run in runs)
    stored = spread(run.rows * bytes_a_row / run.seconds for run in runs)
    later = [(run.seconds - run.first_batch_s) / (run.batches - 1) * 1e3 for run in runs if run.batches > 1]
    beyond = [
        run.peak_anonymous_bytes - run.import_anonymous_bytes
        for run in runs
        if run.peak_anonymous_bytes is not None and run.import_anonymous_bytes is not None
    ]
    read = [run.read_bytes for run in runs if run.read_bytes is not None]
    return Epochs(
        rows_per_s=spread(run.rows / run.seconds for run in runs),
        nnz_per_s=spread(run.nnz / run.seconds for run in runs),
        x_bytes_per_s=x,
        stored_bytes_per_s=stored,
        memcpy_share=x.median / memcpy,
        sequential_read_share=stored.median / sequential_read,
        first_batch_s=spread(run.first_batch_s for run in runs),
        batch_ms=spread(later) if later else None,
        cpu_s_per_million_rows=spread(run.cpu_s / run.rows * 1e6 for run in runs),
        cores_busy=statistics.median(run.cpu_s / run.seconds for run in runs),
        peak_anonymous_bytes=_highest(run.peak_anonymous_bytes for run in runs),
        peak_beyond_imports_bytes=_highest(beyond),
        peak_resident_bytes=_highest(run.peak_resident_bytes for run in runs),
        read_bytes=int(statistics.median(read)) if read else None,
        complete=all(run.complete for run in runs),
        runs=tuple(runs),
    )


def _highest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


@dataclass(frozen=True, slots=True)
class Waiting:
    """One epoch whose consumer takes a given time over each batch.

    Attributes
    ----------
    state : {"warm", "cold"}
    step_ms : float
        Time that the consumer slept after each batch.
    share : float or None
        Of the time since the first batch, what it waited for data; None where there was one batch only.
    longest_wait_ms : float
        For one batch, the first not counted.
    complete : bool
    """

    state: str
    step_ms: float
    share: float | None
    longest_wait_ms: float
    complete: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What `measure` found.

    Attributes
    ----------
    store : dict
        Path, version, rows, features, nnz, dtype, profile, whether rows were `shuffled` once; `bytes` on disk of the
        version, and `epoch_bytes`, what an epoch reads of them: x, the labels and their checksums.
    settings : dict
        Of the epochs.
    machine : dict
    rates : Rates
    epochs : dict of str to Epochs
        By state of the page cache; a state that could not be had is missing.
    waiting : tuple of Waiting
    not_measured : dict of str to str
        Why a state is missing.
    """

    store: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    rates: Rates
    epochs: dict[str, Epochs]
    waiting: tuple[Waiting, ...]
    not_measured: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; the end of a name tells the unit."""
        return asdict(self)
