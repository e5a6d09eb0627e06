"""Lengths of chunks and shards are each array's own: whatever they are, rows are read right, or refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sparsestore as ss
from sparsestore import segment_writer
from sparsestore.arrays import ArrayWriter
from sparsestore.checksum import piece_crc32c
from sparsestore.storage import LocalStorage

Array = NDArray[Any]
ROWS, FEATURES = 1500, 400
PATHS = ("X/indptr", "X/indices", "X/data", "columns/y", "columns/two", "columns/t", "columns/age.mask", "checksums/")


class Shaped(ArrayWriter):
    """Lengths by the array's path; of small chunks, too, the checksums are those of pieces of 16 KiB."""

    lengths: dict[str, tuple[int, int]]

    def __init__(self, storage: LocalStorage, prefix: str, *arguments: Any, **options: Any) -> None:
        path = prefix.split("/", 2)[2]
        chunk, shard = next((found for start, found in self.lengths.items() if path.startswith(start)), (0, 0))
        super().__init__(storage, prefix, *arguments, **options | ({"chunk": chunk, "shard": shard} if chunk else {}))
        self._bytes: list[bytes] = []

    def _write_chunks(self, values: Array) -> None:
        if self._spec.codec.name == "none":
            self._bytes.append(np.ascontiguousarray(values, self._spec.dtype).tobytes())
        super()._write_chunks(values)

    @property
    def checks(self) -> NDArray[np.uint32]:
        if self._spec.codec.name != "none":
            return super().checks
        return np.asarray(piece_crc32c(np.frombuffer(b"".join(self._bytes), np.uint8)))


@st.composite
def lengths(draw: st.DrawFn) -> dict[str, tuple[int, int]]:
    """Powers of two; few enough chunks and objects to be written in a moment."""
    found = {}
    for path in PATHS:
        if not draw(st.booleans()):
            continue
        matrix = path in ("X/indices", "X/data")
        shard = draw(st.sampled_from([13, 14, 15, 16]) if matrix else st.integers(6, 12))
        chunk = draw(st.integers(8 if matrix else 0, shard))
        found[path] = 1 << chunk, 1 << shard
    return found


def matrix_and_columns() -> tuple[sp.csr_array, dict[str, Any]]:
    rng = np.random.default_rng(0)
    x = sp.random_array((ROWS, FEATURES), density=0.1, rng=rng, format="csr", dtype=np.float32)
    texts = np.array(["a", "ü", "", "long " * 9], object)[rng.integers(0, 4, ROWS)]
    age = np.ma.MaskedArray(rng.integers(0, 99, ROWS), rng.random(ROWS) < 0.3)
    return x, {"y": rng.permutation(ROWS), "two": rng.random((ROWS, 2)), "t": texts, "age": age}


X, COLUMNS = matrix_and_columns()


def same(found: sp.csr_array, rows: Any) -> None:
    expected = X[rows]
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def whole(store: ss.Store) -> None:
    same(store[:], np.arange(ROWS))


def some_rows(store: ss.Store) -> None:
    for rows in ([700], [ROWS - 1, 0, 1023, 1024], np.arange(300, 900, 7), [5, 6, 7, 1100]):
        same(store[rows], rows)


def shuffled(store: ss.Store) -> None:
    seen = []
    for batch in store.loader(64, shuffle=True, seed=0, window_rows=512, block_rows=16, columns=["y"]):
        same(batch.x, batch.row_ids)
        np.testing.assert_array_equal(batch.y, COLUMNS["y"][batch.row_ids])
        seen += batch.row_ids.tolist()
    assert sorted(seen) == list(range(ROWS))


def columns(store: ss.Store) -> None:
    for name, values in COLUMNS.items():
        for rows in (np.arange(ROWS), np.array([1400, 3, 3, 999])):
            assert store.column(name)[rows].tolist() == values[rows].tolist()


WAYS: list[Callable[[ss.Store], None]] = [whole, some_rows, shuffled, columns]


def read(path: Path) -> list[str]:
    """What readers say, each in its own store; nothing where all is right."""
    refused = []
    for way in WAYS:
        for mmap in (True, False):
            try:
                with ss.open(path, mmap=mmap) as store:
                    way(store)
            except ss.SparsestoreError as error:
                refused.append(str(error))
    return refused


def written(path: Path, found: dict[str, tuple[int, int]], profile: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shaped, "lengths", found, raising=False)
        patch.setattr(segment_writer, "ArrayWriter", Shaped)
        patch.setattr("os.fsync", lambda _: None)  # of hundreds of shards, which need not outlive the test
        ss.convert(X, path, columns=COLUMNS, profile=profile, overwrite=True, progress=False)
    return path


@given(found=lengths(), profile=st.sampled_from(["raw", "compact"]), damage=st.randoms(use_true_random=False))
@example({"X/indices": (1 << 8, 1 << 13)}, "raw", random.Random(0))
@example({"X/indices": (1 << 8, 1 << 15), "X/data": (1 << 14, 1 << 14), "X/indptr": (1, 64)}, "raw", random.Random(1))
@example({"X/indices": (512, 8192), "X/data": (256, 1 << 14), "columns/": (1, 64)}, "compact", random.Random(2))
@settings(max_examples=12, deadline=None)
def test_all_lengths_are_read_right_or_refused_and_verify_agrees(
    tmp_path_factory: pytest.TempPathFactory, found: dict[str, tuple[int, int]], profile: str, damage: random.Random
) -> None:
    path = written(tmp_path_factory.mktemp("lengths") / "s.zarr", found, profile)
    refused, problems = read(path), ss.open(path).verify(progress=False)
    assert bool(refused) == bool(problems), (refused[:1], problems)
    for text in [*refused, *problems]:
        assert "expected one, or a multiple of 65536" in text
    short = any(name in found and found[name][1] * size < 1 << 16 for name, size in (("X/indices", 2), ("X/data", 4)))
    assert bool(problems) == (profile == "raw" and short)
    if not problems:
        shard = damage.choice(sorted(file for file in path.glob("segments/**/c/**/*") if file.is_file()))
        payload = bytearray(shard.read_bytes())
        payload[damage.randrange(len(payload))] ^= 1 << damage.randrange(8)
        shard.write_bytes(payload)
        read(path)  # all that is not refused is right
        assert f"{shard.relative_to(path).as_posix()}, bytes" in "".join(ss.open(path).verify(progress=False))
