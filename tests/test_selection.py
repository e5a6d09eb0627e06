from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsestore.plan import selection as module
from sparsestore.plan.selection import Selection, split
from sparsestore.plan.shuffle import SPLITS

Ints = NDArray[np.int64]
SEGMENTS = st.lists(st.integers(0, 1500), min_size=1, max_size=6)


def rows_of(selection: Selection) -> Ints:
    return selection.rows(np.arange(selection.n_rows))


def segment_of(starts: Ints, rows: Ints) -> Ints:
    return np.searchsorted(starts, rows, side="right") - 1


@st.composite
def keys(draw: st.DrawFn, n: int) -> object:
    """A numpy index for n rows: slice, mask (sparse, dense or in runs) or integers."""
    kind = draw(st.sampled_from(["slice", "slice", "mask", "runs", "ascending", "ids"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "slice":
        bound = st.none() | st.integers(-n - 3, n + 3)
        return slice(draw(bound), draw(bound), draw(st.sampled_from([None, 1, 2, 7, -1, -3])))
    if kind == "mask":
        return rng.random(n) < draw(st.sampled_from([0.0, 0.01, 0.5, 0.95, 1.0]))
    if kind == "runs":
        return np.arange(n) // 400 % 2 == 1
    if kind == "ascending":
        return np.flatnonzero(rng.random(n) < 0.1)
    return rng.integers(-n, n, draw(st.integers(0, 50))) if n else np.zeros(0, np.int64)


def take(selection: Selection, key: object) -> Selection:
    if isinstance(key, slice):
        return selection.take_slice(key)
    assert isinstance(key, np.ndarray)
    return selection.take_mask(key) if key.dtype == bool else selection.take_ids(key)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), segments=SEGMENTS)
def test_selecting_in_a_view_is_numpy_indexing(data: st.DataObject, segments: list[int]) -> None:
    selection, expected = Selection.all(segments), np.arange(sum(segments))
    for _ in range(data.draw(st.integers(1, 4))):
        key = data.draw(keys(len(expected)))
        selection, expected = take(selection, key), expected[key]  # type: ignore[index]
        assert selection.n_rows == len(expected)
        assert np.array_equal(rows_of(selection), expected)
        assert selection.segment_rows.sum() == len(expected)
        if len(selection.segment_rows) == len(segments) > 1:
            of = segment_of(selection.store_starts, expected)
            assert np.array_equal(selection.segment_rows, np.bincount(of, minlength=len(segments)))
    some = np.random.default_rng(0).integers(0, max(len(expected), 1), 40 * bool(len(expected)))
    assert np.array_equal(selection.rows(some), expected[some])
    assert np.array_equal(selection.rows(np.sort(some)), expected[np.sort(some)])


def test_order_and_repeats_are_kept() -> None:
    assert rows_of(Selection.all([3, 2]).take_ids([4, 0, 0, -2])).tolist() == [4, 0, 0, 3]
    assert Selection.all([3, 2]).take_ids([4, 0]).segment_rows.tolist() == [2]
    assert Selection.all([3, 2]).take_ids([0, 4]).segment_rows.tolist() == [1, 1]
    assert Selection.all([3, 2]).take_ids([]).n_rows == 0


def test_a_slice_of_a_bitmap_shares_it() -> None:
    packed = Selection.all([100_000]).take_mask(np.random.default_rng(0).random(100_000) < 0.5)
    part = packed.take_slice(slice(100, 200))
    assert part._bitmap is packed._bitmap


def test_a_view_takes_at_most_about_a_bit_a_row() -> None:
    n = 1_000_000
    packed = Selection.all([n]).take_mask(np.random.default_rng(0).random(n) < 0.5)
    assert packed._bitmap is not None
    held = sum(getattr(packed._bitmap, name).nbytes for name in ("bits", "before", "first_row"))
    assert held < 1.3 * n / 8
    few = Selection.all([n]).take_ids([5, 70, 900_000])
    assert few._bitmap is None


@pytest.mark.parametrize("ids", [[7], [0, 5], [-6]], ids=["after", "one_after", "before"])
def test_out_of_bounds_is_worded_as_numpy_does(ids: list[int]) -> None:
    bad = next(i for i in ids if not -5 <= i < 5)
    with pytest.raises(IndexError) as ours:
        Selection.all([3, 2]).take_ids(ids)
    with pytest.raises(IndexError) as numpys:
        np.arange(5)[ids]
    assert str(ours.value) == str(numpys.value) == f"index {bad} is out of bounds for axis 0 with size 5"


@pytest.mark.parametrize("length", [4, 6])
def test_a_mask_of_another_length_is_worded_as_numpy_does(length: int) -> None:
    mask = np.ones(length, bool)
    with pytest.raises(IndexError) as ours:
        Selection.all([3, 2]).take_mask(mask)
    with pytest.raises(IndexError) as numpys:
        np.arange(5)[mask]
    assert str(ours.value) == str(numpys.value)


def test_refuses_what_is_no_index() -> None:
    every = Selection.all([5])
    with pytest.raises(IndexError, match=r"must be of integer \(or boolean\) type and have 1 dimension, found float64"):
        every.take_ids([0.5])
    with pytest.raises(IndexError, match="a mask must be of boolean type, found int64"):
        every.take_mask(np.ones(5, np.int64))
    with pytest.raises(IndexError, match="index 5 is out of bounds for axis 0 with size 5"):
        every.rows(np.array([5]))
    with pytest.raises(IndexError, match="index -1 is out of bounds for axis 0 with size 5"):
        every.rows(np.array([-1]))


def test_fingerprint_tells_membership_order_and_segments_apart() -> None:
    every = Selection.all([600, 400])
    mask = np.random.default_rng(0).random(1000) < 0.5
    other = mask.copy()
    other[777] ^= True
    selections = [
        every,
        Selection.all([1000]),
        Selection.all([400, 600]),
        every.take_slice(slice(1, None)),
        every.take_slice(slice(None, -1)),
        every.take_mask(mask),
        every.take_mask(other),
        every.take_mask(mask).take_slice(slice(1, None)),
        every.take_ids([1, 0]),
        every.take_ids([0, 1]),
        every.take_ids([0, 0, 1]),
    ]
    assert len({selection.fingerprint() for selection in selections}) == len(selections)
    assert every.take_mask(mask).fingerprint() == every.take_mask(mask.copy()).fingerprint()


def test_fingerprint_is_the_same_in_another_process() -> None:
    # saved in every `state_dict` of a loader: a change makes all of them refuse to load
    code = (
        "import numpy as np; from sparsestore.plan.selection import Selection;"
        "print(Selection.all([30, 20]).take_mask(np.arange(50) % 3 == 0).fingerprint())"
    )
    here = Selection.all([30, 20]).take_mask(np.arange(50) % 3 == 0).fingerprint()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here == "734d42b5849d9c28a466e5e20e77fb2a"


# ---------------------------------------------------------------------------------------------------- splits


@st.composite
def fractions(draw: st.DrawFn) -> dict[str, float]:
    weights = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    total = sum(weights) + draw(st.sampled_from([0, 0, 7]))
    return {f"part{i}": weight / total for i, weight in enumerate(weights)}


def cut(segments: list[int], shuffled: object, parts: dict[str, float], seed: int, **by: object) -> dict[str, Ints]:
    every = Selection.all(segments)
    found = split(every, every.store_starts[:-1], np.broadcast_to(shuffled, len(segments)), parts, seed, **by)  # type: ignore[arg-type]
    return {name: rows_of(part) for name, part in found.items()}


def by_segment(segments: list[int], values: NDArray[np.generic]) -> Callable[[int], NDArray[np.generic]]:
    ends = np.cumsum(segments)
    return lambda segment: values[ends[segment] - segments[segment] : ends[segment]]


@settings(deadline=None)
@given(segments=SEGMENTS, parts=fractions(), seed=st.integers(0, 2**64 - 1), data=st.data())
def test_parts_are_disjoint_and_have_their_fractions(
    segments: list[int], parts: dict[str, float], seed: int, data: st.DataObject
) -> None:
    shuffled = np.array(data.draw(st.lists(st.booleans(), min_size=len(segments), max_size=len(segments))))
    found = cut(segments, shuffled, parts, seed)
    rows = np.concatenate(list(found.values()))
    assert len(np.unique(rows)) == len(rows)
    if sum(parts.values()) > 1 - 1e-9:
        assert len(rows) == sum(segments)
    starts = np.append(0, np.cumsum(segments))
    for name, fraction in parts.items():
        for start, stop in pairwise(starts.tolist()):
            have = np.count_nonzero((found[name] >= start) & (found[name] < stop))
            assert abs(have - fraction * (stop - start)) < 1 + 1e-9


@settings(deadline=None)
@given(segments=SEGMENTS, parts=fractions(), appended=SEGMENTS, by=st.sampled_from(["rows", "strata", "groups"]))
def test_appended_rows_move_no_row(segments: list[int], parts: dict[str, float], appended: list[int], by: str) -> None:
    both = segments + appended
    values = np.random.default_rng(0).integers(0, 9, sum(both))
    shuffled = np.arange(len(both)) % 2 == 1
    options = {} if by == "rows" else {by: by_segment(both, values)}
    before = cut(segments, shuffled[: len(segments)], parts, 5, **options)
    after = cut(both, shuffled, parts, 5, **options)
    for name in parts:
        assert np.array_equal(before[name], after[name][after[name] < sum(segments)])


@pytest.mark.parametrize("shuffled", [True, False])
def test_many_small_segments_add_up_to_the_fractions(shuffled: bool) -> None:
    found = cut([1] * 4000, shuffled, {"train": 0.9, "val": 0.1}, 0)
    assert abs(len(found["val"]) - 400) < 80  # sd 19; rounding each alone would give none


def test_shuffled_segments_are_cut_into_ranges_and_cost_nothing() -> None:
    every = Selection.all([10_000_000] * 100)
    parts = split(every, every.store_starts[:-1], np.ones(100, bool), {"train": 0.9, "val": 0.1}, 3)
    assert parts["val"]._bitmap is None
    assert len(parts["val"]._first) == 100
    assert parts["val"].n_rows == 100_000_000
    assert parts["val"].is_contiguous


def test_drawn_rows_are_spread_and_depend_on_the_seed() -> None:
    first, second = (cut([100_000], False, {"a": 0.5, "b": 0.5}, seed)["a"] for seed in (0, 1))
    assert abs(np.count_nonzero(np.diff(first) == 1) / len(first) - 0.5) < 0.02
    assert abs(len(np.intersect1d(first, second)) - 25_000) < 500


def test_a_split_of_a_large_segment_is_exact_across_the_pieces_it_is_drawn_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SPLIT_ROWS", 64)
    labels = np.random.default_rng(0).choice(3, 5000, p=[0.9, 0.09, 0.01])
    found = cut([5000], False, {"a": 0.5, "b": 0.3, "c": 0.2}, 1, strata=by_segment([5000], labels))
    assert sum(map(len, found.values())) == 5000
    for label in range(3):
        of = np.count_nonzero(labels == label)
        for name, fraction in {"a": 0.5, "b": 0.3, "c": 0.2}.items():
            assert abs(np.count_nonzero(labels[found[name]] == label) - fraction * of) < 2


@settings(deadline=None)
@given(segments=SEGMENTS, parts=fractions(), seed=st.integers(0, 1000), kind=st.sampled_from(["int", "str", "object"]))
def test_strata_have_their_fractions_in_every_segment(
    segments: list[int], parts: dict[str, float], seed: int, kind: str
) -> None:
    codes = np.random.default_rng(seed).choice(4, sum(segments), p=[0.7, 0.25, 0.04, 0.01])
    values = codes if kind == "int" else codes.astype(str).astype("U" if kind == "str" else object)
    found = cut(segments, True, parts, seed, strata=by_segment(segments, values))
    of = segment_of(np.append(0, np.cumsum(segments)), np.arange(sum(segments)))
    rows = np.concatenate(list(found.values()))
    assert len(np.unique(rows)) == len(rows)
    for name, fraction in parts.items():
        for segment in range(len(segments)):
            for label in range(4):
                here = (codes == label) & (of == segment)
                assert abs(np.count_nonzero(here[found[name]]) - fraction * np.count_nonzero(here)) < 1 + 1e-9


GROUPS: dict[str, Callable[[Ints], NDArray[np.generic]]] = {
    "int64": lambda g: g - 500,
    "int32": lambda g: (g - 500).astype(np.int32),
    "uint8": lambda g: (g % 256).astype(np.uint8),
    "float64": lambda g: g / 7,
    "str": lambda g: np.char.add("user-ä", g.astype(str)),
    "object": lambda g: g.astype(str).astype(object),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_a_group_is_never_in_two_parts(kind: str) -> None:
    segments = [3000, 0, 5000, 17]
    values = GROUPS[kind](np.random.default_rng(0).integers(0, 1000, sum(segments)))
    found = cut(segments, [True, False, False, True], {"a": 0.5, "b": 0.3}, 9, groups=by_segment(segments, values))
    groups = {name: set(values[rows].tolist()) for name, rows in found.items()}
    assert not groups["a"] & groups["b"]
    n_groups = len(set(values.tolist()))
    assert abs(len(groups["a"]) / n_groups - 0.5) < 0.15
    assert abs(len(groups["b"]) / n_groups - 0.3) < 0.15
    whole = cut(segments, False, {"a": 0.5, "b": 0.3, "rest": 0.2}, 9, groups=by_segment(segments, values))
    assert np.array_equal(whole["a"], found["a"])
    assert sum(map(len, whole.values())) == sum(segments)


def test_group_hashes_are_pinned() -> None:
    # every split by group depends on these: a change would move users from train to test
    numbers = module._hash(np.array([0, 1, -5]), 42, SPLITS)
    words = module._hash(np.array(["alice", "ä", ""]), 42, SPLITS)
    golden = ["531170944ae499f8", "8f917fd2a4989886", "d95fcbae51f67ab2"]
    golden += ["521dd3dac43baedb", "1e72efdb7c94a19f", "e0daa25b7f4f433a"]
    assert [f"{value:016x}" for value in [*numbers.tolist(), *words.tolist()]] == golden
    assert module._hash(np.array([0, 1, -5], np.int8), 42, SPLITS).tolist() == numbers.tolist()
    zeros = module._hash(np.array([0.0, -0.0]), 42, SPLITS).tolist()
    assert zeros[0] == zeros[1]


@pytest.mark.parametrize("by", ["strata", "groups"])
def test_texts_are_split_as_numpys_own_are(by: str) -> None:
    # which end before NULs and are in the order of their characters
    rng = np.random.default_rng(0)
    texts = np.array(["", "a", "a\0", "a\0b", "\0", "b", "ä", "\U0001f600", "\uffff", "aa", "Z"], object)
    texts = texts[rng.integers(0, len(texts), 3000)]
    halves = {"a": 0.5, "b": 0.3}
    found = cut([1000, 2000], False, halves, 3, **{by: by_segment([1000, 2000], texts)})
    expected = cut([1000, 2000], False, halves, 3, **{by: by_segment([1000, 2000], texts.astype(np.str_))})
    assert all(np.array_equal(found[name], expected[name]) for name in halves)


MASKED = {
    "int": np.zeros(3000, int),
    "float": np.zeros(3000),
    "text": np.full(3000, "", object),
}


@pytest.mark.parametrize("kind", MASKED)
def test_masked_rows_are_a_class_and_a_group_of_their_own(kind: str) -> None:
    # what stands under the mask is a value that other rows have
    mask = np.arange(3000) % 3 == 0
    values = MASKED[kind].copy()
    values[1::3] = "b" if kind == "text" else 1
    masked = np.ma.array(values, mask=mask)
    found = cut([1000, 2000], False, {"a": 0.25, "b": 0.5}, 3, strata=by_segment([1000, 2000], masked))
    assert [int(mask[found[name]].sum()) for name in "ab"] == pytest.approx([250, 500], abs=2)
    alone = ~mask
    for seed in range(20):
        found = cut([1000, 2000], False, {"a": 0.5, "b": 0.5}, seed, groups=by_segment([1000, 2000], masked))
        part = np.zeros(3000, int)
        part[found["b"]] = 1
        assert len(set(part[mask])) == 1
        plain = cut([1000, 2000], False, {"a": 0.5, "b": 0.5}, seed, groups=by_segment([1000, 2000], values))
        assert set(plain["a"][alone[plain["a"]]]) == set(found["a"][alone[found["a"]]])  # those stay where they were
    apart = [module._hash(masked, seed, SPLITS)[0] == module._hash(masked, seed, SPLITS)[2] for seed in range(5)]
    assert apart == [False] * 5


def test_classes_that_have_values_are_split_as_without_those_that_have_none() -> None:
    values = np.arange(3000) % 3
    masked = np.ma.array(values, mask=values == 2)
    segments = [1000, 2000]
    found, plain = (
        cut(segments, False, {"a": 0.3, "b": 0.3}, 3, strata=by_segment(segments, each)) for each in (masked, values)
    )
    assert all(np.array_equal(found[name], plain[name]) for name in "ab")


def test_nan_is_one_group_whatever_its_bits() -> None:
    values = np.array([0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000001], np.uint64).view(np.float64)
    assert len(set(module._hash(values, 1, SPLITS).tolist())) == 1


def test_a_split_by_texts_is_pinned() -> None:
    texts = np.array(["b", "a", "a\0", "ä", "", "c", "b", "a", "ä", "d", "e", "f"], object)
    found = cut([12], False, {"train": 0.5, "val": 0.5}, 42, groups=by_segment([12], texts))
    assert found["train"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    found = cut([12], False, {"train": 0.5, "val": 0.5}, 42, strata=by_segment([12], texts))
    assert found["train"].tolist() == [1, 4, 6, 8]


def test_a_small_split_is_pinned() -> None:
    # saved experiments name a seed and expect the same rows
    found = cut([12, 8], [False, True], {"train": 0.75, "val": 0.25}, 42)
    assert found["train"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 12, 13, 14, 15, 16, 17]
    assert found["val"].tolist() == [4, 9, 11, 18, 19]


def test_a_view_is_split_as_its_rows_and_parts_can_be_split_again() -> None:
    every = Selection.all([500, 700])
    view = every.take_mask(np.arange(1200) % 3 > 0)
    for shuffled in (np.array([True, True]), np.array([False, True])):
        parts = split(view, every.store_starts[:-1], shuffled, {"a": 0.5, "b": 0.5}, 0)
        again = split(parts["a"], every.store_starts[:-1], shuffled, {"c": 0.5, "d": 0.5}, 0)
        assert np.array_equal(np.sort(np.concatenate([rows_of(part) for part in parts.values()])), rows_of(view))
        both = np.sort(np.concatenate([rows_of(part) for part in again.values()]))
        assert np.array_equal(both, rows_of(parts["a"]))


NARROWED: dict[str, Callable[[Selection], Selection]] = {
    "as_it_is": lambda part: part,
    "slice": lambda part: part.take_slice(slice(10, None)),
    "mask": lambda part: part.take_mask(np.arange(part.n_rows) % 10 > 0),
    "ascending": lambda part: part.take_ids(np.arange(10, part.n_rows)),
    "order": lambda part: part.take_ids(np.arange(part.n_rows)[::-1]),
    "backwards": lambda part: part.take_slice(slice(None, None, -1)).take_slice(slice(10, None)),
    "pickled": lambda part: pickle.loads(pickle.dumps(part)),
}


@pytest.mark.parametrize("narrowed", NARROWED)
@pytest.mark.parametrize(
    ("segments", "shuffled", "by"),
    [
        ([1] * 800, True, None),
        ([1] * 800, False, None),
        ([800], False, None),
        ([10] * 80, False, "strata"),
        ([240, 560], False, "groups"),
    ],
    ids=["ranges_of_small_segments", "rows_of_small_segments", "rows", "strata_of_small_segments", "groups"],
)
def test_parts_split_again_with_the_same_seed_have_their_fractions(
    segments: list[int], shuffled: bool, by: str | None, narrowed: str
) -> None:
    # the words that a part was drawn by are those that are small, or large: by them it would stay in one piece
    every = Selection.all(segments)
    starts, values = every.store_starts[:-1], np.arange(800) % (10 if by == "strata" else 400)
    parts = [every]
    for _ in range(3):
        halves = []
        for part in parts:
            rows = rows_of(part)
            by_rows = by_segment(part.segment_rows.tolist(), values[rows])
            found = split(
                part,
                starts,
                np.full(len(segments), shuffled),
                {"a": 0.5, "b": 0.5},
                0,
                strata=by_rows if by == "strata" else None,
                groups=by_rows if by == "groups" else None,
            )
            assert sum(half.n_rows for half in found.values()) == len(rows)
            assert abs(found["a"].n_rows / len(rows) - 0.5) < 0.15
            halves += [NARROWED[narrowed](half) for half in found.values()]
        parts = halves


@pytest.mark.parametrize("by", ["rows", "strata", "groups"])
def test_appended_rows_move_no_row_of_a_part_of_a_part(by: str) -> None:
    values, shuffled = np.random.default_rng(0).integers(0, 50, 1300), np.array([True, False, True])

    def twice(segments: list[int]) -> dict[str, Ints]:
        part = Selection.all(segments)
        starts = part.store_starts[:-1]
        for _ in range(2):
            of = by_segment(part.segment_rows.tolist(), values[rows_of(part)])
            options = {} if by == "rows" else {by: of}
            parts = split(part, starts, shuffled[: len(segments)], {"a": 0.3, "b": 0.7}, 1, **options)  # type: ignore[arg-type]
            part = parts["b"]
        return {name: rows_of(part) for name, part in parts.items()}

    before, after = twice([500, 300]), twice([500, 300, 500])
    for name, rows in before.items():
        assert len(rows)
        assert np.array_equal(rows, after[name][after[name] < 800])


def test_a_small_split_of_a_part_is_pinned() -> None:
    # as are splits of a whole store: the usual way to a test set is to split twice
    every = Selection.all([12, 8])
    rest = split(every, every.store_starts[:-1], [False, True], {"train": 0.5, "rest": 0.5}, 42)["rest"]
    found = split(rest, every.store_starts[:-1], [False, True], {"val": 0.5, "test": 0.5}, 42)
    assert rows_of(found["val"]).tolist() == [3, 4, 5, 16, 17]
    assert rows_of(found["test"]).tolist() == [0, 9, 11, 18, 19]
    groups = by_segment(rest.segment_rows.tolist(), rows_of(rest))
    found = split(rest, every.store_starts[:-1], [False, True], {"val": 0.5, "test": 0.5}, 42, groups=groups)
    assert rows_of(found["val"]).tolist() == [0, 4, 9, 16, 18]


def test_a_view_in_a_given_order_is_split_in_that_order() -> None:
    view = Selection.all([100]).take_slice(slice(None, None, -1))
    parts = split(view, np.array([0]), [True], {"a": 0.6, "b": 0.4}, 0)
    assert (np.diff(rows_of(parts["a"])) < 0).all()
    assert sorted([*rows_of(parts["a"]), *rows_of(parts["b"])]) == list(range(100))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "fractions is empty"),
        ({"a": 0.9, "b": 0.2}, r"fractions add up to 1.1, expected at most 1: \{'a': 0.9, 'b': 0.2\}"),
        ({"a": 0.9, "b": 0.0}, "fraction of 'b' is 0.0, expected more than 0 and at most 1"),
        ({"a": -0.5}, "fraction of 'a' is -0.5"),
        ({"a": float("nan")}, "fraction of 'a' is nan"),
    ],
    ids=["none", "too_much", "zero", "negative", "nan"],
)
def test_refuses_fractions_that_make_no_sense(parts: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut([10], False, parts, 0)


def test_fractions_that_add_up_to_one_but_for_rounding_lose_no_row() -> None:
    parts = {"a": 0.7, "b": 0.2, "c": 0.1}
    assert np.cumsum(list(parts.values()))[-1] < 1  # Python 3.12 sums floats more exactly than that
    assert sum(map(len, cut([1000], True, parts, 0).values())) == 1000


def test_refuses_a_bad_seed_two_ways_of_splitting_and_too_few_values() -> None:
    values = by_segment([10], np.arange(10))
    with pytest.raises(ValueError, match="seed is -1"):
        cut([10], False, {"a": 0.5}, -1)
    with pytest.raises(ValueError, match="strata and groups were both given"):
        cut([10], False, {"a": 0.5}, 0, strata=values, groups=values)
    with pytest.raises(ValueError, match=r"segment 0 has values of shape \(3,\), expected one for each of 10 rows"):
        cut([10], False, {"a": 0.5}, 0, groups=lambda _segment: np.arange(3))
