from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsestore.plan import shuffle
from sparsestore.plan.shuffle import Permutation, order, words

SEEDS = st.integers(0, 2**64 - 1)


# The golden values below are in every saved loader state, split and shuffled store: a change here changes the rows that
# people trained on and makes their `state_dict` resume elsewhere. They must hold on every platform and numpy.


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((42, 0, 0, 0), "d1f8817d4d62880e 307266b65cc8797e de1f04e7f084ed03 65034a8e78cd1e59"),
        ((42, 1, 3, 7), "7135a57243e6fe0e d0ac2c4c07dd2bc8 3f1d49d4b896ac5"),
    ],
    ids=["first_words", "every_key_used"],
)
def test_words_are_pinned(key: tuple[int, int, int, int], expected: str) -> None:
    golden = [int(word, 16) for word in expected.split()]
    assert words(*key, len(golden)).tolist() == golden


def test_order_of_ten_is_pinned() -> None:
    assert order(42, shuffle.BLOCKS, 3, 0, 10).tolist() == [5, 3, 4, 8, 7, 6, 1, 0, 2, 9]


def test_feistel_permutation_is_pinned() -> None:
    # who reads more than 4 million blocks depends on this one
    assert Permutation(2**22 + 5, seed=42, epoch=3)[:4].tolist() == [1064446, 461405, 3814973, 3211810]


@pytest.mark.parametrize("seed", [1.5, 1.0, True, None, "1", -1, 2**64], ids=repr)
def test_a_seed_that_is_no_integer_in_range_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=f"seed is {seed!r}, expected "):
        words(seed, 0, 0, 0, 1)


def test_fewer_words_are_a_prefix_of_more() -> None:
    assert words(1, 2, 3, 4, 1000)[:10].tolist() == words(1, 2, 3, 4, 10).tolist()


@given(seed=SEEDS, epoch=st.integers(0, 2**40))
def test_seed_and_epoch_are_kept_apart(seed: int, epoch: int) -> None:
    if seed != epoch:
        assert words(seed, 0, epoch, 0, 2).tolist() != words(epoch, 0, seed, 0, 2).tolist()


def test_each_key_gives_other_words() -> None:
    keys = {tuple(words(*key, 2).tolist()) for key in np.ndindex(3, 5, 4, 4)}
    assert len(keys) == 3 * 5 * 4 * 4


def test_equal_words_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    few = np.random.default_rng(0).integers(0, 5, 1000).astype(np.uint64)
    monkeypatch.setattr(shuffle, "words", lambda *_key: few)
    assert np.array_equal(order(0, 0, 0, 0, 1000), np.argsort(few, kind="stable"))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_refuses_a_seed_that_is_no_64_bit_number(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed is {seed}, expected 0 <= seed < 2\*\*64"):
        words(seed, 0, 0, 0, 1)


def test_refuses_a_negative_epoch() -> None:
    with pytest.raises(ValueError, match="epoch is -1 and window is 0, expected 0 to"):
        words(0, 0, -1, 0, 1)


@settings(deadline=None)
@given(n=st.integers(0, 5000), seed=SEEDS, epoch=st.integers(0, 1000), feistel=st.booleans())
def test_permutation_has_everything_once_and_inverts(n: int, seed: int, epoch: int, feistel: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if feistel and n > 1:
            patch.setattr(shuffle, "REAL_BELOW", 0)
        permutation = Permutation(n, seed, epoch)
    values = permutation[:]
    assert len(permutation) == n
    assert np.array_equal(np.sort(values), np.arange(n))
    assert np.array_equal(permutation.inverse(values), np.arange(n))
    assert np.array_equal(permutation[n // 3 : n // 2], values[n // 3 : n // 2])


@pytest.mark.parametrize("n", [2**22 - 1, 2**22, 10**9 + 7, 2**33 + 1, 2**62], ids=str)
def test_permutations_of_any_size_are_read_in_slices(n: int) -> None:
    permutation = Permutation(n, seed=7, epoch=1)
    values = permutation[n - 1000 : n]
    assert len(np.unique(values)) == 1000
    assert values.min() >= 0
    assert values.max() < n
    assert permutation.inverse(values).tolist() == list(range(n - 1000, n))


def test_feistel_permutation_looks_uniform() -> None:
    n, bins = 2**22 + 12345, 64
    values = Permutation(n, seed=3, epoch=9)[: 64 * 2000]
    observed = np.histogram2d(np.arange(len(values)), values, bins=(8, bins), range=((0, len(values)), (0, n)))[0]
    expected = len(values) / 8 / bins
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    assert 400 < chi2 < 640  # 504 degrees of freedom, sd 32
    gaps = np.abs(np.diff(values)) / n
    assert abs(gaps.mean() - 1 / 3) < 0.005
