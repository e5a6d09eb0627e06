"""Conversions by several processes: the same store as by one, and nothing left of any of them, however they end."""

from __future__ import annotations

import gzip
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from check_source import assert_same, check_source, read
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsestore as ss
from sparsestore import maintain, workers, writer
from sparsestore.convert import append_source, convert
from sparsestore.errors import ResourceError, SourceError, WorkerError
from sparsestore.journal import Journal, JournalState, all_journals
from sparsestore.manifest import read_manifest
from sparsestore.sources.registry import open_source
from sparsestore.storage import open_storage

conversion = sys.modules["sparsestore.convert"]  # the package's own name is that of the function
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
SETTINGS = settings(deadline=None, max_examples=25)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "LEAST_PART", {"bytes": 1, "rows": 1})


def work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What processes do is done in this one, part after part, the last one first."""

    def results(work: Any, tasks: Sequence[Any], *, note: Any, progress: Any, **_: Any) -> list[Any]:
        class Teller:
            def __init__(self, number: int) -> None:
                self.number = number

            def note(self, kind: str, value: Any) -> None:
                note(self.number, kind, value)

            def progress(self, position: int, *_: Any) -> None:
                progress(self.number, position)

        return [work(task, Teller(number)) for number, task in reversed(list(enumerate(tasks)))][::-1]

    monkeypatch.setattr(conversion, "results", results)
    monkeypatch.setattr(writer, "PART_BYTES", 5_000)
    monkeypatch.setattr(writer, "HOLD_BYTES", 1_000)
    monkeypatch.setattr(conversion, "BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(conversion, "WRITER_BYTES", 2_000)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)


def svmlight(folder: Path, n_rows: int = 3000, name: str = "rows.svm") -> Path:
    path = folder / name
    lines = [f"{row % 3} {row % 50 + 1}:{row % 7 + 1} {60 + row // 40}:0.5\n" for row in range(n_rows)]
    path.write_text("# a comment\n\n" + "".join(lines))
    return path


def given_file(folder: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """A file or store of a kind that can be cut, and the options to read it with."""
    rng = np.random.default_rng(0)
    x = sp.random_array((500, 12), density=0.3, rng=rng, dtype=np.float32).toarray()
    path = folder / f"x.{kind.partition(' ')[0]}"
    if kind == "svm":
        return svmlight(folder, 500), {}
    if kind == "svm multilabel":
        path.write_text("".join(f"{row % 5},{row // 50 + 7} {row % 9 + 1}:2\n" for row in range(500)))
        return path, {"multilabel": True}
    if kind == "ffm":
        path.write_text("".join(f"1 0:{row % 9}:2 1:{row // 50 + 10}:1\r\n" for row in range(500)))
    elif kind == "ldac":
        path.write_text("".join(f"2 {row % 9}:2 {row // 50 + 10}:1\n" for row in range(499)) + "1 3:1")
    elif kind == "csv":
        rows = [",".join(map(str, row)) for row in x[:, :4].tolist()]
        path.write_text("\n".join(["y,a,b,c", *rows]))
        return path, {"label": "y"}
    elif kind == "csv bare":
        path.write_text("".join(f"{row % 3},0,{row}\n" for row in range(500)))
        return path, {"header": False, "keep": "2:int64"}
    elif kind == "csv hash":
        path.write_text("color,n\n" + "".join(f"c{row % 40},{row % 3}\n" for row in range(500)))
        return path, {"categorical": "color", "encode": "hash", "n_features": 64}
    elif kind == "npy":
        np.save(path, x)
    elif kind == "npy fortran":
        np.save(path, np.asfortranarray(x))
    elif kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=x, chunks=(7, 5))
            file["y"] = np.arange(500)
        return path, {"label": "y"}
    elif kind.startswith("zarr"):
        convert(x, path, columns={"y": np.arange(500), "s": [f"s{i}" for i in range(500)]}, shuffle=True, seed=0)
        return path, {"rows": "7:490", "select": "3,1,7-9"} if "some" in kind else {}
    return path, {}


KINDS = (
    *("svm", "svm multilabel", "ffm", "ldac", "csv", "csv bare", "csv hash", "npy", "npy fortran", "h5"),
    *("zarr", "zarr some"),
)


# those that have a near relative among the others
MOST = [
    pytest.param(kind, marks=pytest.mark.slow)
    if kind in ("svm multilabel", "csv bare", "npy fortran", "zarr")
    else kind
    for kind in KINDS
]


def content(path: Path) -> dict[str, Any]:
    """All of a store that does not depend on where segments begin."""
    manifest = read_manifest(open_storage(path))
    store = ss.open(path)
    assert store.verify() == []
    x = store[:]
    columns = {name: np.asarray(store.column(name)[:]).tolist() for name in [*store.columns, "row_id"]}
    names = store.feature_names
    return {
        "x": (x.shape, x.dtype, x.indptr.tolist(), x.indices.tolist(), x.data.tolist()),
        "columns": columns,
        "names": None if names is None else names.tolist(),
        "facts": [manifest.rows, manifest.n_features, manifest.nnz, manifest.dtype, manifest.columns],
        "how": [manifest.attrs, manifest.shuffled, manifest.profile],
    }


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- parts of sources


@pytest.mark.parametrize("kind", MOST)
def test_parts_together_are_the_whole(tmp_path: Path, kind: str) -> None:
    path, options = given_file(tmp_path, kind)
    source = open_source(path, **options)
    expected, columns = read(source)
    for n in (1, 2, 3, 7, 400):
        parts = source.parts(n)  # type: ignore[attr-defined]
        assert 1 <= len(parts) <= n
        assert n > 3 or len(parts) == n
        assert sum(part.size for part in parts) == source.size
        found = [read(part) for part in parts if list(part.blocks(1 << 20))]
        width = expected.shape[1]
        rows = [sp.csr_array((x.data, x.indices, x.indptr), shape=(x.shape[0], width)) for x, _ in found]
        assert_same(sp.vstack(rows, "csr"), expected)
        for name, column in columns.items():
            np.testing.assert_array_equal(np.concatenate([beside[name] for _, beside in found]), column)


@pytest.mark.parametrize("kind", ["npy", "h5", "zarr", "csv", "csv hash"])
def test_a_part_is_a_source(tmp_path: Path, kind: str) -> None:
    path, options = given_file(tmp_path, kind)
    part = open_source(path, **options).parts(3)[1]  # type: ignore[attr-defined]
    check_source(part, *read(part))


@SETTINGS
@given(lines=st.lists(st.integers(0, 30), max_size=40), n=st.integers(1, 9), end=st.booleans())
def test_text_is_cut_at_ends_of_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int], n: int, end: bool
) -> None:
    from sparsestore.sources.text import TextFile

    path = tmp_path_factory.mktemp("cut") / "text"
    text = "\n".join("x" * length for length in lines) + "\n" * end
    path.write_text(text)
    parts = TextFile(path).parts(n)
    pieces = [piece for part in parts for piece in part.pieces(16, 1 << 20)]
    assert b"".join(piece.text.tobytes() for piece in pieces).decode() == text + "\n" * bool(text and text[-1] != "\n")
    at = 1
    for piece in pieces:
        assert piece.line_at(0) == at
        at += piece.n_lines


@pytest.mark.parametrize(
    ("bad", "message"),
    [("1 2:x", r"rows.svm:2912: the value"), ("1 2:3 1:1", "rows.svm:2912: indices not"), ("y", "svm:2912: the label")],
    ids=["value", "order", "label"],
)
def test_an_error_in_a_part_names_its_line_of_the_file(tmp_path: Path, bad: str, message: str) -> None:
    path = svmlight(tmp_path)
    lines = path.read_text().splitlines()
    lines[2911] = bad
    path.write_text("\n".join(lines))
    *good, last = open_source(path).parts(4)  # type: ignore[attr-defined]
    for part in good:
        read(part)
    with pytest.raises(SourceError, match=message):
        read(last)


def test_a_line_that_is_too_long_names_its_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.svm"
    path.write_text("1 1:1\n" * 2_000_000 + "1 " + "1" * (17 << 20) + "\n" + "1 1:1\n" * 400_000)
    _, *rest = open_source(path).parts(9)  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match=r"long.svm:2000001: the line has at least"):
        list(map(read, rest))


def test_a_file_that_changes_is_an_error_of_each_part(tmp_path: Path) -> None:
    path = svmlight(tmp_path)
    parts = open_source(path).parts(3)  # type: ignore[attr-defined]
    with path.open("a") as file:
        file.write("1 1:1\n")
    for part in parts:
        with pytest.raises(SourceError, match="changed while it was read"):
            read(part)


# ---- the same store


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("profile", ["raw", pytest.param("compact", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("here")
def test_any_number_of_workers_gives_the_store_of_one(tmp_path: Path, kind: str, profile: str) -> None:
    path, options = given_file(tmp_path, kind)
    convert(path, tmp_path / "one", profile=profile, **options)
    for n in (2, 5):
        convert(path, tmp_path / f"{n}", workers=n, profile=profile, **options)
        assert content(tmp_path / f"{n}") == content(tmp_path / "one")


@SETTINGS
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    values=st.lists(st.sampled_from([1, 2, 0.5, -3, 70_000, 1e9]), min_size=1),
    stretch=st.sampled_from([1, 7, 3000, 70_000, 2**31]),
    n=st.integers(2, 9),
)
@pytest.mark.slow
def test_values_and_widths_of_parts_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], values: list[float], stretch: int, n: int
) -> None:
    folder = tmp_path_factory.mktemp("same")
    path, at = folder / "x.svm", iter(values * 240)
    with path.open("w") as file:
        for row, length in enumerate(lengths):
            file.write(f"{row} " + " ".join(f"{(row + k + 1) * stretch}:{next(at)}" for k in range(length)) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "LEAST_PART", {"bytes": 1, "rows": 1})
        work_here(patch)
        if not any(lengths):
            for workers_ in (1, n):
                with pytest.raises(SourceError, match=f"none of the {len(lengths)} rows has an entry"):
                    convert(path, folder / "none", workers=workers_)
            return
        convert(path, folder / "one")
        convert(path, folder / "several", workers=n)
    one, several = content(folder / "one"), content(folder / "several")
    assert one == several


@pytest.mark.usefixtures("here")
def test_appended_rows_follow_and_columns_are_cut_alike(tmp_path: Path) -> None:
    x, y = np.eye(300, 20, dtype=np.float32), np.arange(300)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "wide.npy", np.ones((90, 33)))
    for name, n in (("one", 1), ("several", 4)):
        convert(tmp_path / "x.npy", tmp_path / name, columns={"y": y}, workers=n, shuffle=False)
        append_source(tmp_path / "x.npy", tmp_path / name, columns={"y": y + 7}, workers=n)
        with pytest.raises(ValueError, match="33 features, expected at most 20"):
            append_source(tmp_path / "wide.npy", tmp_path / name, columns={"y": y[:90]}, workers=n)
        wide: dict[str, Any] = {"columns": {"y": y[:90]}, "grow_features": True}
        append_source(tmp_path / "wide.npy", tmp_path / name, workers=n, **wide)
    assert content(tmp_path / "several") == content(tmp_path / "one")
    assert content(tmp_path / "one")["columns"]["row_id"] == list(range(690))


@pytest.mark.usefixtures("here")
def test_progress_is_that_of_all_parts_together(tmp_path: Path) -> None:
    path, seen = svmlight(tmp_path), list[tuple[int, int | None, str]]()
    convert(path, tmp_path / "a", workers=3, progress=lambda *call: seen.append(call))
    size = path.stat().st_size
    assert [call[1:] for call in seen] == [(size, "bytes")] * len(seen)
    positions = [call[0] for call in seen]
    assert positions == sorted(positions)
    assert positions[-1] == size
    assert len(set(positions)) > 3


def test_what_can_not_be_cut_is_read_by_one_which_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = svmlight(tmp_path, 200)
    (tmp_path / "x.svm.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "x.csv").write_text("c,n\n" + "a,1\nb,2\n" * 50)
    sp.save_npz(tmp_path / "x.npz", sp.eye_array(50, format="csr"))
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (tmp_path / "x.svm.gz", {}, "it is compressed, small, or"),
        (tmp_path / "x.csv", {"categorical": "c"}, "its texts are numbered in the order of the rows"),
        (tmp_path / "x.npz", {}, "it can not be cut into parts"),
        (np.eye(50), {}, "it can not be cut into parts"),
        (path, {"shuffle": True}, "all its rows are shuffled together"),
        (path, {"columns": {"z": np.arange(200)}}, "the number of its rows"),
    ]
    for at, (source, options, why) in enumerate(cases):
        caplog.clear()
        with caplog.at_level(logging.INFO, "sparsestore"):
            convert(source, tmp_path / f"{at}", workers=4, **options)
        assert "is read by one worker: " in caplog.text
        assert why in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers is 0, expected at least 1"),
        ({"workers": True}, ValueError, "workers is True, expected at least 1"),
        (
            {"workers": 3, "max_bytes": "50MiB"},
            ResourceError,
            r"for 3 workers, expected at least 25165824 \(24 MiB\) fo",
        ),
    ],
    ids=["none", "no number", "too little"],
)
def test_bad_numbers_are_refused_before_anything_is_made(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = svmlight(tmp_path, 10)
    with pytest.raises(error, match=message):
        convert(path, tmp_path / "a", **options)
    assert left_in(tmp_path) == ["rows.svm"]


# ---- going on


@pytest.mark.usefixtures("here")
def test_each_part_goes_on_behind_its_last_whole_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, written = svmlight(tmp_path, 9000), list[int]()
    convert(path, tmp_path / "one")
    note, write, left = Journal.note, writer.Writer.write, [3]

    def stops(self: Journal, kind: str, value: Any, **options: Any) -> None:
        note(self, kind, value, **options)
        left[0] -= kind == "part" and type(self) is Journal
        if left[0] == 0:
            raise KeyboardInterrupt

    def counts(self: writer.Writer, rows: Any, columns: Any, **named: Any) -> None:
        written.append(len(rows))
        write(self, rows, columns, **named)

    monkeypatch.setattr(writer.Writer, "write", counts)
    monkeypatch.setattr(Journal, "note", stops)
    for rows in (3, 3, 3):
        left[0] = rows
        with pytest.raises(KeyboardInterrupt):
            convert(path, tmp_path / "a", workers=3)
    with pytest.raises(FileExistsError, match="its parts was 3, now None"):
        convert(path, tmp_path / "a")
    with pytest.raises(FileExistsError, match="its parts was 3, now 4"):
        convert(path, tmp_path / "a", workers=4)
    key = next(all_journals(open_storage(tmp_path / "a")))
    state = JournalState.parse((tmp_path / "a" / key).read_bytes())
    assert len(state.parts) == 9
    assert 0 < state.rows < 9000
    left[0] = -1
    written.clear()
    with caplog.at_level(logging.INFO, "sparsestore"):
        convert(path, tmp_path / "a", workers=3)
    assert f"going on with {state.rows:,} rows done" in caplog.text
    assert sum(written) == 9000 - state.rows
    assert content(tmp_path / "a") == content(tmp_path / "one")
    assert left_in(tmp_path / "a" / "writers") == []
    named = {line.id for line in read_manifest(open_storage(tmp_path / "a")).segments}
    assert {folder.name for folder in (tmp_path / "a" / "segments").iterdir()} == named


# ---- real processes


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Processes of the workers that are started, in order."""
    found: list[Any] = []
    start = workers._Worker.start

    def noting(*arguments: Any) -> Any:
        worker = start(*arguments)
        found.append(worker.process)
        return worker

    monkeypatch.setattr(workers._Worker, "start", noting)
    return found


