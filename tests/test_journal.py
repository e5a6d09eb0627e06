"""What writers tell others, and going on where a conversion was interrupted."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsestore import maintain, sort, store, writer
from sparsestore import storage as storage_module
from sparsestore.convert import append_source, convert
from sparsestore.documents import dump
from sparsestore.errors import CorruptStoreError, SparsestoreError, StoreExistsError
from sparsestore.journal import ABANDONED_S, Journal, JournalState, all_journals, owner_of
from sparsestore.storage import LocalStorage
from sparsestore.writer import append_to, create

conversion = sys.modules["sparsestore.convert"]  # the package's own name is that of the function
N_ROWS = 6000
SMALL = 24 << 20


def text(folder: Path, n_rows: int = N_ROWS, name: str = "rows.svm", more: str = "") -> Path:
    """A file of which one block of a conversion has some hundred rows."""
    path = folder / name
    lines = [f"{row % 3} {row % 50 + 1}:{row % 7 + 1} {60 + row % 40}:0.5\n" for row in range(n_rows)]
    path.write_text("".join(lines) + more)
    return path


def shuffled_in_little_memory(real: Callable[..., Any], blocks: Any, **options: Any) -> Any:
    return real(blocks, **{**options, "max_bytes": 60_000})


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of some hundred rows."""
    monkeypatch.setattr(writer, "PART_BYTES", 5_000)
    monkeypatch.setattr(writer, "HOLD_BYTES", 1_000)
    monkeypatch.setattr(conversion, "BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(conversion, "WRITER_BYTES", 2_000)
    monkeypatch.setattr(conversion, "shuffled_blocks", partial(shuffled_in_little_memory, sort.shuffled_blocks))


def interrupted(
    monkeypatch: pytest.MonkeyPatch, rows: int, call: Callable[[], Any], error: BaseException | None = None
) -> None:
    """Call, and raise in the writer when it has so many rows."""
    failure = error or KeyboardInterrupt()
    real = writer.Writer.write

    def write(self: writer.Writer, x: Any, columns: Any, **named: Any) -> None:
        if self.n_rows >= rows:
            raise failure
        real(self, x, columns, **named)

    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "write", write)
        with pytest.raises(type(failure)):
            call()


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def same(a: Path, b: Path) -> None:
    """Two stores have equal rows, columns, segments and numbers of rows."""
    with store.open(a) as one, store.open(b) as other:
        assert one.shape == other.shape
        assert (one[:] != other[:]).nnz == 0
        for name in (*one.columns, "row_id"):
            np.testing.assert_array_equal(one.column(name)[:], other.column(name)[:])
        assert one.verify() == []
        lines = [[(line.rows, line.nnz, line.row_id_start) for line in x._reader.lines] for x in (one, other)]
        assert lines[0] == lines[1]
        assert len(lines[0]) > 3


# -------------------------------------------------------------------------------------------------------- journals


def test_a_journal_says_what_was_noted(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "store")
    journal = Journal.start(storage, 7)
    journal.note("segment", "segments/a")
    journal.note("page", "versions/pages/b.json")
    journal.note("job", {"source": "x"})
    journal.note("part", {"rows": 1})
    assert list(all_journals(storage)) == [journal.key]
    assert Journal.adopt(storage, journal.key) is None  # it lives
    journal.release()
    again = Journal.adopt(storage, journal.key)
    assert again is not None
    assert again.state == journal.state
    assert again.state == JournalState(
        7, {"segments/a"}, {"versions/pages/b.json"}, {"source": "x"}, [{"rows": 1}], storage.length(journal.key)
    )
    assert {owner_of(key) for key in (again.key, again.temporary, again.scratch)} == {journal.key}
    again.end()
    assert storage.list("writers") == []
    assert Journal.adopt(storage, journal.key) is None


