"""One worker's share of an epoch: equal numbers of batches for all, whole windows wherever that can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sparsestore.plan.window import Plan

__all__ = ["Piece", "deal", "n_batches", "pieces"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Batches of one window that a partition takes.

    Attributes
    ----------
    window : int
        Number of the window in the epoch.
    first_batch, last_batch : int
        Batches ``first_batch <= i < last_batch`` of the window: rows
        ``order[first_batch * batch_size : last_batch * batch_size]`` of it.
    """

    window: int
    first_batch: int
    last_batch: int


def n_batches(plan: Plan, n_partitions: int) -> int:
    """Batches of an epoch on each partition: the same number on all.

    Raises
    ------
    ValueError
        If there are batches, but fewer than partitions.
    """
    if n_partitions < 1:
        raise ValueError(f"n_partitions is {n_partitions}, expected at least 1")
    total = plan.n_batches
    if 0 < total < n_partitions:
        raise ValueError(
            f"an epoch has {total} batches of {plan.batch_size} rows, fewer than the {n_partitions} partitions: "
            "take fewer partitions or a smaller batch_size"
        )
    return total // n_partitions


def pieces(plan: Plan, partition: int, n_partitions: int) -> tuple[Piece, ...]:
    """What a partition reads in every epoch, in order.

    Partition p of P takes windows p, p + P, ... while there is a whole window for each partition. The batches of the
    windows left over are dealt in equal runs; the last ones, fewer than P, that can not be dealt equally are left
    out. Over all partitions together the batches are those of a single partition: their rows, and the order of
    windows and of batches, do not depend on P.

    Raises
    ------
    ValueError
        If there is no such partition, or there are fewer batches than partitions.
    """
    if not 0 <= partition < n_partitions:
        raise ValueError(f"partition is {partition}, expected 0 <= partition < n_partitions, {n_partitions}")
    share = n_batches(plan, n_partitions)
    per_window = plan.window_rows // plan.batch_size
    rounds = plan.n_rows // plan.window_rows // n_partitions
    whole = [Piece(w * n_partitions + partition, 0, per_window) for w in range(rounds)]
    # batches numbered from the first window left over
    left = share - rounds * per_window
    start, stop = partition * left, (partition + 1) * left
    dealt = []
    for w in range(start // per_window, -(-stop // per_window)):
        first, last = max(start - w * per_window, 0), min(stop - w * per_window, per_window)
        if first < last:
            dealt.append(Piece(rounds * n_partitions + w, first, last))
    return (*whole, *dealt)


def deal(parts: Sequence[Piece], worker: int, n_workers: int) -> tuple[Piece, ...]:
    """What a worker reads of a partition's pieces, in order; over all workers each batch once, none left out.

    Worker w of W takes pieces w, w + W, ... while there is a piece as long as the first for each worker. The batches
    after those are dealt in runs whose lengths differ by at most one; where there are few, some workers get none.

    Examples
    --------
    >>> parts = [Piece(0, 0, 4), Piece(1, 0, 4), Piece(2, 0, 3)]
    >>> deal(parts, 0, 2)
    (Piece(window=0, first_batch=0, last_batch=4), Piece(window=2, first_batch=0, last_batch=1))
    >>> deal(parts, 1, 2)
    (Piece(window=1, first_batch=0, last_batch=4), Piece(window=2, first_batch=1, last_batch=3))

    Raises
    ------
    ValueError
        If there is no such worker.
    """
    if not 0 <= worker < n_workers:
        raise ValueError(f"worker is {worker}, expected 0 <= worker < n_workers, {n_workers}")
    lengths = [part.last_batch - part.first_batch for part in parts]
    n_whole = next((i for i, length in enumerate(lengths) if length != lengths[0]), len(lengths))
    n_whole -= n_whole % n_workers
    left = parts[n_whole:]
    firsts = list(accumulate(lengths[n_whole:], initial=0))
    start, stop = worker * firsts[-1] // n_workers, (worker + 1) * firsts[-1] // n_workers
    dealt = []
    for part, at in zip(left, firsts, strict=False):
        # batches start to stop, counted from the first that is left, as far as they lie in this piece
        first, last = (
            max(part.first_batch + start - at, part.first_batch),
            min(part.first_batch + stop - at, part.last_batch),
        )
        if first < last:
            dealt.append(Piece(part.window, first, last))
    return (*parts[worker:n_whole:n_workers], *dealt)
