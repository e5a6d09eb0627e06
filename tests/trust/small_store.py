"""A small store with all that a store can have, the same bytes whenever and wherever it is built.

Three segments of different stored dtypes (small whole numbers, fractions, one constant), feature numbers of 16, 32 and
64 bits, columns of every kind with more than one chunk, shuffled rows, several versions, a page of segment lines. All
objects together have exactly `BYTES` bytes: free JSON of the newest version fills what is left.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.sparse as sp

import sparsestore as ss
from sparsestore.checksum import crc32c
from sparsestore.documents import seal
from sparsestore.format import Manifest, manifest_key, root_document
from sparsestore.manifest import read_manifest, segment_lines
from sparsestore.storage import LocalStorage

BYTES = 66 << 10
OBJECTS = 174
PROFILES = ("raw", "compact")
ROWS = (20, 17, 12)
"""Of the segments."""
ALL, FIRST = 6, 1
"""The newest version, which has all segments, and the one that has the first alone."""
ALONE = (1, 4, 5)
"""Versions that have one segment each."""
FEATURES = 3_000_000_000

Columns = dict[str, Any]


@dataclass(frozen=True, eq=False)
class SmallStore:
    """A store that was built, and what was put into it.

    Attributes
    ----------
    root : Path
    objects : dict of str to bytes
        Every object by key, keys sorted.
    rows : list of csr_array
        Of each segment, in the store's order.
    columns : list of dict
        The same for columns, `row_id` among them.
    """

    root: Path
    objects: dict[str, bytes]
    rows: list[sp.csr_array]
    columns: list[Columns]

    @property
    def keys(self) -> list[str]:
        """Of all objects, sorted."""
        return list(self.objects)

    def find(self, at: int) -> tuple[str, int]:
        """The object that has byte number `at` of all objects laid end to end, and which of its bytes that is."""
        for key, end in zip(self.objects, accumulate(map(len, self.objects.values())), strict=True):
            if at < end:
                return key, at - end + len(self.objects[key])
        raise IndexError(at)

    def segment_of(self, key: str) -> int | None:
        """Number of the segment that an object belongs to."""
        parts = key.split("/")
        return None if parts[0] != "segments" else self.segments.index(parts[1])

    @property
    def segments(self) -> list[str]:
        """Names of the segments' folders, in the order of their rows."""
        return [line.id for line in _lines(self.root)]


def _lines(root: Path) -> list[Any]:
    storage = LocalStorage(root)
    return segment_lines(storage, read_manifest(storage, 3))


def place(folder: Path) -> Path:
    """A folder in memory where the machine has one: files there are written a million times."""
    memory = Path("/dev/shm")
    return memory / f"trust-{os.getpid()}-{folder.name}" if os.access(memory, os.W_OK) else folder


@contextlib.contextmanager
def _the_same_each_time(seed: int, id: str) -> Iterator[None]:
    """Names, times and orders that are drawn or looked up elsewhere are always the same ones here; nothing is synced.

    The store has the id that is given, in the place of one that is drawn.

    A page holds two segment lines, and a chunk of a column few rows.
    """
    draw = random.Random(seed)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls(2026, 1, 1, tzinfo=tz)

    with (
        mock.patch("uuid.uuid4", side_effect=lambda: uuid.UUID(int=draw.getrandbits(128), version=4)),
        mock.patch("sparsestore.writer.datetime", Clock),
        mock.patch("sparsestore.writer.root_document", lambda _: root_document(id)),
        mock.patch("sparsestore.writer.INLINE_SEGMENTS", 2),
        mock.patch("sparsestore.segment_writer.COLUMN_CHUNK", 16),
        mock.patch("sparsestore.segment_writer.PACKED_CHUNK", 32),
        mock.patch("os.fsync"),
    ):
        yield


def _written(seed: int) -> tuple[list[sp.csr_array], list[Columns]]:
    """Rows and columns of the three segments, as they are put in."""
    rng = np.random.default_rng(seed)
    matrices, columns = [], []
    kinds = ("whole", "fractions", "constant")
    for n, width, kind in zip(ROWS, (50, 70_000, FEATURES), kinds, strict=True):
        counts = rng.integers(0, 5, n)
        counts[1], counts[n - 1] = 4, 3
        near = min(width, 1 << 20)  # sets of numbers are drawn without room for all that there are
        picked = [np.sort(rng.choice(near, k, replace=False)) + (width - near) * (i % 2) for i, k in enumerate(counts)]
        total = int(counts.sum())
        values = {
            "whole": rng.integers(1, 10, total),
            "fractions": rng.random(total),
            "constant": np.full(total, 0.5),
        }[kind].astype(np.float32)
        indptr = np.append(0, np.cumsum(counts))
        matrices.append(sp.csr_array((values, np.concatenate(picked), indptr), shape=(n, width)))
        columns.append(
            {
                "y": rng.integers(0, 3, n),
                "name": np.array(["a", "bé", "", "long " * 3], object)[rng.integers(0, 4, n)],
                "price": np.where(rng.random(n) < 0.2, np.nan, rng.random(n)),
                "age": np.ma.MaskedArray(rng.integers(0, 99, n), rng.random(n) < 0.4),
                "two": rng.random((n, 2)).astype(np.float32),
            }
        )
    return matrices, columns


def build(profile: str, root: Path, *, seed: int = 0) -> SmallStore:
    """Build the store in a folder that is not there; another seed gives other values in objects of the same names."""
    matrices, columns = _written(seed)
    with _the_same_each_time(7, f"{seed:032x}"):
        store = ss.convert(matrices[0], root, columns=columns[0], shuffle=True, seed=3, profile=profile, progress=False)
        for matrix, values in zip(matrices[1:], columns[1:], strict=True):
            store = store.append(matrix, grow_features=True, **values)
    storage = LocalStorage(root)
    last = read_manifest(storage, 3)
    lines = segment_lines(storage, last)
    for version, line in zip(ALONE[1:], lines[1:], strict=True):
        alone = replace(last, version=version, pages=(), segments=(line,), rows=line.rows, nnz=line.nnz)
        _publish(root, alone)
    left = BYTES - sum(map(len, objects(root).values())) - len(_payload(replace(last, version=ALL, attrs={"fill": ""})))
    if left < 0:
        raise ValueError(f"the small store has {-left} bytes more than {BYTES}: give it fewer rows")
    _publish(root, replace(last, version=ALL, attrs={"fill": "x" * left}))
    # the order of the shuffled rows is the store's own; tests hold it to be one
    order = np.asarray(ss.open(root, version=FIRST).column("row_id")[:])
    matrices[0] = matrices[0][order]
    columns[0] = {name: values[order] for name, values in columns[0].items()} | {"row_id": order}
    start = ROWS[0]
    for n, values in zip(ROWS[1:], columns[1:], strict=True):
        values["row_id"] = np.arange(start, start + n)
        start += n
    return SmallStore(root, objects(root), matrices, columns)


def objects(root: Path) -> dict[str, bytes]:
    """Every object of a store by key; what is no part of the data is left out."""
    found = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {key: path.read_bytes() for key, path in sorted(found.items()) if not key.startswith("writers")}


def _payload(manifest: Manifest) -> bytes:
    return seal(manifest.to_document(), crc32c)


def _publish(root: Path, manifest: Manifest) -> None:
    (root / manifest_key(manifest.version)).write_bytes(_payload(manifest))