def test_a_journal_that_can_not_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.mkdir

    def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        if str(path) == "writers":  # as in /proc
            raise FileNotFoundError(2, "No such file or directory", path)
        real(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*store/writers/"):
        Journal.start(LocalStorage(tmp_path / "store"), 0)


@given(cut=st.integers(0, 400), flip=st.none() | st.integers(0, 8 * 400))
@settings(max_examples=60, deadline=None)
def test_a_journal_is_read_up_to_where_it_is_damaged(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int | None
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("journal") / "store")
    journal = Journal.start(storage, 3)
    ends = [journal.state.length]
    for number in range(8):
        journal.note("segment", f"segments/{number}")
        ends.append(journal.state.length)
    journal.release()
    payload = bytearray(storage.read(journal.key)[:cut])
    first_bad = len(payload)
    if flip is not None and flip < 8 * len(payload):
        payload[flip // 8] ^= 1 << flip % 8
        first_bad = flip // 8
    state = JournalState.parse(bytes(payload))
    whole = [end for end in ends if end <= first_bad]
    assert state.length == (whole[-1] if whole else 0)
    assert state.segments == {f"segments/{number}" for number in range(len(whole) - 1)}


def test_a_line_after_one_that_was_cut_short_is_read(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "store")
    journal = Journal.start(storage, 3)
    journal.note("segment", "segments/a")
    journal.release()
    path = storage.path(journal.key)
    path.write_bytes(path.read_bytes() + b"0123abcd " + dump({"kind": "segment", "value": "segments/torn"})[:20])
    again = Journal.adopt(storage, journal.key)
    assert again is not None
    again.note("segment", "segments/b")
    again.release()
    assert JournalState.parse(storage.read(journal.key)).segments == {"segments/a", "segments/b"}


# ------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize(
    "error",
    [
        (KeyboardInterrupt,),
        (OSError, 28, "No space left on device"),
        pytest.param((SystemExit, 143), marks=pytest.mark.slow),
        pytest.param((MemoryError,), marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_conversion_goes_on_from_its_last_whole_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: tuple[Any, ...], shuffle: bool, caplog: Any
) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    options: dict[str, Any] = {"shuffle": shuffle, "max_bytes": SMALL}
    monkeypatch.setattr("secrets.randbits", lambda _: 5)
    convert(source, tmp_path / "whole", **options)
    monkeypatch.setattr("secrets.randbits", lambda _: 6)  # the seed of the journal is to be taken
    failure = error[0](*error[1:])
    first = {**options, "seed": 5 if shuffle else None}
    interrupted(monkeypatch, 3000, lambda: convert(source, path, **first), failure)
    assert "rows in" in caplog.text
    assert "whole parts are kept: run the same again to go on" in caplog.text
    (key,) = all_journals(LocalStorage(path))
    parts = JournalState.parse((path / key).read_bytes()).parts
    done = parts[-1]["rows"]
    assert 0 < done <= 3000 + 400
    assert not [name for name in names(path / "writers") if "." in name]
    appended: list[int] = []
    real = writer.Writer.write
    with monkeypatch.context() as patch:
        patch.setattr(
            writer.Writer, "write", lambda self, x, c, **named: (appended.append(len(x)), real(self, x, c, **named))
        )
        convert(source, path, **options)
    assert sum(appended) == N_ROWS - done  # the others were not written again
    same(path, tmp_path / "whole")
    assert names(path / "writers") == []
    assert len(names(path / "segments")) == len(store.open(path)._reader.lines)


def test_it_goes_on_however_often_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    convert(source, tmp_path / "whole", max_bytes=SMALL)
    for rows in range(800, 5100, 700):
        interrupted(monkeypatch, rows, lambda: convert(source, path, max_bytes=SMALL))
    convert(source, path, max_bytes=SMALL)
    same(path, tmp_path / "whole")


def test_a_killed_conversion_goes_on(tmp_path: Path) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    convert(source, tmp_path / "whole", max_bytes=SMALL)
    program = (
        "import os, sys, importlib\nfrom sparsestore import writer\n"
        "convert = importlib.import_module('sparsestore.convert')\n"
        "writer.PART_BYTES, writer.HOLD_BYTES = 5_000, 1_000\n"
        "convert.BLOCK_BYTES, convert.WRITER_BYTES = 1 << 18, 2_000\nreal = writer.Writer.write\n"
        "def write(self, x, c, **named):\n    self.n_rows < 3000 or os.kill(os.getpid(), 9)\n    real(self, x, c)\n"
        f"writer.Writer.write = write\nconvert.convert(sys.argv[1], sys.argv[2], max_bytes={SMALL})"
    )
    done = subprocess.run([sys.executable, "-c", program, str(source), str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    convert(source, path, max_bytes=SMALL)
    same(path, tmp_path / "whole")
    assert len(names(path / "segments")) == len(store.open(path)._reader.lines)


def test_what_a_killed_writer_needed_for_a_while_is_gone_before_its_conversion_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary name that is taken must not pass for the object that was to get its own name."""
    source, path = text(tmp_path), tmp_path / "a"
    interrupted(monkeypatch, 3000, lambda: convert(source, path, max_bytes=SMALL))
    (key,) = all_journals(LocalStorage(path))
    (path / f"{key}.tmp").write_bytes(b"{")
    (path / f"{key}.scratch").mkdir()
    (path / f"{key}.scratch/0.bin").write_bytes(b"1")
    interrupted(monkeypatch, 4000, lambda: convert(source, path, max_bytes=SMALL), KeyboardInterrupt())
    assert names(path / "writers") == [key.rpartition("/")[2]]
    (path / f"{key}.tmp").write_bytes(b"{")
    convert(source, path, max_bytes=SMALL)
    with store.open(path) as opened:
        assert opened.shape[0] == N_ROWS
        assert opened.verify() == []
    assert names(path / "writers") == []


def test_matrices_in_memory_are_known_again_by_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = sp.random_array((N_ROWS, 30), density=0.1, rng=np.random.default_rng(0), format="csr")
    columns = {"y": np.arange(N_ROWS), "name": np.array([f"row {i}" for i in range(N_ROWS)], object)}
    path = tmp_path / "a"
    monkeypatch.setattr(conversion, "BLOCK_BYTES", 1 << 13)

    def run(x: Any = x, **changes: Any) -> None:
        convert(x, path, columns={**columns, **changes}, max_bytes=SMALL)

    interrupted(monkeypatch, 3000, run)
    other = x.copy()
    other.data[-1] += 1
    for call, what in (
        (lambda: run(other), "source"),
        (lambda: run(y=np.arange(N_ROWS)[::-1]), "columns"),
        (lambda: run(name=columns["name"][::-1]), "columns"),
    ):
        with pytest.raises(StoreExistsError, match=f"it is not this one: its {what} was"):
            call()
    run()
    opened = store.open(path)
    assert (opened[:] != x).nnz == 0
    assert opened.column("name")[:].tolist() == columns["name"].tolist()
    assert opened.verify() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_features": 200}, "its options was"),
        ({"shuffle": True}, "its shuffle seed was None, now"),
        ({"profile": "compact"}, "its profile was raw, now compact"),
        ({"columns": {"z": np.arange(N_ROWS)}}, "its columns was {}, now {'z'"),
    ],
    ids=["options", "shuffle", "profile", "columns"],
)
def test_another_conversion_is_refused_until_what_was_begun_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    interrupted(monkeypatch, 3000, lambda: convert(source, path, max_bytes=SMALL))
    before = sorted(path.rglob("*"))
    with pytest.raises(StoreExistsError, match=f"an unfinished conversion is there, with .* rows done.*{message}") as e:
        convert(source, path, max_bytes=SMALL, **change)
    assert "Run that one again to finish it, or give resume=False (--no-resume) to throw it away" in str(e.value)
    assert sorted(path.rglob("*")) == before
    convert(source, path, max_bytes=SMALL, resume=False, **change)
    assert len(names(path / "segments")) == len(store.open(path)._reader.lines)
    assert store.open(path).verify() == []


def test_a_source_that_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    interrupted(monkeypatch, 3000, lambda: convert(source, path, max_bytes=SMALL))
    status = source.stat()
    whole = source.read_bytes()
    for payload, times in (
        (whole + b"1 1:1\n", None),  # longer
        (whole.replace(b"1:1 ", b"1:2 ", 1), (status.st_atime_ns, status.st_mtime_ns)),  # edited, with its old time
        (whole, (0, 0)),  # touched
    ):
        source.write_bytes(payload)
        if times:
            os.utime(source, ns=times)
        with pytest.raises(StoreExistsError, match=r"its source was .*bytes"):
            convert(source, path, max_bytes=SMALL)
    source.write_bytes(whole)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    convert(source, path, max_bytes=SMALL)
    assert store.open(path).shape[0] == N_ROWS


def test_bad_input_leaves_nothing_to_go_on_with(tmp_path: Path) -> None:
    source = text(tmp_path, more="1 one:1\n")
    with pytest.raises(ValueError, match=f":{N_ROWS + 1}:"):
        convert(source, tmp_path / "a", max_bytes=SMALL)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("rows", [3000, 0], ids=["gone on with", "thrown away"])
def test_bad_input_met_on_the_way_on_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    source, path = text(tmp_path, more="1 one:1\n"), tmp_path / "new" / "newer" / "a"
    real = writer.Writer.abort
    with monkeypatch.context() as patch:  # as a kill would
        patch.setattr(writer.Writer, "abort", lambda self, **_: self._journal.release())
        patch.setattr(conversion, "_without_new_parents", lambda _: contextlib.nullcontext())
        interrupted(monkeypatch, rows, lambda: convert(source, path, max_bytes=SMALL))
    assert real is writer.Writer.abort
    assert names(path / "writers")
    with pytest.raises(ValueError, match=f":{N_ROWS + 1}:"):
        convert(source, path, max_bytes=SMALL)
    assert names(tmp_path) == ["rows.svm"]


def test_a_folder_that_was_there_before_stays_when_bad_input_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = text(tmp_path, more="1 one:1\n"), tmp_path / "a"
    path.mkdir()
    interrupted(monkeypatch, 3000, lambda: convert(source, path, max_bytes=SMALL))
    with pytest.raises(ValueError, match=f":{N_ROWS + 1}:"):
        convert(source, path, max_bytes=SMALL)
    assert names(path) == []


def test_a_part_that_is_damaged_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    interrupted(monkeypatch, 3000, lambda: convert(source, path, max_bytes=SMALL))
    (key,) = all_journals(LocalStorage(path))
    line = JournalState.parse((path / key).read_bytes()).parts[0]["lines"][0]
    (path / f"segments/{line[0]}/X/indices/c/0").unlink()
    for _ in range(2):  # and nothing of it is lost by that
        with pytest.raises(CorruptStoreError, match=r"X/indices/c/0 is missing: .* give resume=False \(--no-resume\)"):
            convert(source, path, max_bytes=SMALL)
    convert(source, path, max_bytes=SMALL, resume=False)
    assert store.open(path).verify() == []


def test_an_interrupted_append_goes_on_behind_rows_that_others_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    first = text(tmp_path, 100, "first.svm")
    convert(first, path, max_bytes=SMALL)
    interrupted(monkeypatch, 3000, lambda: append_source(source, path, max_bytes=SMALL))
    assert store.open(path).version == 1
    with append_to(path) as other:
        other.append(sp.csr_array((7, 99), dtype=np.float32), y=np.zeros(7, np.float32))
    append_source(source, path, max_bytes=SMALL)
    opened = store.open(path)
    assert opened.shape[0] == 100 + 7 + N_ROWS
    assert opened.column("row_id")[:].tolist() == list(range(100 + 7 + N_ROWS))
    np.testing.assert_array_equal(opened.column("y")[107:], np.arange(N_ROWS) % 3)
    assert opened.verify() == []


def colours(folder: Path, name: str, texts: list[str]) -> Path:
    path = folder / name
    path.write_text("y,color\n" + "".join(f"{row % 2},{text}\n" for row, text in enumerate(texts)))
    return path


@pytest.mark.parametrize("others", ["none", "as these", "others"])
def test_texts_of_an_interrupted_append_keep_their_numbers_whatever_others_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    path = tmp_path / "a"
    texts = [f"B{row % 50}" for row in range(N_ROWS)]
    source = colours(tmp_path, "b.csv", texts)
    more = {"none": [], "as these": texts[:3], "others": ["C0", "B1", "C2"]}[others]
    options: dict[str, Any] = {"label": "y", "categorical": "color", "max_bytes": SMALL}
    append = partial(append_source, grow_features=True, **options)
    convert(colours(tmp_path, "a.csv", ["red", "green"]), path, **options)
    interrupted(monkeypatch, 3000, lambda: append(source, path))
    if more:
        with monkeypatch.context() as patch:  # what was begun is still at work when they come
            patch.setattr(Journal, "adopt", lambda *_: None)
            append(colours(tmp_path, "c.csv", more), path)
    if others == "others":  # as to an append that was not interrupted
        with pytest.raises(ValueError, match=r"feature 2 is 'color=B0', in .* it is 'color=C0': .* run it again"):
            append(source, path)
        assert store.open(path).version == 2
    append(source, path)
    opened = store.open(path)
    names_there = np.array(opened.feature_names)
    assert names_there[opened[:].indices].tolist() == [f"color={text}" for text in ["red", "green", *more, *texts]]
    assert opened.verify() == []


def test_an_interrupted_append_is_refused_where_other_names_took_the_place_of_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    source = colours(tmp_path, "b.csv", [f"B{row % 50}" for row in range(N_ROWS)])
    options: dict[str, Any] = {"label": "y", "categorical": "color", "max_bytes": SMALL}
    append = partial(append_source, source, path, grow_features=True, **options)
    convert(colours(tmp_path, "a.csv", ["red", "green"]), path, **options)
    interrupted(monkeypatch, 3000, append)
    with create(path, overwrite=True, columns={"y": "float32"}, feature_names=["color=green", "color=red"]) as other:
        other.append(np.eye(2), y=np.zeros(2))
    with pytest.raises(StoreExistsError, match=r"its features of the store was \{'n': 2, .* now \{'n': 2, "):
        append()
    append(resume=False)
    opened = store.open(path)
    found = np.array(opened.feature_names)[opened[2:].indices]
    assert found.tolist() == [f"color=B{row % 50}" for row in range(N_ROWS)]


@pytest.mark.parametrize(
    ("columns", "width", "message"),
    [
        ({"y": "float64"}, 99, r"columns are \{'y': .*float64.*\}, expected \{'y': .*float32.*\}"),
        ({"z": "float32"}, 99, r"columns are \{'z': .*\}, expected \{'y': .*\}"),
        ({"y": "float32"}, 98, "it has 98 features, expected at least 99"),
    ],
    ids=["dtype", "name", "width"],
)
def test_an_interrupted_append_is_refused_where_another_store_took_the_place_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], width: int, message: str
) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    convert(text(tmp_path, 100, "first.svm"), path, max_bytes=SMALL)
    interrupted(monkeypatch, 3000, lambda: append_source(source, path, max_bytes=SMALL))
    with create(path, overwrite=True, columns=columns) as other:
        other.append(np.eye(3, width), **{name: np.zeros(3, dtype) for name, dtype in columns.items()})
    for _ in range(2):
        with pytest.raises(StoreExistsError, match=rf"{message}: .* give resume=False \(--no-resume\)"):
            append_source(source, path, max_bytes=SMALL)
    opened = store.open(path)
    assert (opened.version, opened.shape) == (2, (3, width))
    assert opened.verify() == []


def test_what_was_published_before_its_writer_was_killed_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    convert(text(tmp_path, 100, "first.svm"), path, max_bytes=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "end", lambda self, **_: self.release())  # as if killed there
        append_source(source, path, max_bytes=SMALL)
    assert len(names(path / "writers")) == 1
    rows = store.open(path).shape[0]
    append_source(text(tmp_path, 50, "last.svm"), path, max_bytes=SMALL)
    assert append_source(source, path, max_bytes=SMALL) == 2  # it is told all the same
    opened = store.open(path)
    assert opened.shape[0] == rows + 50
    assert opened.verify() == []
    assert names(path / "writers") == []


@pytest.mark.parametrize("how", ["interrupted after its link", "interrupted in fsync", "fsync failed"])
def test_an_append_that_ended_after_it_published_is_finished_by_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """As one that was killed there: whoever called it may not know that its rows are in the store."""
    path = tmp_path / "a"
    append = partial(append_source, text(tmp_path, 3000), path, max_bytes=SMALL)
    convert(text(tmp_path, 100, "first.svm"), path, max_bytes=SMALL)
    publish, sync = LocalStorage.publish, LocalStorage.sync

    def published(self: LocalStorage, *arguments: Any) -> None:
        publish(self, *arguments)
        raise KeyboardInterrupt

    def synced(self: LocalStorage, folder: str | None = None) -> None:
        if folder == "versions":
            raise OSError(5, "Input/output error") if how == "fsync failed" else KeyboardInterrupt
        sync(self, folder)

    with monkeypatch.context() as patch:
        if how == "interrupted after its link":
            patch.setattr(LocalStorage, "publish", published)
        else:
            patch.setattr(LocalStorage, "sync", synced)
        with pytest.raises((KeyboardInterrupt, OSError)):
            append()
    assert append() == 2
    opened = store.open(path)
    assert (opened.version, opened.shape[0]) == (2, 3100)
    assert opened.verify() == []
    assert names(path / "writers") == []


def test_gc_does_not_hide_what_may_be_gone_on_with_while_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    append = partial(append_source, text(tmp_path, 100), path, max_bytes=SMALL)
    append_rows, real = [], maintain.needed_keys
    convert(text(tmp_path, 100, "first.svm"), path, max_bytes=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "end", lambda self, **_: self.release())  # as if killed there
        append()

    def slow(*arguments: Any) -> Any:
        append_rows.append(append())
        return real(*arguments)

    monkeypatch.setattr(maintain, "needed_keys", slow)
    maintain.gc(path)
    assert append_rows == [2]
    assert store.open(path).shape[0] == 200


def test_an_append_is_known_by_whatever_can_be_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of numpy's kind of variable width, and truth values of numpy's."""
    path = tmp_path / "a"
    columns = {"name": np.array(["red", "green", "a longer one"], np.dtypes.StringDType())}
    append = partial(append_source, np.eye(3), path, columns=columns, grow_features=np.bool_(True), progress=False)
    convert(np.eye(3), path, columns=columns, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "end", lambda self, **_: self.release())  # as if killed there
        append()
    assert append() == 2
    assert store.open(path).column("name")[:].tolist() == 2 * columns["name"].tolist()


@pytest.mark.parametrize("n_rows", [50, 3000], ids=["one segment", "parts"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_append_that_was_killed_after_it_published_is_finished_by_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_rows: int, shuffle: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a"
    source = colours(tmp_path, "b.csv", [f"B{row % 50}" for row in range(n_rows)])
    options: dict[str, Any] = {"label": "y", "categorical": "color", "max_bytes": SMALL, "shuffle": shuffle}
    append = partial(append_source, source, path, grow_features=True, **options)
    convert(colours(tmp_path, "a.csv", ["red", "green"]), path, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "end", lambda self, **_: self.release())  # as if killed there
        append()
    with append_to(path) as other:
        other.append(sp.csr_array((7, 52), dtype=np.float32), y=np.zeros(7, np.float32))
    assert append() == 2
    assert "version 2 has these rows already: the call that appended them ended before it could say so" in caplog.text
    assert store.open(path).version == 3
    assert names(path / "writers") == []
    assert append() == 4  # another one
    opened = store.open(path)
    assert opened.shape == (2 + n_rows + 7 + n_rows, 52)
    assert opened.verify() == []


@pytest.mark.parametrize("why", ["resume is False", "its rows were replaced"])
def test_an_append_that_was_killed_after_it_published_is_appended_again_where_it_is_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    path, first = tmp_path / "a", text(tmp_path, 100, "first.svm")
    append = partial(append_source, text(tmp_path, 3000), path, max_bytes=SMALL)
    convert(first, path, max_bytes=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "end", lambda self, **_: self.release())
        append()
    if why == "its rows were replaced":
        with create(path, columns={"y": "float32"}, overwrite=True) as other:
            other.append(np.eye(100, 99), y=np.zeros(100))
    rows = store.open(path).shape[0]
    append(resume=why != "resume is False")
    opened = store.open(path)
    assert opened.shape[0] == rows + 3000
    assert opened.verify() == []
    assert names(path / "writers") == []


# ------------------------------------------------------------------------------------------------- without locks


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_locked", lambda _: None)


def aged(path: Path, hours: float) -> None:
    """Make all journals that much older."""
    for entry in (path / "writers").iterdir():
        then = entry.stat().st_mtime - hours * 3600
        os.utime(entry, (then, then))


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("resume", [True, False])
def test_without_locks_what_a_writer_makes_that_may_live_is_left_alone(
    tmp_path: Path, resume: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a"
    with create(path) as w:
        w.append(np.eye(4))
    with append_to(path, max_bytes="1KiB") as living:
        living.append(np.ones((200, 4)))
        for call in (append_source, partial(convert, overwrite=True)):
            call(np.eye(4), path, progress=False, resume=resume)
            assert "may be at work, as there are no locks here that would tell: it is left alone" in caplog.text
            caplog.clear()
        maintain.optimize(path, profile="compact", progress=False)
    opened = store.open(path)
    assert (opened.version, opened.shape) == (5, (204, 4))
    assert opened.verify() == []


@pytest.mark.usefixtures("no_locks")
def test_without_locks_what_was_interrupted_is_gone_on_with_when_it_is_as_old_as_gc_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    convert(source, tmp_path / "whole", max_bytes=SMALL)
    interrupted(monkeypatch, 3000, lambda: convert(source, path, max_bytes=SMALL))
    assert maintain.parse_age(inspect.signature(maintain.gc).parameters["older_than"].default) == ABANDONED_S
    aged(path, 25)
    with caplog.at_level("INFO", "sparsestore"):
        convert(source, path, max_bytes=SMALL)
    assert "going on behind row" in caplog.text
    same(path, tmp_path / "whole")


@pytest.mark.usefixtures("no_locks")
def test_without_locks_what_is_gone_on_with_is_not_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path, removed = text(tmp_path), tmp_path / "a", list[str]()
    convert(source, tmp_path / "whole", max_bytes=SMALL)
    interrupted(monkeypatch, 3000, lambda: convert(source, path, max_bytes=SMALL))
    aged(path, 25)
    real = conversion._behind

    def beside_gc(*arguments: Any) -> Any:
        removed.extend(maintain.gc(path))
        return real(*arguments)

    monkeypatch.setattr(conversion, "_behind", beside_gc)
    convert(source, path, max_bytes=SMALL)
    assert removed == []
    same(path, tmp_path / "whole")


def stalled_writer(path: Path) -> writer.Writer:
    """One that read version 1 of a new store, and lives while others publish 2 to 4."""
    with create(path) as w:
        w.append(np.eye(3))
    stalled = append_to(path)
    stalled.append(2 * np.eye(3))
    for _ in range(3):
        with append_to(path) as w:
            w.append(np.eye(3))
    return stalled


@pytest.mark.usefixtures("no_locks")
def test_without_locks_gc_frees_no_number_that_a_writer_may_take_that_may_live(tmp_path: Path) -> None:
    path = tmp_path / "a"
    stalled = stalled_writer(path)
    assert maintain.gc(path) == ["versions/00000001.json"]
    assert stalled.publish() == 5
    assert store.open(path).shape == (15, 3)


@pytest.mark.parametrize("when", ["it is open", "it is whole", "a later one is open"])
def test_a_segment_that_was_removed_before_it_was_published_is_an_error(tmp_path: Path, when: str) -> None:
    path = tmp_path / "a"
    with create(path) as w:
        w.append(np.eye(4))
    kept = names(path / "segments")
    living = append_to(path, max_bytes="1KiB", job=lambda: {"rows": 200_000})
    x = np.ones((100_000, 4))
    living.append(x)
    living.append(x)
    if when != "it is open":
        living._finish_part()
    if when == "a later one is open":
        living.append(x)
    made = [line.id for line in living._lines] or sorted(set(names(path / "segments")) - set(kept))
    shutil.rmtree(path / "segments" / made[0])
    with pytest.raises(SparsestoreError, match="is missing: another process removed what this one wrote"), living:
        pass
    opened = store.open(path)
    assert (opened.version, opened.shape) == (1, (4, 4))
    assert names(path / "segments") == kept
    assert names(path / "writers") == []


# ---------------------------------------------------------------------------------------------------------- gc


@pytest.mark.parametrize("given", [0, True, 1.5, "2", None])
def test_versions_to_keep_are_a_whole_number(tmp_path: Path, given: Any) -> None:
    convert(np.eye(2), tmp_path / "a")
    with pytest.raises(ValueError, match=r"keep_versions is .*, expected an integer of at least 1"):
        maintain.gc(tmp_path / "a", keep_versions=given)


def test_gc_spares_what_may_be_gone_on_with_until_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    interrupted(monkeypatch, 3000, lambda: convert(source, path, max_bytes=SMALL))
    assert maintain.gc(path) == []
    told = maintain.gc(path, older_than="0s", dry_run=True)
    assert len([key for key in told if key.startswith("segments/")]) == len(names(path / "segments")) > 0
    assert path.exists()
    assert maintain.gc(path, older_than="0s") == told
    assert not path.exists()  # there was nothing but the beginnings of a store


def test_gc_removes_garbage_beside_a_living_writer(tmp_path: Path) -> None:
    path = tmp_path / "a"
    convert(text(tmp_path, 100), path, max_bytes=SMALL)
    (path / f"segments/{'0' * 32}").mkdir()
    (path / f"writers/{'f' * 32}.scratch").mkdir(parents=True)
    living = append_to(path, max_bytes=2)
    living.append(sp.csr_array(np.ones((3, 99), np.float32)), y=np.zeros(3, np.float32))
    removed = maintain.gc(path, older_than="0s")
    assert removed == [f"segments/{'0' * 32}", f"writers/{'f' * 32}.scratch"]
    living.publish()
    assert store.open(path).shape[0] == 103
    assert store.open(path).verify() == []


def test_gc_frees_no_number_that_a_living_writer_may_take(tmp_path: Path) -> None:
    """Else its version would be older than the newest and not part of it: rows acknowledged, and lost."""
    path = tmp_path / "a"
    stalled = stalled_writer(path)
    removed = maintain.gc(path, older_than="0s")
    assert removed == ["versions/00000001.json"]  # it read that one, and may be about to make the next
    assert stalled.publish() == 5
    removed = maintain.gc(path, older_than="0s")
    assert removed == [f"versions/0000000{number}.json" for number in range(2, 5)]
    assert store.open(path).shape == (15, 3)


def test_gc_tells_where_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such store"):
        maintain.gc(tmp_path / "none")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(FileNotFoundError, match="is no sparsestore"):
        maintain.gc(tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").exists()


STRANGERS = ["segments/ages.csv", "features/ages.csv", "writers/ages.csv", "versions/pages/ages.json"]


@pytest.mark.parametrize("name", [*STRANGERS, f"features/{'0' * 31}", f"segments/{'0' * 32}.csv"])
def test_gc_takes_no_folder_of_something_else_for_a_store(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileNotFoundError, match="is no sparsestore"):
        maintain.gc(tmp_path, older_than=0)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("beside", ["notes.txt", "segments/ages.csv"])
def test_gc_takes_no_name_of_hexadecimal_digits_for_garbage_where_other_things_lie(tmp_path: Path, beside: str) -> None:
    names = [f"segments/{'0' * 32}", f"features/{'1' * 32}", f"writers/{'2' * 32}", beside]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(FileNotFoundError):
        maintain.gc(tmp_path, older_than=0)
    assert all((tmp_path / name).exists() for name in names)


@pytest.mark.parametrize("published", [True, False], ids=["a store", "an unfinished one"])
def test_gc_leaves_what_no_writer_made_and_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, published: bool
) -> None:
    source, path = text(tmp_path), tmp_path / "a"
    if published:
        convert(source, path, max_bytes=SMALL)
    else:
        interrupted(monkeypatch, 3000, lambda: convert(source, path, max_bytes=SMALL))
    for name in STRANGERS:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("mine")
    (path / f"segments/{'0' * 32}").mkdir()
    caplog.set_level("INFO", "sparsestore")
    assert f"segments/{'0' * 32}" in maintain.gc(path, older_than=0)
    assert [name for name in STRANGERS if not (path / name).exists()] == []
    assert "4 names that no writer gave are left alone, such as 'segments/ages.csv'" in caplog.text
    assert len(names(path / "segments")) == 1 + (len(store.open(path)._reader.lines) if published else 0)


@pytest.mark.parametrize("call", [convert, append_source], ids=["convert", "append"])
def test_a_file_with_the_name_of_a_journal_stays_where_there_is_no_store(
    tmp_path: Path, call: Callable[..., Any]
) -> None:
    (tmp_path / "writers").mkdir()
    (tmp_path / f"writers/{'0' * 32}").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises((FileExistsError, FileNotFoundError), match="no sparsestore"):
        call(np.eye(2), tmp_path)
    assert (tmp_path / f"writers/{'0' * 32}").read_text() == "mine"


def killed_at(monkeypatch: pytest.MonkeyPatch, n: int, call: Callable[[], Any]) -> bool:
    """Call in a fork that is killed at its n-th removal; whether it came to that."""
    real, left = LocalStorage.remove, n

    def remove(self: LocalStorage, key: str) -> int:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, key)

    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(LocalStorage, "remove", remove)
            call()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a kill needs a process of its own")
@pytest.mark.parametrize("how", ["gc", "anew", "bad input"])
def test_what_is_being_thrown_away_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A journal of which parts are gone would be an error to whoever comes next."""
    source, path = text(tmp_path, 2500), tmp_path / "a"
    calls: dict[str, Callable[[], Any]] = {
        "gc": lambda: maintain.gc(path, older_than=0),
        "anew": lambda: convert(source, path, max_bytes=SMALL, resume=False),
        "bad input": lambda: interrupted(
            monkeypatch, 2000, lambda: convert(source, path, max_bytes=SMALL), ValueError("bad")
        ),
    }
    for n in (2, 3):
        interrupted(monkeypatch, 1500, lambda: convert(source, path, max_bytes=SMALL))
        assert killed_at(monkeypatch, n, calls[how])
        convert(source, path, max_bytes=SMALL)
        opened = store.open(path)
        assert opened.shape[0] == 2500
        assert opened.verify(deep=False) == []
        maintain.gc(path, older_than=0)
        assert names(path / "writers") == []
        assert len(names(path / "segments")) == len(opened._reader.lines)
        shutil.rmtree(path)


def test_what_two_remove_at_once_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path / "store")
    for name in ("a/x", "a/y", "a/b/z"):
        storage.put(name, b"1")
    real = os.unlink

    def unlink(path: Any, **options: Any) -> None:
        real(path, **options)  # by the other
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        assert storage.remove("a") == 3
    assert not storage.exists("a")


# ----------------------------------------------------------------------------------------------- after the link


def test_an_error_after_the_link_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    with create(path) as w:
        w.append(np.eye(3))
    real = LocalStorage.sync

    def broken(self: LocalStorage, folder: str | None = None) -> None:
        if folder == "versions":
            raise OSError(5, "Input/output error")
        real(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "sync", broken)
        with pytest.raises(OSError, match="version 2 is published, but not durable yet"), append_to(path) as w:
            w.append(np.eye(3))
    opened = store.open(path)
    assert (opened.version, opened.shape) == (2, (6, 3))
    assert opened.verify() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_between_the_link_and_its_answer_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = tmp_path / "a"
    with create(path) as w:
        w.append(np.eye(3))
    real = LocalStorage.publish

    def broken(self: LocalStorage, *arguments: Any) -> None:
        real(self, *arguments)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "publish", broken)
        with pytest.raises(error), append_to(path) as w:
            w.append(np.eye(3))
    opened = store.open(path)
    assert (opened.version, opened.shape) == (2, (6, 3))
    assert opened.verify() == []
    assert names(path / "writers") == []