def big(folder: Path, name: str = "big.svm", n_rows: int = 2_400_000) -> Path:
    """Some 70 MB: more than a worker reads between two of its reports."""
    path = folder / name
    path.write_bytes(
        b"".join(b"%d %d:1.5 %d:2 70000:3\n" % (row % 2, row % 9 + 1, row % 1000 + 20) for row in range(n_rows))
    )
    return path


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_processes_give_the_store_of_one(tmp_path: Path, started: list[Any]) -> None:
    for kind in ("svm", "csv hash", "zarr"):
        folder = tmp_path / kind
        folder.mkdir()
        path, options = given_file(folder, kind)
        convert(path, folder / "one", **options)
        convert(path, folder / "three", workers=3, **options)
        assert content(folder / "three") == content(folder / "one")
        assert all(process.returncode is not None for process in started)
        assert len(started) == 3
        started.clear()


def test_an_error_of_a_part_is_raised_as_one_worker_raises_it(tmp_path: Path, started: list[Any]) -> None:
    path = svmlight(tmp_path, 3000)
    lines = path.read_text().splitlines()
    lines[2900] = "1 2:x"
    path.write_text("\n".join(lines))
    messages = []
    for n in (1, 3):
        with pytest.raises(SourceError) as error:
            convert(path, tmp_path / "a", workers=n)
        messages.append(str(error.value))
        assert left_in(tmp_path) == ["rows.svm"]
    assert messages[0] == messages[1]
    assert "rows.svm:2901" in messages[0]
    assert any("In a worker" in note for note in error.value.__notes__)
    assert all(process.returncode is not None for process in started)


