"""Where rows begin is known from a few numbers a block, and blocks that are damaged hide no more than themselves."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsestore.row_starts import Blocks, RowStarts

Ints = NDArray[np.int64]

LENGTHS = st.lists(st.integers(0, 3) | st.just(0), min_size=1, max_size=50)


def filled(lengths: list[int], block: int, lost: set[int] | None = None) -> tuple[RowStarts, Ints]:
    """Starts of rows, of which some blocks are unknown; and the offsets."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    starts = RowStarts(len(lengths), int(offsets[-1]), block, lambda start, stop: offsets[start:stop], Blocks(64))
    for number in range(-(-len(offsets) // block)):
        if number not in (lost or ()):
            assert starts.take(number * block, offsets[number * block : (number + 1) * block]) == []
    assert starts.finish() == []
    return starts, offsets


@given(lengths=LENGTHS, block=st.sampled_from([1, 2, 4, 8, 64]), data=st.data())
@settings(deadline=None)
def test_rows_turns_and_lengths_are_those_of_all_offsets(lengths: list[int], block: int, data: st.DataObject) -> None:
    starts, offsets = filled(lengths, block)
    nnz = int(offsets[-1])
    assert starts.all_sound
    assert starts.longest == max(lengths)
    if not nnz:
        return
    values = np.array(data.draw(st.lists(st.integers(0, 3), min_size=nnz, max_size=nnz)), np.uint16)
    first = data.draw(st.integers(0, nnz - 1))
    last = data.draw(st.integers(first + 1, nnz))
    begins = set(offsets.tolist())
    expected = sum(bool(values[at] <= values[at - 1]) for at in range(first + 1, last) if at in begins)
    assert starts.turns(values[first:last], first) == (first in begins, expected)
    found = starts.lengths(first, last - first)
    assert found is not None
    at = first + found[1] + np.append(0, np.cumsum(found[0].astype(np.int64)))
    assert {int(start) for start in at if first < start < last} == {start for start in begins if first < start < last}
    inside = np.arange(first, last)
    assert starts.inside(inside).tolist() == [at for at in inside.tolist() if at not in begins]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    assert starts.rows_of(first, last) == (rows[first], rows[last - 1] + 1)


@given(
    seed=st.integers(0, 2**32),
    rows=st.sampled_from([255, 256, 257, 511, 512, 2000]),
    block=st.sampled_from([100, 256, 512, 1000, 4096]),
    share=st.sampled_from([0.02, 0.5, 1.0]),
    data=st.data(),
)
@settings(deadline=None)
def test_lengths_of_many_rows_are_those_around_the_entries_alone(
    seed: int, rows: int, block: int, share: float, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    starts, offsets = filled((rng.integers(1, 9, rows) * (rng.random(rows) < share)).tolist(), block)
    nnz = int(offsets[-1])
    if not nnz:
        return
    first = data.draw(st.integers(0, nnz - 1))
    last = data.draw(st.integers(first + 1, nnz))
    found = starts.lengths(first, last - first)
    assert found is not None
    at = first + found[1] + np.append(0, np.cumsum(found[0].astype(np.int64)))
    assert sorted(at[(at >= first) & (at < last)]) == offsets[(offsets >= first) & (offsets < last)].tolist()
    within = np.count_nonzero((offsets >= first) & (offsets < last))
    empty_before = np.count_nonzero(offsets == offsets[offsets < first].max(initial=0))
    assert len(found[0]) <= within + empty_before + 2 * 256


@given(lengths=LENGTHS, lost=st.sets(st.integers(0, 12)), data=st.data())
@settings(deadline=None)
def test_unknown_blocks_hide_only_their_own_rows(lengths: list[int], lost: set[int], data: st.DataObject) -> None:
    starts, offsets = filled(lengths, 4, lost)
    nnz = int(offsets[-1])
    blocks = range(-(-len(offsets) // 4))
    assert starts.all_sound == (not lost & set(blocks))
    assert (starts.longest is None) == (not starts.all_sound)
    if not nnz:
        return
    rows = np.repeat(np.arange(len(lengths)), lengths)
    first = data.draw(st.integers(0, nnz - 1))
    low, high = starts.rows_of(first, first + 1)
    assert low <= rows[first] < high
    begins, expected = starts.turns(np.zeros(nnz - first, np.uint16), first)
    assert (starts.lengths(first, nnz - first) is None) == (expected < 0)
    assert begins is None or begins == (first in offsets)
    found = starts.inside(np.arange(nnz)).tolist()
    assert not set(found) & set(offsets.tolist())
    known = [b for b in blocks if b not in lost]
    certain = [
        at
        for b in known
        for at in range(int(offsets[4 * b]) + 1, int(offsets[min(4 * b + 3, len(offsets) - 1)]))
        if at not in offsets
    ]
    assert set(certain) <= set(found)


def test_offsets_that_are_none_are_found_where_they_are() -> None:
    offsets = np.array([0, 2, 4, 3, 5, 6, 7, 8], np.int64)
    starts = RowStarts(7, 8, 4, lambda start, stop: offsets[start:stop], Blocks(64))
    assert starts.take(0, offsets) == [(3, "offset 3 follows 4, expected no less")]
    starts = RowStarts(7, 9, 8, lambda start, stop: offsets[start:stop], Blocks(64))
    assert starts.take(0, np.array([0, 1, 2, 3, 4, 5, 6, 8])) == [
        (7, "the offsets end with 8, expected 9, the number of entries")
    ]
    assert starts.take(0, np.array([1, 1, 2, 3, 4, 5, 6, 9])) == [(0, "the offsets begin with 1, expected 0")]
    starts = RowStarts(8, 9, 4, lambda start, stop: offsets[start:stop], Blocks(64))
    assert starts.take(0, np.array([0, 1, 2, 6, 4, 5, 6, 8, 9])) == []
    assert starts.finish() == [(3, "offset 4 follows 6, expected no less")]
    assert not starts.all_sound


def test_blocks_are_held_up_to_a_bound() -> None:
    blocks = Blocks(100)
    for number in range(50):
        blocks.put((0, number), np.zeros(40, np.uint8))
    held = [number for number in range(50) if blocks.get((0, number)) is not None]
    assert held == [47, 48, 49]
    blocks.offer((0, 0), np.zeros(40, np.uint8))
    assert blocks.get((0, 0)) is None
    blocks.clear()
    for number in range(50):
        blocks.offer((0, number), np.zeros(40, np.uint8))
    held = [number for number in range(50) if blocks.get((0, number)) is not None]
    assert held == [0, 1, 2]


def test_lengths_that_were_taken_are_not_read_again() -> None:
    offsets = np.arange(100, dtype=np.int64) * 300

    def read(start: int, stop: int) -> Ints:
        raise AssertionError(f"offsets {start} to {stop} are read again")

    starts = RowStarts(99, 99 * 300, 16, read, Blocks(1000))
    assert starts.take(0, offsets) == []
    assert starts.finish() == []
    assert starts.turns(np.zeros(99 * 300, np.uint16), 0) == (True, 98)


def test_rows_longer_than_all_entries_are_found_though_their_sum_is_right() -> None:
    offsets = np.array([0, 2**63 - 1, -(2**63), -1, 0, 8], np.int64)  # each difference is positive, modulo 2^64
    starts = RowStarts(5, 8, 8, lambda start, stop: offsets[start:stop], Blocks(64))
    assert starts.take(0, offsets) == [(1, f"offset {2**63 - 1} follows 0, expected no less and at most 8")]


@given(rows=st.integers(1, 1100) | st.sampled_from([255, 256, 257, 512, 768, 1024]), block=st.integers(1, 1200))
@settings(deadline=None)
def test_every_256th_row_is_marked_and_the_end(rows: int, block: int) -> None:
    starts, offsets = filled([row % 3 for row in range(rows)], block)
    assert starts.marks.tolist() == [*offsets[:-1:256].tolist(), offsets[-1]]
