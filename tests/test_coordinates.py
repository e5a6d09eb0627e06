"""Coordinates of sparse tensors: the compiled loop gives what its twin gives, and batches what scipy gives."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import random_matrix
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsestore.buffers import Buffers
from sparsestore.csr import from_scipy
from sparsestore.kernels import coordinates
from sparsestore.reader import Located


@pytest.mark.parametrize("stored", ["uint16", "int32", "int64"])
@given(lengths=st.lists(st.sampled_from([0, 0, 1, 2, 70]), max_size=12), gap=st.integers(0, 5), data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_loop_and_its_twin_agree(stored: str, lengths: list[int], gap: int, data: st.DataObject) -> None:
    order = np.array(data.draw(st.permutations(range(len(lengths)))), np.int64)
    n_entries = np.array(lengths, np.int64)
    starts = (np.cumsum(n_entries) - n_entries)[order].astype(np.uint64)
    n_entries = n_entries[order]
    targets = np.cumsum(n_entries + gap) - n_entries
    n = int(n_entries.sum())
    indices = np.random.default_rng(n).integers(0, np.iinfo(stored).max, n, dtype=stored, endpoint=True)
    found = np.zeros((2, 2 * (n + gap * len(lengths))), np.int64)
    coordinates.coordinates(indices, starts, n_entries, targets, order, found[0])
    coordinates.coordinates_numpy(indices, starts, n_entries, targets, order, found[1])
    np.testing.assert_array_equal(found[0], found[1])
    assert found.min(initial=0) >= 0  # no wide feature number was read as negative


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "bool"])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_are_those_of_scipy_and_aligned(batch_size: int, dtype: str) -> None:
    x = random_matrix(60, 31, 0.2)
    x.data = np.round(x.data * 100)
    found = Located.of(from_scipy(x)).coordinates(3, 58, batch_size, dtype, Buffers())
    assert len(found.starts) == -(-55 // batch_size)
    for b, (start, stop) in enumerate(zip(found.starts, found.stops, strict=True)):
        first = 3 + b * batch_size
        wanted = x[first : min(first + batch_size, 58)].tocoo()
        places, values = found.places[start:stop], found.values[start:stop]
        assert values.dtype == dtype
        assert np.array_equal(places, np.stack(wanted.coords, axis=1))
        assert np.array_equal(values, wanted.data.astype(dtype))
        assert places.ctypes.data % 64 == values.ctypes.data % 64 == 0