def test_a_killed_worker_ends_the_conversion_which_can_be_gone_on_with(
    tmp_path: Path, started: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = big(tmp_path)
    convert(path, tmp_path / "one")

    def whole() -> bool:
        """Whether the first part is done."""
        for key in all_journals(open_storage(tmp_path / "a")):
            state = JournalState.parse((tmp_path / "a" / key).read_bytes())
            return any(part.get("whole") for part in state.parts)
        return False

    def kill_late() -> None:
        until(whole)
        started[1].kill()

    killer = Thread(target=kill_late)

    def stop(*_: Any) -> None:
        if not killer.ident:
            started[1].send_signal(signal.SIGSTOP)
            killer.start()

    message = r"worker 2 of 2 was ended by SIGKILL before it was done: is memory short\?"
    with pytest.raises(WorkerError, match=message):
        convert(path, tmp_path / "a", workers=2, progress=stop)
    killer.join()
    assert not list((tmp_path / "a" / "versions").glob("*.json"))
    assert [process.returncode is not None for process in started] == [True, True]
    started.clear()
    with caplog.at_level(logging.INFO, "sparsestore"):
        convert(path, tmp_path / "a", workers=2)
    assert "rows done, where a conversion was interrupted" in caplog.text
    assert len(started) == 1
    assert content(tmp_path / "a") == content(tmp_path / "one")


SMALL = """
import sys
from sparsestore.convert import convert
sys.modules["sparsestore.convert"].LEAST_PART = {"bytes": 1}
"""
KILLED = (
    SMALL
    + """
import os, pathlib, signal, time
from sparsestore import workers
start, processes = workers._Worker.start, []
def told(*arguments):
    worker = start(*arguments)
    processes.append(worker.process)
    print(worker.process.pid, flush=True)
    return worker
workers._Worker.start = told
def kill(*_):
    if not os.path.exists(sys.argv[2] + "/segments"):
        return
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    for process in processes:  # a thread that waits for the disk stops late, and another could learn of the end before
        while pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], workers=2, max_bytes="48MiB", progress=kill)
"""
)


@linux
def test_workers_end_with_a_coordinator_that_is_killed_and_hold_its_journal_until_then(tmp_path: Path) -> None:
    path, dst = big(tmp_path), tmp_path / "a"
    command = [sys.executable, "-c", KILLED, path, dst]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    storage = open_storage(dst)
    key = next(all_journals(storage))
    made = JournalState.parse((dst / key).read_bytes()).segments
    assert made
    try:
        assert all(map(running, pids))  # stopped, they can not know yet
        assert Journal.adopt(storage, key) is None
        assert maintain.gc(dst, older_than="0s") == []
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    until(lambda: not any(map(running, pids)), 20)
    until(lambda: made <= set(maintain.gc(dst, older_than="0s")))  # once their last threads have let go of it
    assert not dst.exists()


@linux
def test_ctrl_c_ends_all_and_leaves_nothing(tmp_path: Path) -> None:
    path, dst = big(tmp_path), tmp_path / "a"
    code = SMALL + "from sparsestore.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", path, dst, "--workers", "2", "--max-bytes", "48MiB"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        until(lambda: list(dst.glob("segments/*")))
        children = [
            int(stat.parent.name)
            for stat in Path("/proc").glob("[0-9]*/stat")
            if running(int(stat.parent.name)) and int(stat.read_text().rpartition(")")[2].split()[1]) == process.pid
        ]
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "error: interrupted"
    assert len(said.splitlines()) <= 2
    assert len(children) == 2
    assert not any(map(running, children))
    assert left_in(tmp_path) == ["big.svm"]


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    path = svmlight(tmp_path, 200)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import sparsestore as ss
        from sparsestore import convert
        sys.modules["sparsestore.convert"].LEAST_PART = {"bytes": 1}
        print("once", ss.convert(sys.argv[1], sys.argv[2], workers=2).shape)
        """)
    )
    done = subprocess.run(
        [sys.executable, script, path, tmp_path / "a"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout == "once (200, 64)\n", done.stderr


def test_an_error_that_can_not_be_pickled_is_told_in_words() -> None:
    import pickle

    class StrangeError(Exception):
        pass

    error = pickle.loads(workers._portable(StrangeError("how odd")))
    assert str(error) == "StrangeError: how odd"


PEAK = (
    SMALL
    + """
import os, threading
from pathlib import Path

def anonymous(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)

pids, peak, done = [os.getpid()], 0, threading.Event()
from sparsestore import workers
start = workers._Worker.start
def told(*arguments):
    worker = start(*arguments)
    pids.append(worker.process.pid)
    return worker
workers._Worker.start = told

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, sum(map(anonymous, pids)))

thread = threading.Thread(target=watch)
thread.start()
try:
    convert(sys.argv[1], sys.argv[2], workers=2, max_bytes=int(sys.argv[3]), progress=False)
finally:
    done.set()
    thread.join()
print(peak)
"""
)


@linux
@pytest.mark.slow
def test_all_processes_together_stay_within_max_bytes(tmp_path: Path) -> None:
    budget = 64 << 20
    line = b"1 " + b" ".join(b"%d:1.25" % (k * 50 + 1) for k in range(40)) + b"\n"
    peaks = []
    for name, rows in (("none.svm", 8_000), ("some.svm", 70_000), ("more.svm", 700_000)):  # 2, 20 and 200 MB
        path = tmp_path / name
        path.write_bytes(line * rows)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, path, tmp_path / f"{name}.zarr", str(budget)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
        path.unlink()
    none, some, more = peaks
    assert more - none <= budget + 2 * (18 << 20)  # and what imported libraries take, which `none` has
    assert more - some <= 40 << 20  # of three processes, whose imports alone differ by ten from run to run
