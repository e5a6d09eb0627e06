from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsestore.plan.partition import Piece, deal, n_batches, pieces
from sparsestore.plan.window import Plan


def batches(plan: Plan, epoch: int, part: tuple[Piece, ...]) -> dict[tuple[int, int], list[int]]:
    """Rows of each batch of some pieces, under (window, batch in the window), in the order of reading."""
    found = {}
    for piece in part:
        window = plan.window(epoch, piece.window)
        rows = window.positions if window.order is None else window.positions[window.order]
        for i in range(piece.first_batch, piece.last_batch):
            found[piece.window, i] = rows[i * plan.batch_size : (i + 1) * plan.batch_size].tolist()
    return found


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    batch = draw(st.integers(1, 8))
    segments = draw(st.lists(st.integers(0, 100), min_size=1, max_size=8))
    return Plan(
        np.array(segments),
        batch_size=batch,
        block_rows=draw(st.integers(1, 9)),
        window_rows=batch * draw(st.integers(1, 5)),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(0, 100)),
        drop_remainder=draw(st.booleans()),
    )


@given(plan=plans(), n_partitions=st.sampled_from([1, 2, 3, 8]), epoch=st.integers(0, 3))
def test_partitions_together_are_the_order_of_one(plan: Plan, n_partitions: int, epoch: int) -> None:
    assume(plan.n_batches >= n_partitions)
    alone = batches(plan, epoch, pieces(plan, 0, 1))
    parts = [batches(plan, epoch, pieces(plan, p, n_partitions)) for p in range(n_partitions)]

    assert {len(part) for part in parts} == {n_batches(plan, n_partitions)}
    assert all(list(part) == sorted(part) for part in parts)
    together = {key: rows for part in parts for key, rows in part.items()}
    assert len(together) == sum(map(len, parts))  # no batch on two partitions
    left_out = len(alone) - len(together)
    assert left_out < n_partitions
    assert sorted(together.items()) == list(alone.items())[: len(together)]


@given(plan=plans())
def test_one_partition_reads_every_row_once(plan: Plan) -> None:
    rows = [row for batch in batches(plan, 0, pieces(plan, 0, 1)).values() for row in batch]
    if not plan.drop_remainder:
        assert sorted(rows) == list(range(plan.n_rows))
    else:
        assert len(set(rows)) == len(rows) == plan.n_rows // plan.batch_size * plan.batch_size


def test_whole_windows_go_round_and_the_rest_is_dealt() -> None:
    plan = Plan(np.array([10 * 12 + 5]), batch_size=3, block_rows=4, window_rows=12)
    assert pieces(plan, 0, 4) == (Piece(0, 0, 4), Piece(4, 0, 4), Piece(8, 0, 2))
    assert pieces(plan, 1, 4) == (Piece(1, 0, 4), Piece(5, 0, 4), Piece(8, 2, 4))
    assert pieces(plan, 3, 4) == (Piece(3, 0, 4), Piece(7, 0, 4), Piece(9, 2, 4))
    assert n_batches(plan, 4) == 10  # 42 batches: the last 2 can not be dealt


def test_more_partitions_than_windows_share_windows() -> None:
    plan = Plan(np.array([100]), batch_size=10, block_rows=4, window_rows=100)
    assert [pieces(plan, p, 5) for p in range(5)] == [(Piece(0, 2 * p, 2 * p + 2),) for p in range(5)]


def test_an_empty_view_gives_no_pieces() -> None:
    assert pieces(Plan(np.array([0]), 2, 2, 4), 1, 3) == ()


@pytest.mark.parametrize("partition", [-1, 3])
def test_refuses_a_partition_that_is_not_there(partition: int) -> None:
    with pytest.raises(ValueError, match=rf"partition is {partition}, expected 0 <= partition < n_partitions, 3"):
        pieces(Plan(np.array([100]), 2, 2, 4), partition, 3)


def test_refuses_no_partitions() -> None:
    with pytest.raises(ValueError, match="n_partitions is 0, expected at least 1"):
        n_batches(Plan(np.array([100]), 2, 2, 4), 0)


def test_refuses_more_partitions_than_batches() -> None:
    with pytest.raises(ValueError, match="an epoch has 3 batches of 2 rows, fewer than the 4 partitions: take fewer"):
        pieces(Plan(np.array([6]), 2, 2, 4), 0, 4)


@given(plans(), st.integers(1, 4), st.integers(1, 5), st.data())
def test_workers_of_a_partition_read_each_of_its_batches_once(
    plan: Plan, n_partitions: int, n_workers: int, data: st.DataObject
) -> None:
    assume(plan.n_batches >= n_partitions)
    parts = pieces(plan, data.draw(st.integers(0, n_partitions - 1)), n_partitions)
    whole = [(part.window, i) for part in parts for i in range(part.first_batch, part.last_batch)]
    shares = [deal(parts, worker, n_workers) for worker in range(n_workers)]
    dealt = [[(part.window, i) for part in share for i in range(part.first_batch, part.last_batch)] for share in shares]
    assert sorted(batch for share in dealt for batch in share) == sorted(whole)
    assert all(share == sorted(share) for share in dealt)
    lengths = [len(share) for share in dealt]
    assert max(lengths) - min(lengths) <= 1
    assert deal(parts, 0, 1) == parts


def test_refuses_a_worker_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="worker is 2, expected 0 <= worker < n_workers, 2"):
        deal((Piece(0, 0, 4),), 2, 2)
