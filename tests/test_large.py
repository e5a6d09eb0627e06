"""A store with more entries than 32 bits can count. Takes 5 GB of disk and some minutes: run with `make test-large`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sparsestore.csr import Rows
from sparsestore.errors import CorruptStoreError
from sparsestore.integrity import verify
from sparsestore.manifest import read_manifest
from sparsestore.reader import Reader
from sparsestore.storage import open_storage
from sparsestore.writer import create

N_FEATURES = 1 << 16
PER_ROW = 1 << 15
N_ROWS = 70_000
BLOCK = 1_000


def row(number: int) -> np.ndarray:
    """Feature numbers of a row: every second one, odd or even: neighbours differ."""
    return np.arange(number % 2, N_FEATURES, 2, dtype=np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / "store.zarr"
    indptr = np.arange(BLOCK + 1, dtype=np.int64) * PER_ROW
    indices = np.concatenate([row(number) for number in range(BLOCK)])
    data = np.ones(len(indices), np.float32)
    with create(path, n_features=N_FEATURES) as writer:
        for start in range(0, N_ROWS, BLOCK):
            writer.write(Rows(indptr, indices, data, N_FEATURES), {"y": np.arange(start, start + BLOCK)})
    yield path
    open_storage(path).remove("")


BORDER = 2**31 // PER_ROW
WHERE = {"start": 0, "2**31 bytes": BORDER // 2 - 3, "2**31 entries": BORDER - 3, "end": N_ROWS - 6}


@pytest.mark.large
@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "read"])
@pytest.mark.parametrize("first", WHERE.values(), ids=WHERE)
def test_rows_around_the_borders_of_32_bits_come_back(path: Path, first: int, mmap: bool) -> None:
    storage = open_storage(path)
    reader = Reader(storage, read_manifest(storage), mmap=mmap)
    assert reader.nnz == N_ROWS * PER_ROW > 2**31
    assert len(reader.lines) == 1
    found = reader.read(first, first + 6)
    np.testing.assert_array_equal(found.indptr, np.arange(7) * PER_ROW)
    np.testing.assert_array_equal(found.indices, np.concatenate([row(number) for number in range(first, first + 6)]))
    assert (found.data == 1).all()
    assert reader.column("y", slice(first, first + 6)).tolist() == list(range(first, first + 6))


@pytest.mark.large
def test_rows_from_all_over_come_back_in_the_order_asked_for(path: Path) -> None:
    storage = open_storage(path)
    reader = Reader(storage, read_manifest(storage))
    rows = np.array([N_ROWS - 1, 0, BORDER, BORDER - 1, 12_345])
    found = reader.locate(np.sort(rows)).take(np.argsort(np.argsort(rows)))
    np.testing.assert_array_equal(found.indices, np.concatenate([row(number) for number in rows.tolist()]))


@pytest.mark.large
def test_a_store_of_that_size_is_sound(path: Path) -> None:
    storage = open_storage(path)
    assert verify(Reader(storage, read_manifest(storage))) == []
    assert storage.size("") < 5 * 10**9


@pytest.mark.large
def test_a_flipped_bit_past_two_to_the_32nd_bytes_is_told_with_its_rows(path: Path) -> None:
    storage = open_storage(path)
    reader = Reader(storage, read_manifest(storage))
    at = (N_ROWS - 2) * PER_ROW * 2
    entry = reader.segment(0).indices
    shard_bytes = entry.spec.shard * 2
    file = storage.path(f"{entry.prefix}/{entry.spec.shard_key(at // shard_bytes)}")
    with file.open("r+b") as damaged:
        damaged.seek(at % shard_bytes)
        byte = damaged.read(1)[0]
        damaged.seek(at % shard_bytes)
        damaged.write(bytes([byte ^ 1]))
    try:
        reader.read(N_ROWS - 10, N_ROWS - 3)
        with pytest.raises(CorruptStoreError, match=rf"rows {N_ROWS - 2} to {N_ROWS - 1}\): the bytes do not match"):
            reader.read(N_ROWS - 2, N_ROWS - 1)
        assert len(verify(reader)) == 1
    finally:
        with file.open("r+b") as damaged:
            damaged.seek(at % shard_bytes)
            damaged.write(bytes([byte]))
