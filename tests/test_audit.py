"""What verify looks at is all there is, each once; what it concludes is one problem for one damage."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsestore.audit import (
    Expected,
    Fault,
    Problem,
    ShardFacts,
    arrays_of,
    batches,
    cut_chunks,
    cut_pieces,
    damage,
    runs,
    spec_problem,
)
from sparsestore.checksum import PIECE
from sparsestore.format import ObjectEntry
from sparsestore.zarr_format import ArraySpec


@given(
    n_bytes=st.integers(0, 40 * PIECE),
    unit=st.integers(1, 9 * PIECE),
    steps=st.none() | st.lists(st.integers(0, 4 * PIECE), min_size=41, max_size=41),
)
def test_units_of_pieces_are_all_of_them_in_order(n_bytes: int, unit: int, steps: list[int] | None) -> None:
    pieces = -(-n_bytes // PIECE)
    weights = None if steps is None else np.cumsum(steps[: pieces + 1], dtype=np.int64)
    units = cut_pieces(n_bytes, unit, weights)
    assert [piece for first, last in units for piece in range(first, last)] == list(range(pieces))
    if weights is not None:
        for first, last in units:
            heavy = (last - 1 - first) * PIECE + int(weights[last - 1] - weights[first])
            assert heavy <= unit or last - first == 1


@given(n=st.integers(0, 100), unit=st.integers(1, 1000), chunk_bytes=st.integers(0, 2000))
def test_units_of_chunks_are_all_of_them_in_order(n: int, unit: int, chunk_bytes: int) -> None:
    units = cut_chunks(n, unit, chunk_bytes)
    assert [chunk for first, last in units for chunk in range(first, last)] == list(range(n))
    assert all((last - first) * chunk_bytes <= unit or last - first == 1 for first, last in units)


@given(sizes=st.lists(st.integers(0, 50)), most=st.integers(1, 99))
def test_groups_are_all_in_order_and_no_larger_than_needed(sizes: list[int], most: int) -> None:
    groups = list(batches(sizes, most))
    assert [number for group in groups for number in group] == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in group[:-1]) < most for group in groups)


@given(mask=st.lists(st.booleans()))
def test_runs_are_where_a_mask_is_true(mask: list[bool]) -> None:
    found = runs(np.array(mask, bool))
    assert [i for first, last in found for i in range(first, last)] == [i for i, true in enumerate(mask) if true]
    assert all(b[0] > a[1] for a, b in pairwise(found))


def shard(n: int = 40, *, bad: tuple[int, ...] = (), whole: bool | None = None, known: bool = True) -> ShardFacts:
    """Facts of a shard of n pieces, some of which do not match."""
    starts, lengths = np.arange(n) * PIECE, np.full(n, PIECE)
    expected = np.zeros(n, np.uint32)
    crcs = expected.copy()
    crcs[list(bad)] = 1
    sound = not bad if whole is None else whole
    entry = ObjectEntry("X/data/c/0", n * PIECE + 20, 7)
    return ShardFacts(entry, starts, lengths, expected if known else None, crcs, crc=7 if sound else 8)


def ranges(found: list[Fault]) -> list[tuple[int, int]]:
    return [(fault.start // PIECE, -(-fault.stop // PIECE)) for fault in found]


def test_each_damaged_piece_is_a_problem_and_a_stretch_is_one() -> None:
    assert damage(shard(), "piece") == []
    assert ranges(damage(shard(bad=(3,)), "piece")) == [(3, 4)]
    assert ranges(damage(shard(bad=(3, 4, 9)), "piece")) == [(3, 4), (4, 5), (9, 10)]
    (stretch,) = damage(shard(bad=tuple(range(5, 25))), "piece")
    assert (stretch.start, stretch.stop) == (5 * PIECE, 25 * PIECE)
    assert "in any of 20 pieces" in stretch.reason


def test_without_checksums_the_object_is_damaged_as_a_whole() -> None:
    (fault,) = damage(shard(whole=False, known=False), "piece")
    assert (fault.start, fault.stop) == (0, 40 * PIECE + 20)
    assert damage(shard(known=False), "piece") == []


def test_checksums_that_do_not_belong_to_a_sound_object_are_one_problem() -> None:
    (fault,) = damage(shard(bad=(1, 2, 30), whole=True), "piece")
    assert "3 of its 40 checksums" in fault.reason


def test_an_object_whose_pieces_all_match_may_be_wrong_as_a_whole() -> None:
    (fault,) = damage(shard(whole=False), "piece")
    assert "though each piece matches its own" in fault.reason


def test_what_damaged_bytes_say_is_no_problem_of_its_own() -> None:
    facts = shard(bad=(3,))
    facts.faults = [Fault(at, at + 1, at * PIECE, at * PIECE + 4, None, "out of range") for at in (3, 4)]
    assert ranges(damage(facts, "piece")) == [(3, 4), (4, 5)]
    index = Fault(0, 0, 40 * PIECE, 40 * PIECE + 20, None, "the index")
    facts = shard(whole=False)
    facts.index = index
    assert damage(facts, "piece") == [index]


def test_parts_that_can_not_be_read_hide_no_others() -> None:
    facts = shard(bad=(3, 4, 9))
    facts.crc = None
    facts.unread = [Fault(3, 5, 3 * PIECE, 5 * PIECE, None, "it can not be read")]
    assert ranges(damage(facts, "piece")) == [(3, 5), (9, 10)]


def test_a_problem_is_one_line() -> None:
    problem = Problem("s.zarr", 2, "X/data/c/0", 1, 5, (7, 9), "many\n  things")
    assert str(problem) == "s.zarr: version 2, X/data/c/0, bytes 1 to 5 (rows 7 to 9): many; things"
    assert "rows" not in str(Problem("s.zarr", 2, "X/data/c/0", 1, 5, None, "gone"))


def test_arrays_are_told_from_groups() -> None:
    keys = ["zarr.json", "X/zarr.json", "X/data/zarr.json", "X/indptr/zarr.json", "columns/zarr.json", "X/data/c/0"]
    keys += ["columns/y/zarr.json", "stats/labels/zarr.json", "stats/labels/y/zarr.json", "checksums/X/zarr.json"]
    keys += ["checksums/X/data/zarr.json", "stats/nnz/zarr.json", "checksums/columns/zarr.json"]
    assert arrays_of(keys) == [
        "X/indptr",
        "X/data",
        "checksums/X/data",
        "columns/y",
        "stats/labels/y",
        "stats/nnz",
    ]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        pytest.param(ArraySpec((5,), "int32", 8, 8), "", id="sound"),
        pytest.param(ArraySpec((5,), "int64", 8, 8), "the dtype is int64, expected int32", id="dtype"),
        pytest.param(ArraySpec((6,), "int32", 8, 8), r"the shape is (6,), expected (5,)", id="shape"),
    ],
)
def test_a_description_is_compared_with_what_it_must_be(spec: ArraySpec, reason: str) -> None:
    found = spec_problem(spec, Expected("int32", (5,)))
    assert reason in found
    assert bool(reason) == bool(found)


def test_a_long_chunk_is_no_problem_of_its_own() -> None:
    """Whether there is as much is told by the lengths of the shards."""
    spec = ArraySpec((4096, 16_400), "float32", 4096, 4096)
    assert spec_problem(spec, Expected("float32", (4096, 16_400))) == ""
