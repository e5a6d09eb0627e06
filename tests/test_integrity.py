"""verify lists every problem; reading a damaged store is an error that says where, never a wrong value."""

import ctypes
import errno
import functools
import json
import os
import random
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import sparsestore as ss
from sparsestore import inspection, segment_writer, writer
from sparsestore.arrays import ArrayWriter
from sparsestore.checksum import crc32c
from sparsestore.documents import seal
from sparsestore.errors import FormatError, MissingStoreError
from sparsestore.integrity import Verdict, examine
from sparsestore.kernels import survey
from sparsestore.manifest import read_manifest
from sparsestore.statistics import LabelAccumulator
from sparsestore.storage import LocalStorage, open_storage
from sparsestore.zarr_format import Codec


@pytest.fixture(params=["raw", "compact"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = sp.random_array((500, 60), density=0.2, rng=rng, format="csr", dtype=np.float32)
    ss.convert(x, tmp_path / "s.zarr", columns={"y": rng.integers(0, 2, 500)}, profile=request.param)
    ss.open(tmp_path / "s.zarr").append(x[:40], y=np.ones(40, int))
    return tmp_path / "s.zarr"


def segment(path: Path, rows: int) -> Path:
    for folder in (path / "segments").iterdir():
        if json.loads((folder / "segment.json").read_text())["rows"] == rows:
            return folder
    raise LookupError(rows)


def flip(file: Path, at: int) -> None:
    payload = bytearray(file.read_bytes())
    payload[at] ^= 16
    file.write_bytes(payload)


@pytest.mark.parametrize("profile", ["raw", "compact"])
@pytest.mark.parametrize("rows", [1, 255, 256, 257, 511, 512, 513, 4096, 65_535, 65_536, 65_537, 131_072])
def test_a_sound_store_of_any_length_has_no_problems(rows: int, profile: str, tmp_path: Path) -> None:
    """Blocks of rows, of chunks and of statistics end in many places, some of them together with the rows."""
    indptr = np.arange(rows + 1, dtype=np.int64) * 2
    x = sp.csr_array((np.ones(2 * rows, np.float32), np.arange(2 * rows, dtype=np.int32) % 4, indptr), (rows, 4))
    store = ss.convert(x, tmp_path / "a.zarr", columns={"y": np.arange(rows) % 2}, profile=profile)
    assert store.verify() == []


def test_a_sound_store_has_no_problems(path: Path) -> None:
    assert ss.open(path).verify() == []
    assert ss.open(path).verify(deep=False) == []


def test_a_flipped_bit_is_an_error_that_says_where(path: Path) -> None:
    flip(segment(path, 500) / "X/indices/c/0", 40)
    with pytest.raises(ss.CorruptStoreError, match=r"X/indices/c/0, bytes 0 to \d+ \(version 2, rows 0 to 500\)"):
        ss.open(path)[3]
    assert ss.open(path)[500:].shape == (40, 60)  # the other segment is sound
    (problem,) = ss.open(path).verify()
    assert "X/indices/c/0" in problem
    assert "rows 0 to 500" in problem
    assert ss.open(path).verify(deep=False) == []


def test_every_problem_is_listed(path: Path) -> None:
    folder = segment(path, 500)
    flip(folder / "X/indices/c/0", 3)
    flip(folder / "columns/y/c/0", 3)
    (folder / "stats/nnz/c/0").unlink()
    with (segment(path, 40) / "X/data/c/0").open("ab") as file:
        file.write(b"x")
    problems = ss.open(path).verify()
    assert len(problems) == 4
    assert [p for p in problems if "(rows 500 to 540): it has" in p and "X/data/c/0, bytes 0 to" in p]
    assert [p for p in problems if "(rows 0 to 500): the object is missing" in p and "stats/nnz/c/0" in p]


@pytest.mark.parametrize("kind", ["missing", "short", "folder", "link", "copied"])
def test_an_object_that_is_not_what_was_written_is_an_error(path: Path, kind: str) -> None:
    file = segment(path, 500) / "X/data/c/0"
    other = segment(path, 40) / "X/data/c/0"
    payload = file.read_bytes()
    file.unlink()
    if kind == "short":
        file.write_bytes(payload[:-1])
    elif kind == "folder":
        file.mkdir()
    elif kind == "link":
        shutil.copy(other, path / "elsewhere")
        file.symlink_to(path / "elsewhere")
    elif kind == "copied":
        shutil.copy(other, file)
    with pytest.raises(ss.CorruptStoreError, match=r"X/data/c/0"):
        ss.open(path)[0]
    assert ss.open(path).verify(deep=False) != []


def test_a_flipped_bit_in_a_manifest_names_the_last_good_version(path: Path) -> None:
    flip(path / "versions/00000002.json", 60)
    with pytest.raises(ss.CorruptStoreError, match=r"00000002\.json.*last version that can be read is 1: open it with"):
        ss.open(path)
    assert ss.open(path, version=1).shape == (500, 60)


@pytest.mark.parametrize("name", ["zarr.json", "X/zarr.json", "X/indices/zarr.json", "segment.json"])
def test_edited_metadata_is_caught(path: Path, name: str) -> None:
    file = segment(path, 500) / name
    file.write_text(file.read_text().replace("500", "400", 1) if "500" in file.read_text() else file.read_text() + " ")
    assert ss.open(path).verify() != []


def test_a_store_that_went_away_says_which_rows_are_lost(path: Path) -> None:
    store = ss.open(path)
    shutil.rmtree(path)
    with pytest.raises(
        ss.CorruptStoreError, match=r"segment\.json, bytes 0 to 0 \(rows 0 to 500\): the object is missing"
    ):
        store[:5]


def test_unchecked_reads_are_a_choice(path: Path) -> None:
    flip(segment(path, 500) / "columns/y/c/0", -30)
    for check in ("first", "always"):
        with pytest.raises(ss.CorruptStoreError, match="rows 0 to 500"):
            ss.open(path, check=check).column("y")[:]


# ---------------------------------------------------------------------------------- every kind of damage, once each

N_ROWS = 40_000


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of several shards, and units of few pieces, in stores of a megabyte."""
    monkeypatch.setattr(segment_writer, "ArrayWriter", functools.partial(ArrayWriter, chunk=1 << 14, shard=1 << 15))
    monkeypatch.setattr(segment_writer, "PACKED_CHUNK", 1 << 12)
    monkeypatch.setattr(segment_writer, "COLUMN_CHUNK", 1 << 10)
    monkeypatch.setattr(inspection, "_PIECES_BYTES", 3 << 14)
    monkeypatch.setattr(inspection, "_CHUNKS_BYTES", 1 << 15)


def rows_of(n_features: int = 60) -> sp.csr_array:
    """Five entries in most rows."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, N_ROWS)
    lengths[:2000] = 0
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    steps = rng.integers(1, n_features // 9, int(indptr[-1]))
    ends = np.cumsum(steps)
    indices = ends - np.repeat(np.append(0, ends)[indptr[:-1]], lengths) - 1
    return sp.csr_array((rng.random(len(indices), np.float32), indices, indptr), shape=(N_ROWS, n_features))


def columns(n: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "y": rng.integers(0, 2, n),
        "b": rng.random(n) < 0.5,
        "w": rng.random((n, 3), np.float32),
        "s": np.array([f"k{i % 7}" for i in range(n)], object),
    }


@pytest.fixture
def large(request: pytest.FixtureRequest, path: Path, small_shards: None) -> Path:
    """A store of two segments, of 40,000 rows and of 500, with columns of every kind."""
    store = path.parent / "large.zarr"
    profile = "compact" if "compact" in request.node.name else "raw"
    ss.convert(rows_of(), store, columns=columns(N_ROWS), profile=profile)
    ss.open(store).append(rows_of()[2000:2500], **columns(500))
    return store


def found(path: Path, *, deep: bool = True, **options: Any) -> list[str]:
    return examine(open_storage(path), deep=deep, **options).problems


def span(problem: str) -> tuple[int, int]:
    """Byte range that a problem names."""
    match = re.search(r", bytes (\d+) to (\d+)", problem)
    assert match, problem
    return int(match[1]), int(match[2])


def test_any_flipped_bit_is_one_problem_as_narrow_as_its_checksum(large: Path) -> None:
    assert found(large) == []
    rng = random.Random(0)
    names = (".json", "indptr", "indices", "data", "columns/", "stats/", "checksums/")
    files = [file for file in sorted((large / "segments").rglob("*")) if file.is_file()]
    for name in names:
        for file in rng.sample([file for file in files if name in str(file)], 3):
            sound = file.read_bytes()
            at = rng.randrange(len(sound))
            payload = bytearray(sound)
            payload[at] ^= 1 << rng.randrange(8)
            file.write_bytes(payload)
            (problem,) = found(large, n_threads=rng.choice([1, 3]))
            file.write_bytes(sound)
            key = file.relative_to(large).as_posix()
            assert f"large.zarr: version 2, {key}, bytes" in problem
            start, stop = span(problem)
            assert start <= at < stop or file.name == "segment.json"
            if key.startswith(("X/", "columns/")) or "/X/indices/c/" in key:
                assert stop - start <= 1 << 14 or start > 0


def damages(path: Path) -> dict[str, tuple[Callable[[], Any], str, bool]]:
    """Ways to damage a store: what does it, the problem that it is, and whether it takes a look at every byte."""
    one, other = segment(path, N_ROWS), segment(path, 500)

    def short(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-1])

    def swap(a: Path, b: Path) -> None:
        a.rename(a.with_name("aside"))
        b.rename(a)
        a.with_name("aside").rename(b)

    def zeros(file: Path, start: int, n: int) -> None:
        payload = bytearray(file.read_bytes())
        payload[start : start + n] = bytes(n)
        file.write_bytes(payload)

    def instead(file: Path, make: Callable[[Path], Any]) -> None:
        file.unlink()
        make(file)

    return {
        "missing": (
            (one / "X/indices/c/2").unlink,
            r"X/indices/c/2, .*rows \d+ to \d+\): the object is missing",
            False,
        ),
        "short": (lambda: short(one / "columns/y/c/0"), r"columns/y/c/0, .*: it has \d+ bytes, expected", False),
        "empty": (lambda: (one / "columns/b/c/0").write_bytes(b""), r"columns/b/c/0, .*: it has 0 bytes", False),
        "folder": (lambda: instead(one / "columns/s/c/0", Path.mkdir), r"columns/s/c/0, .* is no plain file", False),
        "link": (
            lambda: instead(one / "columns/w/c/0/0", lambda file: file.symlink_to(one / "zarr.json")),
            r"columns/w/c/0/0, .* is no plain file",
            False,
        ),
        "pipe": (lambda: instead(other / "columns/y/c/0", os.mkfifo), r"columns/y/c/0, .* is no plain file", False),
        "description": ((one / "stats/nnz/zarr.json").unlink, r"stats/nnz/zarr.json, .*the object is missing", False),
        "piece": (lambda: flip(one / "X/data/c/0", 100), r"X/data/c/0, .*the bytes do not match their crc32c$", True),
        "zeroed": (lambda: zeros(one / "X/data/c/1", 40, 9), r"X/data/c/1, .*the bytes do not match", True),
        "index": (lambda: flip(one / "X/data/c/2", -3), r"X/data/c/2, .*index does not match its crc32c", True),
        "offsets": (lambda: flip(one / "X/indptr/c/0", 5), r"X/indptr/c/0, .*the bytes do not match", True),
        "checksums": (
            lambda: flip(one / "checksums/X/indices/c/0", 2),
            r"checksums/X/indices/c/0, .*crc32c of the object",
            True,
        ),
        "swapped": (
            lambda: swap(other / "columns/b/c/0", other / "stats/nnz/c/0"),
            r"(columns/b|stats/nnz)/c/0, .*rows 40000 to 40500\): it has \d+ bytes",
            False,
        ),
    }


def test_every_damage_is_listed_and_each_once(large: Path) -> None:
    known = damages(large)
    for damage, _, _ in known.values():
        damage()
    for deep in (False, True):
        problems = found(large, deep=deep)
        for name, (_, pattern, needs_deep) in known.items():
            matching = [problem for problem in problems if re.search(pattern, problem)]
            assert len(matching) == (0 if needs_deep and not deep else 2 if name == "swapped" else 1), (name, problems)
        assert len(problems) == 1 + sum(deep or not needs_deep for _, _, needs_deep in known.values()), problems
    assert found(large, n_threads=1) == found(large, n_threads=5)


@pytest.mark.parametrize("name", ["missing", "piece", "index", "offsets", "checksums"])
def test_a_damage_is_the_only_problem(large: Path, name: str) -> None:
    damage, pattern, _ = damages(large)[name]
    damage()
    (problem,) = found(large)
    assert re.search(pattern, problem)


def test_two_damaged_pieces_are_two_problems_that_name_their_rows(large: Path) -> None:
    file = segment(large, N_ROWS) / "X/indices/c/1"
    flip(file, 20)
    flip(file, (1 << 14) + 20)
    problems = found(large)
    if "raw" not in file.as_posix() and len(problems) == 2:
        ends = np.cumsum(np.diff(rows_of().indptr))
        for problem in problems:
            start, stop = span(problem)
            match = re.search(r"\(rows (\d+) to (\d+)\)", problem)
            assert match
            if stop - start == 1 << 14:  # uncompressed
                first = (1 << 15) + start // 2
                assert int(match[1]) == int(np.searchsorted(ends, first, side="right"))
                assert int(match[2]) == int(np.searchsorted(ends, first + (1 << 13) - 1, side="right")) + 1
    assert len(problems) == 2


def test_sectors_that_can_not_be_read_are_listed_beside_other_damage(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LocalStorage.read_into
    refused = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)(
        lambda *_: -1
    )

    def read_into(self: LocalStorage, key: str, parts: Any, *, direct: bool = False) -> None:
        if key.endswith("X/data/c/0") and parts[0][0] > 0:
            raise OSError(errno.EIO, "Input/output error")
        plain(self, key, parts, direct=direct)

    monkeypatch.setattr(survey, "_pread", lambda: ctypes.cast(refused, ctypes.c_void_p).value)
    monkeypatch.setattr(LocalStorage, "read_into", read_into)
    flip(segment(large, N_ROWS) / "X/data/c/0", 20)
    problems = found(large)
    assert [p for p in problems if "X/data/c/0, bytes 0 to" in p and "the bytes do not match their crc32c" in p]
    unread = [p for p in problems if "it can not be read: Input/output error" in p]
    assert unread
    assert len(problems) == 1 + len(unread)
    assert min(span(problem)[0] for problem in unread) > 0


def test_nothing_of_a_sound_array_is_read_twice(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if survey.swept(0, 0, 0, np.empty(0, np.uint8), "u4", 0, np.empty(0, np.uint32), 0) is None:
        pytest.skip("this machine has no instruction for crc32c")
    looked = []
    plain = inspection.ShardCheck._look

    def look(self: inspection.ShardCheck, unit: Any, rooms: Any) -> Any:
        looked.append((self.array.path, self.array.raw))
        return plain(self, unit, rooms)

    monkeypatch.setattr(inspection.ShardCheck, "_look", look)
    assert found(large) == []
    assert looked
    assert not [path for path, raw in looked if raw]
    flip(segment(large, N_ROWS) / "X/data/c/0", 20)
    assert len(found(large)) == 1
    assert [path for path, raw in looked if raw] == (
        ["X/data"] if read_manifest(LocalStorage(large)).profile == "raw" else []
    )


def test_what_says_nothing_of_the_store_is_an_error(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_into(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(LocalStorage, "read_into", read_into)
    with pytest.raises(OSError, match="Too many open files"):
        found(large)


# ------------------------------------------------------------------------ wrong values with right checksums


def written_by(
    change: dict[str, Callable[[Any], Any]], path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    """A store by a writer that changes the values of some arrays on their way, and checks nothing."""
    plain = ArrayWriter.append

    def append(self: ArrayWriter, values: Any) -> None:
        for name, made in change.items():
            if self.prefix.endswith(name) and "checksums" not in self.prefix and len(values) > 1000:
                values = made(np.array(values))
        plain(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayWriter, "append", append)
        ss.convert(rows_of(options.pop("n_features", 60)), path, columns=columns(N_ROWS), **options)


def putting(at: int, value: Any) -> Callable[[Any], Any]:
    def made(values: Any) -> Any:
        values[at] = value
        return values

    return made


def an_entry(first: int = 0) -> int:
    """An entry from `first` on that does not begin a row."""
    starts = set(rows_of().indptr.tolist())
    return next(at for at in range(first, 10**6) if at not in starts)


WRONG = {
    "feature-too-large": ({"X/indices": putting(70_001, 60)}, r"feature number 60, expected 0 to 59"),
    "feature-negative": ({"X/indices": putting(70_001, -7)}, r"feature number -7, expected 0 to 99999"),
    "feature-twice": (
        {"X/indices": lambda values: putting(an_entry(70_000), values[an_entry(70_000) - 1])(values)},
        r"feature number (\d+) follows \1 in a row, expected strictly ascending",
    ),
    "first-of-a-shard": (
        {"X/indices": lambda values: putting((1 << 15) - 1, 59)(values)},
        r"feature number \d+ follows 59 in a row",
    ),
    "offset-descends": ({"X/indptr": putting(20_000, 5)}, r"offset 5 follows \d+, expected no less"),
    "offsets-end": (
        {"X/indptr": putting(-1, 1 << 40)},
        r"offset 1099511627776 follows \d+, expected no less and at most \d+",
    ),
    "counts": ({}, r"stats/nnz/c/0, .*rows from 0 of the segment have 0 entries, it says 1"),
    "row-number-negative": (
        {"columns/row_id": putting(9_999, -1)},
        r"columns/row_id/c/0, .*row number -1, expected 0 to 9223372036854775807",
    ),
    "bool": ({"columns/b": lambda values: putting(99, 2)(values.view(np.uint8)).view(bool)}, r"neither 0 nor 1"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("profile", ["raw", "compact"])
def test_what_a_wrong_writer_wrote_is_a_problem(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch, name: str, profile: str
) -> None:
    change, pattern = WRONG[name]
    options: dict[str, Any] = {"n_features": 100_000} if name == "feature-negative" else {}
    if name == "row-number-negative":
        options = {"shuffle": True, "seed": 0}
    if name == "counts":
        monkeypatch.setattr(segment_writer.RowCounts, "finish", lambda _: np.ones(157, np.uint32))
    written_by(change, tmp_path / "s.zarr", monkeypatch, profile=profile, **options)
    problems = found(tmp_path / "s.zarr")
    assert len(problems) == 1, problems
    assert re.search(pattern, problems[0])
    assert found(tmp_path / "s.zarr", n_threads=4) == problems


@pytest.mark.parametrize("row", [3, 9_999, 39_998])
def test_a_wrong_bool_among_several_a_row_is_a_problem_of_its_row(tmp_path: Path, small_shards: None, row: int) -> None:
    flags = np.zeros((N_ROWS, 3), bool)
    flags.view(np.uint8)[row, 1] = 2
    ss.convert(rows_of(), tmp_path / "s.zarr", columns={"flags": flags})
    (problem,) = found(tmp_path / "s.zarr")
    assert f"(rows {row} to {row + 1}): a byte that is neither 0 nor 1 in a column of bool" in problem


OTHER_LABELS = {
    "texts": (np.array(list("abca"), object), "label statistics have 0 numbers a row, expected 1"),
    "several": (np.eye(4)[:, :3], "label statistics have 3 numbers a row, expected 1"),
    "rows": (np.arange(5), "label statistics are of 5 rows, expected 4"),
}


@pytest.mark.parametrize("name", OTHER_LABELS)
def test_statistics_of_other_labels_are_a_problem_and_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    labels, reason = OTHER_LABELS[name]
    statistics = LabelAccumulator("string" if name == "texts" else labels.dtype, labels.shape[1:])
    statistics.update(labels)
    ss.convert(np.eye(4), tmp_path / "s.zarr", columns={"y": np.arange(4)})
    with monkeypatch.context() as patch:
        patch.setattr(LabelAccumulator, "finish", lambda _, finish=statistics.finish: finish())
        ss.open(tmp_path / "s.zarr").append(np.eye(4), y=np.arange(4))
    store = ss.open(tmp_path / "s.zarr")
    (problem,) = store.verify()
    assert "stats/labels/y/c/0/0" in problem
    assert f"(rows 4 to 8): it can not be read: {reason}" in problem
    with pytest.raises(FormatError, match=reason):
        store.loader(2, shuffle=True)


def test_statistics_of_another_dtype_are_a_problem_and_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writer(storage: LocalStorage, prefix: str, dtype: str, *arguments: Any, **options: Any) -> ArrayWriter:
        return ArrayWriter(storage, prefix, "float32" if "labels" in prefix else dtype, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(segment_writer, "ArrayWriter", writer)
        ss.convert(np.eye(4), tmp_path / "s.zarr", columns={"y": np.arange(4)})
    store = ss.open(tmp_path / "s.zarr")
    (problem,) = store.verify()
    assert "stats/labels/y/zarr.json" in problem
    assert "the dtype is float32, expected float64" in problem
    with pytest.raises(FormatError, match=r"is float32 \(13, \d+\), expected float64"):
        store.loader(2, shuffle=True)


OTHER_CODECS = {
    "columns/y": ("raw", Codec(), "the codec is none, expected compressed"),
    "columns/t": ("compact", Codec(), "the codec is none, expected compressed"),
    "columns/age.mask": ("raw", Codec(), "the codec is none, expected compressed"),
    "X/indptr": ("raw", Codec(), "the codec is none, expected compressed"),
    "X/indices": ("raw", Codec("blosc"), "the codec is blosc, expected none"),
    "X/data": ("compact", Codec(), "the codec is none, expected compressed"),
}


@pytest.mark.parametrize("name", OTHER_CODECS)
def test_an_array_that_is_compressed_where_it_must_not_be_or_the_reverse_is_a_problem_and_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    profile, codec, reason = OTHER_CODECS[name]

    def writer(storage: LocalStorage, prefix: str, *arguments: Any, **options: Any) -> ArrayWriter:
        other = {"codec": codec} if prefix.endswith(name) and "checksums" not in prefix else {}
        return ArrayWriter(storage, prefix, *arguments, **options | other)

    values = {"y": np.arange(4), "t": list("abcd"), "age": np.ma.MaskedArray(np.arange(4), [True, False] * 2)}
    with monkeypatch.context() as patch:
        patch.setattr(segment_writer, "ArrayWriter", writer)
        ss.convert(np.diag([1.5, 2, 3, 4]), tmp_path / "s.zarr", columns=values, profile=profile)
    store = ss.open(tmp_path / "s.zarr")
    (problem,) = store.verify()
    assert f"{name}/zarr.json" in problem
    assert reason in problem
    with pytest.raises(ss.SparsestoreError, match=f"{name}/zarr.json.*compressed"):
        _ = [store[:], *(store.column(column)[:] for column in values)]


class Gapped(ArrayWriter):
    """A writer as the format allows, which leaves gaps between compressed chunks, and before the index."""

    def _write_chunks(self, values: Any) -> None:
        for at in range(0, len(values), self._spec.chunk):
            super()._write_chunks(values[at : at + self._spec.chunk])
            self._leave()

    def _close_shard(self) -> None:
        self._leave()
        super()._close_shard()

    def _leave(self) -> None:
        if self._file is not None and self._spec.codec.name != "none":
            self._file.write(b"GAP")


def test_gaps_between_compressed_chunks_are_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(segment_writer, "ArrayWriter", functools.partial(Gapped, chunk=1 << 14, shard=1 << 15))
        ss.convert(rows_of(), path, columns=columns(N_ROWS), profile="compact")
    for mmap in (True, False):
        store = ss.open(path, mmap=mmap)
        assert (store[:] != rows_of()).nnz == 0
        np.testing.assert_array_equal(store.column("y")[:], columns(N_ROWS)["y"])
    assert found(path) == []
    file = segment(path, N_ROWS) / "columns/y/c/0"
    payload = file.read_bytes()
    flip(file, 100)
    (problem,) = found(path)
    assert re.search(r"columns/y/c/0, bytes 0 to \d+ \(rows 0 to 4096\): the bytes do not match their crc32c", problem)
    file.write_bytes(payload.replace(b"GAP", b"gap"))
    (problem,) = found(path)
    assert "(rows 0 to 32768): the bytes do not match the crc32c of the object" in problem
    assert "though each chunk matches its own" in problem
    assert len(store.column("y")[:]) == N_ROWS


@pytest.mark.parametrize("name", ["X/indices", "X/data"])
@pytest.mark.parametrize("shard", [1024, 4096])
def test_shards_that_can_not_be_mapped_end_to_end_are_a_problem_and_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shard: int
) -> None:
    def writer(storage: LocalStorage, prefix: str, *arguments: Any, **options: Any) -> ArrayWriter:
        other = {"chunk": 256, "shard": shard} if prefix.endswith(name) and "checksums" not in prefix else {}
        return ArrayWriter(storage, prefix, *arguments, **options | other)

    with monkeypatch.context() as patch:
        patch.setattr(segment_writer, "ArrayWriter", writer)
        ss.convert(np.arange(1.5, 5001).reshape(50, 100), tmp_path / "s.zarr")
    store = ss.open(tmp_path / "s.zarr")
    (problem,) = store.verify()
    assert f"{name}/zarr.json" in problem
    assert "bytes of chunks each, expected one, or a multiple of 65536" in problem
    for mmap in (True, False):
        with pytest.raises(ss.CorruptStoreError, match=f"{name}/zarr.json.* expected one, or a multiple of 65536"):
            ss.open(tmp_path / "s.zarr", mmap=mmap)[:]


def test_a_mask_of_several_values_a_row_is_a_problem_and_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, write = np.ones((4, 2)), segment_writer.SegmentWriter.write
    with monkeypatch.context() as patch:
        more = {"two.mask": np.zeros(4, bool)}
        patch.setattr(segment_writer.SegmentWriter, "write", lambda self, rows, found: write(self, rows, found | more))
        ss.convert(np.eye(4), tmp_path / "s.zarr", columns={"two": two})
    store = ss.open(tmp_path / "s.zarr")
    (problem,) = store.verify()
    assert "columns/two.mask/zarr.json" in problem
    assert "there is no mask of a column with 2 values a row" in problem
    with pytest.raises(FormatError, match="the mask of column 'two' is bool"):
        store.column("two")[:]


@pytest.mark.parametrize("cname", ["lz4", "zstd"])
def test_text_that_was_compressed_as_numbers_are_is_a_problem_and_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cname: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(segment_writer, "codec_for", lambda *_: Codec("blosc", cname))
        with ss.create(tmp_path / "s.zarr", n_features=4, columns={"t": "string"}, profile="compact") as w:
            w.append(np.eye(4), t=np.array(list("abcd")))
    store = ss.open(tmp_path / "s.zarr")
    (problem,) = store.verify()
    assert "columns/t/zarr.json" in problem
    assert "expected 'vlen-utf8', then one of: nothing, 'zstd'" in problem
    with pytest.raises(FormatError, match="expected 'vlen-utf8', then one of: nothing, 'zstd'"):
        store.column("t")[:]
    assert (store[:] != sp.eye_array(4)).nnz == 0


def test_longest_row_and_nnz_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = segment_writer.RowCounts.update

    def more(self: Any, lengths: Any) -> None:
        update(self, lengths)
        self.longest += 1

    monkeypatch.setattr(segment_writer.RowCounts, "update", more)
    ss.convert(np.eye(4), tmp_path / "s.zarr")
    (problem,) = found(tmp_path / "s.zarr")
    assert "segment.json" in problem
    assert "longest_row is 2, the longest row has 1 entries" in problem


def test_a_segment_is_no_wider_than_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = segment_writer.SegmentWriter.finish
    with monkeypatch.context() as patch:
        patch.setattr(segment_writer.SegmentWriter, "finish", lambda self, width, start: finish(self, width + 1, start))
        ss.convert(np.eye(4), tmp_path / "s.zarr")
    (problem,) = found(tmp_path / "s.zarr", deep=False)
    assert "n_features is 5, the store has 4" in problem


# ------------------------------------------------------------------------------------------------ versions


def test_a_version_that_is_missing_between_others_is_a_problem(path: Path) -> None:
    for _ in range(2):
        ss.open(path).append(np.ones((1, 60)), y=[1])
    (path / "versions/00000002.json").unlink()
    for deep in (False, True):
        (problem,) = found(path, deep=deep)
        assert "versions/00000002.json" in problem
        assert "the manifest is missing, and those of versions 1 and 3 are there" in problem
    (path / "versions/00000001.json").unlink()  # versions are removed from the oldest on: that is what gc leaves
    assert found(path) == []


def test_a_manifest_that_went_away_is_a_problem_of_an_open_store(path: Path) -> None:
    store = ss.open(path)
    (path / "versions/00000002.json").unlink()
    (problem,) = store.verify(progress=False)
    assert "versions/00000002.json" in problem
    assert "the manifest is missing" in problem


def test_damage_beside_a_damaged_root_is_listed_too(path: Path) -> None:
    (path / "zarr.json").unlink()
    (segment(path, 40) / "X/data/c/0").unlink()
    problems = found(path, deep=False)
    assert len(problems) == 2
    assert "zarr.json is missing" in problems[0]
    assert "X/data/c/0" in problems[1]


def test_a_damaged_page_hides_its_segments_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "INLINE_SEGMENTS", 2)
    ss.convert(np.eye(3), tmp_path / "s.zarr")
    for _ in range(5):
        ss.open(tmp_path / "s.zarr").append(np.eye(3))
    storage = open_storage(tmp_path / "s.zarr")
    document = json.loads((tmp_path / "s.zarr/versions/00000006.json").read_text())
    assert len(document["pages"]) == 2
    assert found(tmp_path / "s.zarr") == []
    flip(tmp_path / "s.zarr" / document["pages"][0][0], 30)
    last = document["segments"][-1][0]
    (tmp_path / "s.zarr/segments" / last / "X/indices/c/0").unlink()
    with pytest.raises(ss.CorruptStoreError):
        ss.open(tmp_path / "s.zarr")
    verdict = examine(storage, deep=True)
    assert len(verdict.problems) == 2
    assert document["pages"][0][0] in verdict.problems[0]
    assert "X/indices/c/0" in verdict.problems[1]
    assert "rows 15 to 18" in verdict.problems[1]


def test_versions_that_share_segments_are_looked_at_once(path: Path) -> None:
    storage = open_storage(path)
    one = examine(storage, deep=True)
    every = examine(storage, deep=True, all_versions=True)
    assert (one.version, one.versions) == (2, [2])
    assert (every.version, every.versions) == (2, [1, 2])
    assert every.n_bytes == one.n_bytes
    (segment(path, 500) / "X/data/c/0").unlink()
    (problem,) = examine(storage, deep=False, all_versions=True).problems
    assert "version 2" in problem


OTHER_VERSIONS = {
    "columns": (lambda first: first["columns"]["y"].update(dtype="float64"), "the dtype is int64, expected float64"),
    "features": (lambda first: first["shape"].__setitem__(1, 3), "n_features is 4, the store has 3"),
    "names": (lambda first: first["shape"].__setitem__(1, 5), "it has 4 names, expected 5, one a feature"),
    "entries": (
        lambda first: (first.update(nnz=3), first["segments"][0].__setitem__(2, 3)),
        r"its rows and nnz are \(4, 4\), expected \(4, 3\)",
    ),
}


@pytest.mark.parametrize("name", OTHER_VERSIONS)
def test_what_one_version_says_of_what_it_shares_is_a_problem(tmp_path: Path, name: str) -> None:
    change, reason = OTHER_VERSIONS[name]
    names = list("abcd") if name == "names" else None
    ss.convert(np.eye(4), tmp_path / "s.zarr", columns={"y": np.arange(4)}, feature_names=names)
    ss.open(tmp_path / "s.zarr").append(np.eye(4), y=np.arange(4))
    key = tmp_path / "s.zarr/versions/00000001.json"
    first = json.loads(key.read_bytes())
    first.pop("crc32c")
    change(first)
    key.write_bytes(seal(first, crc32c))
    storage = open_storage(tmp_path / "s.zarr")
    (problem,) = examine(storage, deep=True, all_versions=True).problems
    assert "version 1, " in problem
    assert re.search(reason, problem)
    assert examine(storage, 1, deep=True).problems == [problem]
    assert examine(storage, deep=True).problems == []


def test_damaged_names_that_versions_share_are_one_problem(tmp_path: Path) -> None:
    ss.convert(np.eye(4), tmp_path / "s.zarr", feature_names=list("abcd"))
    ss.open(tmp_path / "s.zarr").append(np.eye(4))
    (file,) = tmp_path.glob("s.zarr/features/*/features.json")
    flip(file, 9)
    (problem,) = examine(open_storage(tmp_path / "s.zarr"), deep=True, all_versions=True).problems
    assert "version 2, " in problem


def test_a_store_that_is_not_there_is_an_error(tmp_path: Path, path: Path) -> None:
    with pytest.raises(MissingStoreError):
        examine(open_storage(tmp_path / "none"), deep=False)
    with pytest.raises(MissingStoreError, match="there is no version 7"):
        examine(open_storage(path), 7, deep=False)


# ------------------------------------------------------------------------------------------------ under way


def test_progress_ends_at_the_number_of_bytes(large: Path) -> None:
    seen: list[tuple[int, int | None, str]] = []
    assert ss.open(large).verify(progress=lambda *position: seen.append(position)) == []
    positions = [position for position, _, _ in seen]
    assert positions == sorted(positions)
    assert {(total, unit) for _, total, unit in seen} == {(positions[-1], "bytes")}
    seen.clear()
    assert ss.open(large).verify(deep=False, progress=lambda *position: seen.append(position)) == []
    assert seen == [(1, 2, "segments"), (2, 2, "segments")]


def test_an_interrupt_ends_it_and_its_threads(large: Path) -> None:
    def interrupt(position: int, *_: object) -> None:
        if position > 100_000:
            raise KeyboardInterrupt

    others = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        examine(open_storage(large), deep=True, progress=interrupt, n_threads=4)
    assert threading.active_count() == others


def test_a_verdict_says_how_much_was_looked_at(large: Path) -> None:
    verdict = examine(open_storage(large), deep=True)
    assert isinstance(verdict, Verdict)
    files = [file for file in (large / "segments").rglob("*") if file.is_file()]
    assert verdict.n_bytes == sum(file.stat().st_size for file in files)
    assert verdict.objects == len(files) + 2
