"""Memory is used again only when nobody can see what it held."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from sparsestore.buffers import KEPT, LEAST_BYTES, Buffers

N = 1 << 20


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("n", [0, 1, LEAST_BYTES, N + 3])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "int64"])
def test_arrays_start_at_multiples_of_64_bytes_and_can_be_written(n: int, dtype: str) -> None:
    array = Buffers().empty(n, dtype)
    assert (array.shape, array.dtype, address(array) % 64 * (n > 0)) == ((n,), np.dtype(dtype), 0)
    array[:] = 1
    assert array.sum(dtype=np.int64) == n


def test_a_block_is_used_again_when_its_array_is_gone() -> None:
    buffers = Buffers()
    first = buffers.empty(N, np.float32)
    place = address(first)
    del first
    assert address(buffers.empty(N - 100, np.float32)) == place


@pytest.mark.parametrize(("part", "again"), [(3, True), (5, False)])
def test_a_large_block_is_not_kept_by_a_small_array(part: int, again: bool) -> None:
    buffers = Buffers()
    first = buffers.empty(8 * N, np.float32)
    place = address(first)
    del first
    assert (address(buffers.empty(8 * N // part, np.float32)) == place) is again


@pytest.mark.parametrize("view", [lambda a: a[5:], lambda a: a.view(np.uint8)[7:9], lambda a: memoryview(a)[3:]])
def test_a_view_keeps_the_block(view: object) -> None:
    buffers = Buffers()
    array = buffers.empty(N, np.float32)
    place = address(array)
    kept = view(array)  # type: ignore[operator]
    del array
    gc.collect()
    other = buffers.empty(N, np.float32)
    assert address(other) != place
    del kept
    assert address(buffers.empty(N, np.float32)) == place


def test_a_scipy_matrix_keeps_the_block() -> None:
    buffers = Buffers()
    data, rows = buffers.empty(N, np.float32), 4
    data[:] = 3
    x = scipy.sparse.csr_array((data, np.arange(N) % 100, np.linspace(0, N, rows + 1).astype(int)), shape=(rows, 100))
    del data
    buffers.empty(N, np.float32)[:] = 7
    assert (x.data == 3).all()


def test_no_more_blocks_are_kept_than_are_in_use_in_turns() -> None:
    buffers = Buffers()
    many = [buffers.empty(N, np.float32) for _ in range(3 * KEPT)]
    many.clear()
    buffers._take_back()
    assert len(buffers._free) == KEPT


def test_a_block_much_too_large_is_not_taken() -> None:
    buffers = Buffers()
    del (large := [buffers.empty(64 * N, np.uint8)])[0]
    assert not large
    small = buffers.empty(LEAST_BYTES, np.uint8)
    assert not buffers._free  # nor kept beside the new one: there may not be memory for both
    del small
    buffers._take_back()
    assert len(buffers._free) == 1


def test_of_blocks_that_fit_the_smallest_is_taken() -> None:
    buffers = Buffers()
    sizes = 16 * N, 8 * N
    arrays = [buffers.empty(size, np.uint8) for size in sizes]
    places = [address(array) for array in arrays]
    del arrays
    assert [address(buffers.empty(size, np.uint8)) for size in (8 * N, 16 * N)] == places[::-1]


def test_threads_never_share_a_block() -> None:
    buffers = Buffers()
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            array = buffers.empty(LEAST_BYTES, np.uint8)
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arrays_outlive_their_pool() -> None:
    array = Buffers().empty(N, np.float32)
    gc.collect()
    array[:] = 5
    assert array.sum() == 5 * N


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits as in Linux")
def test_too_little_memory_is_a_memory_error() -> None:
    import resource

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    buffers = Buffers()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), before[1]))
    try:
        with pytest.raises(MemoryError, match=r"bytes for batches: .*ulimit -v"):
            buffers.empty(1 << 30, np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert len(buffers.empty(1 << 20, np.uint8)) == 1 << 20
