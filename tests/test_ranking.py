"""The compiled argsort of random words, against its twin."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from sparsestore.kernels import ranking


@given(
    words=hnp.arrays(np.uint64, st.integers(1, 300), elements=st.integers(0, 2**64 - 1)),
    bits=st.integers(1, 12),
    few=st.booleans(),
)
def test_words_are_ranked_stably_whatever_they_are(words: np.ndarray, bits: int, few: bool) -> None:
    words = words % np.uint64(5) if few else words
    found = [np.empty(len(words), np.int64) for _ in range(2)]
    for way, out in zip((ranking.rank, ranking.rank_numpy), found, strict=True):
        way(words, 64 - bits, np.zeros((1 << bits) + 1, np.int64), out)
    assert np.array_equal(found[0], np.argsort(words, kind="stable"))
    assert np.array_equal(*found)
