"""Counted bytes, against their twin."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsestore.kernels.counting import count, count_numpy


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 1000), start=st.integers(0, 40))
def test_bytes_are_counted_at_any_length_and_place(seed: int, n: int, start: int) -> None:
    text = np.random.default_rng(seed).integers(0, 4, n, np.uint8)[start:]
    assert tuple(map(int, count(text, np.uint8(0), np.uint8(1), np.uint8(3)))) == count_numpy(text, 0, 1, 3)


def test_a_run_of_nothing_else_does_not_overflow() -> None:
    text = np.full(100_000, 10, np.uint8)
    assert tuple(map(int, count(text, np.uint8(10), np.uint8(10), np.uint8(0)))) == (100_000, 100_000, 0)
