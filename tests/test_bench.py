"""`sparsestore bench`: what it reports is what an epoch did, and it says what it could not measure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import scipy.sparse
from rich.console import Console

import sparsestore as ss
from sparsestore.batch import Batch
from sparsestore.bench import Report, measure, measurement, picture, process
from sparsestore.bench.epoch import consume
from sparsestore.bench.machine import disk_bytes, drop
from sparsestore.bench.process import run_apart
from sparsestore.bench.report import Run, spread, summary
from sparsestore.bench.table import rendered

N_ROWS, N_FEATURES, BATCH_SIZE = 5000, 40, 512
LINUX = sys.platform.startswith("linux")


def sparsestore(*arguments: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, expect its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "sparsestore", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def error_line(*arguments: object, **environment: str) -> str:
    """The one line that a failing command prints."""
    done = sparsestore(*arguments, status=1, **environment)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "s.zarr"
    x = scipy.sparse.random_array((N_ROWS, N_FEATURES), density=0.3, format="csr", rng=np.random.default_rng(0))
    columns = {"y": np.arange(N_ROWS) % 2, "unread": np.random.default_rng(1).random(N_ROWS)}
    ss.convert(x, path, columns=columns, shuffle=True, seed=0)
    return path


@pytest.fixture(scope="module")
def found(path: Path) -> dict[str, Any]:
    """What the command says of that store, as JSON."""
    options = ("--batch-size", BATCH_SIZE, "--repeat", 2, "--step-time", 2, "--step-time", 8.5)
    done = sparsestore("bench", path, *options, "--json")
    assert done.stderr == ""
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.fixture(scope="module")
def report(path: Path) -> Report:
    """One epoch a state, and one with a step."""
    return measure(path, batch_size=BATCH_SIZE, repeat=1, step_ms=(1.5,), progress=False)


def run_of(**changes: Any) -> Run:
    """A run of 1000 rows in 10 batches in 2 seconds, the first batch after one."""
    run = Run(
        rows=1000,
        batches=11,
        nnz=5000,
        x_bytes=80_000,
        complete=True,
        seconds=2.0,
        first_batch_s=1.0,
        waited_s=0.25,
        longest_wait_s=0.1,
        cpu_s=3.0,
        read_bytes=0,
        import_anonymous_bytes=20,
        peak_anonymous_bytes=50,
        peak_resident_bytes=None,
    )
    return replace(run, **changes)


@pytest.mark.slow
class TestWhatIsMeasured:
    def test_every_epoch_has_every_row_and_entry(self, found: dict[str, Any], path: Path) -> None:
        store = ss.open(path)
        assert (found["store"]["rows"], found["store"]["nnz"]) == (N_ROWS, store.nnz)
        assert found["settings"]["n_batches"] == -(-N_ROWS // BATCH_SIZE)
        assert "warm" in found["epochs"]
        for epochs in found["epochs"].values():
            assert len(epochs["runs"]) == 2
            assert epochs["complete"] is True
            for run in epochs["runs"]:
                assert (run["rows"], run["nnz"], run["batches"]) == (N_ROWS, store.nnz, -(-N_ROWS // BATCH_SIZE))

    def test_bytes_of_batches_are_those_of_their_arrays(self, found: dict[str, Any], path: Path) -> None:
        batches = [batch.x for batch in ss.open(path).loader(BATCH_SIZE, shuffle=True, seed=0)]
        expected = sum(x.indptr.nbytes + x.indices.nbytes + x.data.nbytes for x in batches)
        assert {run["x_bytes"] for epochs in found["epochs"].values() for run in epochs["runs"]} == {expected}

    def test_bytes_of_the_store_are_those_of_the_files_that_an_epoch_reads(
        self, found: dict[str, Any], path: Path
    ) -> None:
        (segment,) = (path / "segments").iterdir()
        folders = ("X", "columns/y", "checksums/X", "checksums/columns/y")
        files = [file for folder in folders for file in (segment / folder).rglob("*") if file.is_file()]
        assert found["store"]["epoch_bytes"] == sum(file.stat().st_size for file in files)
        everything = sum(file.stat().st_size for file in segment.rglob("*") if file.is_file())
        assert found["store"]["bytes"] == everything

    def test_rates_are_those_of_the_runs(self, found: dict[str, Any]) -> None:
        rates = found["rates"]
        for state, epochs in found["epochs"].items():
            rows = [run["rows"] / run["seconds"] for run in epochs["runs"]]
            assert epochs["rows_per_s"]["lowest"] == pytest.approx(min(rows))
            assert epochs["rows_per_s"]["highest"] == pytest.approx(max(rows))
            stored = found["store"]["epoch_bytes"] / N_ROWS * np.median(rows)
            assert epochs["stored_bytes_per_s"]["median"] == pytest.approx(stored)
            share = stored / rates["sequential_read_bytes_per_s"][state]["median"]
            assert epochs["sequential_read_share"] == pytest.approx(share)
            share = epochs["x_bytes_per_s"]["median"] / rates["memcpy_bytes_per_s"]["median"]
            assert epochs["memcpy_share"] == pytest.approx(share)

    def test_figures_are_plausible(self, found: dict[str, Any]) -> None:
        for epochs in found["epochs"].values():
            for run in epochs["runs"]:
                assert 0 < run["first_batch_s"] <= run["seconds"] < 60
                assert 0 < run["longest_wait_s"] <= run["waited_s"] <= run["seconds"]
                assert 0 < run["cpu_s"] < 60
                if LINUX:
                    assert 1 << 20 < run["import_anonymous_bytes"] <= run["peak_anonymous_bytes"] < 1 << 30
        assert 1e7 < found["rates"]["memcpy_bytes_per_s"]["median"] < 1e13
        assert found["machine"]["cores"] >= 1
        assert found["machine"]["numpy"] == np.__version__

    def test_warm_reads_no_disk_and_cold_reads_all_from_it(self, found: dict[str, Any]) -> None:
        if not LINUX:
            pytest.skip("the system does not tell")
        # nothing of the store; a page of what Python itself loads may come from the disk
        assert found["epochs"]["warm"]["read_bytes"] < 0.05 * found["store"]["epoch_bytes"]
        if "cold" not in found["epochs"]:
            assert "page cache" in found["not_measured"]["cold"]
            pytest.skip(found["not_measured"]["cold"])
        assert found["not_measured"] == {}
        assert found["epochs"]["cold"]["read_bytes"] >= 0.9 * found["store"]["epoch_bytes"]

    def test_each_step_time_is_tried_in_each_state(self, found: dict[str, Any]) -> None:
        tried = [(waiting["state"], waiting["step_ms"]) for waiting in found["waiting"]]
        assert tried == [(state, step) for step in (2.0, 8.5) for state in found["epochs"]]
        assert all(0 < waiting["share"] < 1 for waiting in found["waiting"])

    def test_dense_batches_have_all_their_cells(self, path: Path) -> None:
        report = measure(path, batch_size=BATCH_SIZE, layout="dense", repeat=1, step_ms=(), progress=False)
        (run,) = report.epochs["warm"].runs
        assert run.x_bytes == N_ROWS * N_FEATURES * 4
        assert run.nnz == ss.open(path).nnz

    def test_an_epoch_is_cut_short_after_a_window_and_says_so(self, tmp_path: Path) -> None:
        x = scipy.sparse.csr_array((np.ones(200_000), np.zeros(200_000), np.arange(200_001)), shape=(200_000, 4))
        ss.convert(x, tmp_path / "s.zarr", shuffle=True, seed=0)
        report = measure(tmp_path / "s.zarr", batch_size=64, repeat=1, seconds=1e-3, step_ms=(5,), progress=False)
        warm = report.epochs["warm"]
        assert not warm.complete
        assert [run.rows for run in warm.runs] == [report.settings["window_rows"]]
        assert not any(waiting.complete for waiting in report.waiting)
        assert "cut short after 0.001 s" in as_text(report, 100)

    def test_progress_tells_how_many_runs_there_are(self, path: Path) -> None:
        calls: list[tuple[int, int | None, str]] = []
        report = measure(path, batch_size=512, repeat=1, step_ms=(1,), progress=lambda *call: calls.append(call))
        assert [position for position, _, _ in calls] == list(range(len(calls)))
        assert {unit for _, _, unit in calls} == {"runs"}
        assert calls[-1][1] == len(calls) == 4 + 2 * len(report.epochs)

    @pytest.mark.parametrize("bad", [{"repeat": 0}, {"seconds": 0.0}, {"step_ms": (1, -1)}, {"seconds": float("nan")}])
    def test_a_bad_argument_is_named(self, bad: dict[str, Any], path: Path) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is "):
            measure(path, **bad)


@pytest.mark.slow
class TestPageCache:
    def test_a_file_system_in_memory_has_no_cold_cache(self) -> None:
        memory = Path("/dev/shm")
        if not os.access(memory, os.W_OK):
            pytest.skip("there is no file system in memory")
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            ss.convert(np.eye(200), f"{folder}/s.zarr")
            report = measure(f"{folder}/s.zarr", batch_size=20, repeat=1, step_ms=(1,), progress=False)
        assert list(report.epochs) == ["warm"]
        assert "could not be emptied" in report.not_measured["cold"]
        assert list(report.rates.sequential_read_bytes_per_s) == ["warm"]
        assert "cold not measured: the page cache could not be emptied" in as_text(report, 200)

    def test_where_the_cache_can_not_be_emptied_the_reason_is_given(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
        report = measure(path, repeat=1, step_ms=(), progress=False)
        assert list(report.epochs) == ["warm"]
        assert "does not let a process empty" in report.not_measured["cold"]

    def test_what_memory_can_not_hold_is_never_called_warm(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measurement, "WARM_SHARE", 1e-12)
        report = measure(path, repeat=1, step_ms=(1,), progress=False)
        assert "warm" not in report.epochs
        assert "of memory are free" in report.not_measured["warm"]
        assert "warm not measured: an epoch reads" in as_text(report, 200)

    def test_dropped_files_are_read_from_the_disk_again(self, tmp_path: Path) -> None:
        file = tmp_path / "x"
        file.write_bytes(bytes(1 << 20))
        before = disk_bytes()
        if before is None:
            pytest.skip("the system does not tell")
        file.read_bytes()
        assert disk_bytes() == before
        drop([file])
        file.read_bytes()
        if disk_bytes() == before:
            pytest.skip("the file system keeps a cache of its own")
        assert (disk_bytes() or 0) - before >= 1 << 20


class FakeTime:
    """A clock that moves when batches are made and when the consumer sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def batches(self, *times: float) -> Iterator[Any]:
        """One batch of a row with two entries after each of these times."""
        x = scipy.sparse.csr_array(np.ones((1, 2), np.float32))
        for seconds in times:
            self.now += seconds
            yield Batch(x, None, None, np.zeros(1, np.int64), {})


class TestConsumer:
    def test_counts_waiting_and_not_steps_nor_the_first_batch(self) -> None:
        time = FakeTime()
        taken = consume(time.batches(50.0, 3.0, 3.0, 6.0), np.inf, 4.0, clock=time, sleep=time.sleep)
        assert (taken.rows, taken.batches, taken.nnz) == (4, 4, 8)
        assert taken.exhausted
        assert taken.first == 150.0
        assert (taken.waited, taken.longest_wait) == (12.0, 6.0)
        assert taken.last - taken.first == 12.0 + 3 * 4.0
        run = run_of(batches=4, waited_s=taken.waited, first_batch_s=taken.first - 100, seconds=taken.last - 100)
        assert run.waiting_share == 0.5

    def test_a_consumer_slower_than_its_data_never_waits(self) -> None:
        time = FakeTime()
        taken = consume(time.batches(1.0, 0.0, 0.0), np.inf, 4.0, clock=time, sleep=time.sleep)
        assert taken.waited == 0.0
        assert taken.last - taken.first == 8.0

    def test_stops_at_its_time_after_whole_batches(self) -> None:
        time = FakeTime()
        taken = consume(time.batches(*[1.0] * 50), 103.5, clock=time, sleep=time.sleep)
        assert (taken.batches, taken.exhausted) == (4, False)

    def test_stops_only_where_batches_that_are_made_together_end(self) -> None:
        time = FakeTime()
        taken = consume(time.batches(*[5.0, 0.0, 0.0] * 9), 106.0, together=3, clock=time, sleep=time.sleep)
        assert (taken.batches, taken.last - 100.0) == (6, 10.0)

    def test_one_batch_has_no_share_of_waiting(self) -> None:
        assert run_of(batches=1).waiting_share is None


class TestSummary:
    def test_is_of_medians_and_ratios(self) -> None:
        runs = [run_of(), run_of(seconds=4.0, cpu_s=1.0, peak_anonymous_bytes=90), run_of(seconds=1.6)]
        found = summary(runs, bytes_a_row=30.0, memcpy=160_000.0, sequential_read=20_000.0)
        assert found.rows_per_s == spread([500.0, 250.0, 625.0])
        assert found.nnz_per_s.median == 2500.0
        assert found.x_bytes_per_s.median == 40_000.0
        assert found.memcpy_share == 0.25
        assert found.stored_bytes_per_s.median == 15_000.0
        assert found.sequential_read_share == 0.75
        assert found.batch_ms == spread([100.0, 300.0, (1.6 - 1.0) / 10 * 1e3])
        assert found.cpu_s_per_million_rows == spread([3000.0, 1000.0, 3000.0])
        assert found.cores_busy == 1.5
        assert (found.peak_anonymous_bytes, found.peak_beyond_imports_bytes) == (90, 70)

    def test_one_run_cut_short_makes_all_incomplete(self) -> None:
        assert not summary([run_of(), run_of(complete=False)], 1.0, 1.0, 1.0).complete

    def test_what_the_system_does_not_tell_stays_unknown(self) -> None:
        silent = run_of(
            read_bytes=None, import_anonymous_bytes=None, peak_anonymous_bytes=None, peak_resident_bytes=7, batches=1
        )
        found = summary([silent], 1.0, 1.0, 1.0)
        assert (found.read_bytes, found.peak_anonymous_bytes, found.peak_beyond_imports_bytes) == (None, None, None)
        assert found.peak_resident_bytes == 7
        assert found.batch_ms is None


class TestProcess:
    def test_memory_is_seen_from_outside(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if not LINUX:
            pytest.skip("needs /proc")
        document = json.dumps(asdict(run_of()))
        code = f"import time; x = bytes(1) * (200 << 20); time.sleep(0.5); del x; print('''{document}''')"
        monkeypatch.setattr(process, "_COMMAND", code)
        assert 200 << 20 <= (run_apart().peak_anonymous_bytes or 0) < 300 << 20

    def test_one_that_is_killed_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "_COMMAND", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        with pytest.raises(ss.SparsestoreError, match="ended by SIGKILL"):
            run_apart()

    def test_one_that_fails_tells_its_last_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "_COMMAND", "raise SystemExit('out of luck')")
        with pytest.raises(ss.SparsestoreError, match="ended with status 1: out of luck"):
            run_apart()

    def test_a_damaged_store_is_the_error_that_it_is(self, tmp_path: Path) -> None:
        ss.convert(np.eye(500), tmp_path / "s.zarr")
        (victim,) = (tmp_path / "s.zarr" / "segments").glob("*/X/indices/c/0")
        content = bytearray(victim.read_bytes())
        content[3] ^= 4
        victim.write_bytes(content)
        with pytest.raises(ss.CorruptStoreError, match="X/indices/c/0"):
            measure(tmp_path / "s.zarr", repeat=1, step_ms=(), progress=False)

    @pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
    def test_one_ends_with_its_parent(self, blow: signal.Signals, path: Path) -> None:
        command = [sys.executable, "-m", "sparsestore", "bench", str(path), "--batch-size", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
            children: list[psutil.Process] = []
            while not children and started.poll() is None:
                children = psutil.Process(started.pid).children()
                time.sleep(0.005)
            started.send_signal(blow)
            out, error = started.communicate(timeout=30)
        if blow == signal.SIGINT:
            assert (started.returncode, out, error) == (130, "", "error: interrupted\n")
        assert children
        deadline = time.monotonic() + 5
        while any(map(runs, children)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(runs, children))


def runs(process: psutil.Process) -> bool:
    """Whether a process is there and has not ended, be it that nobody has taken note of its end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def as_text(report: Report, width: int) -> str:
    """The table as a pipe gets it."""
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(rendered(report))
    return capture.get()


class TestTable:
    @pytest.mark.parametrize("columns", [80, 120])
    def test_fits_the_terminal_and_has_every_figure(self, columns: int, report: Report) -> None:
        out = as_text(report, columns)
        assert max(map(len, out.splitlines())) <= columns
        for name in (
            "rows/s",
            "nnz/s",
            "memcpy",
            "first batch",
            "CPU",
            "peak memory",
            "read from disk",
            "1.5 ms steps",
        ):
            assert name in out, name

    def test_a_pipe_gets_plain_text(self, path: Path) -> None:
        out = sparsestore("bench", path, "--repeat", 1, "--step-time", 1, COLUMNS="200").stdout
        assert "5,000 rows x 40 features" in out
        assert "\x1b" not in out


@pytest.mark.slow
class TestPicture:
    @pytest.fixture(autouse=True)
    def needs_matplotlib(self) -> None:
        pytest.importorskip("matplotlib", reason="draws with matplotlib, the extra `bench`")

    def test_is_a_png_with_something_on_it(self, path: Path, tmp_path: Path) -> None:
        from matplotlib.image import imread

        target = tmp_path / "$x_y$.png"
        sparsestore("bench", path, "--repeat", 1, "--step-time", 1, "--png", target, "--json")
        assert target.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = imread(target)
        height, width = pixels.shape[:2]
        assert 400 <= height <= 1200
        assert 1000 <= width <= 2000
        inked = (pixels[..., :3] < 0.9).any(axis=2)
        assert 0.02 < inked.mean() < 0.5
        assert inked[:, : width // 2].any()
        assert inked[:, width // 2 :].any()

    @pytest.mark.parametrize("missing", ["warm", "cold", "waiting"])
    def test_is_drawn_of_what_there_is(self, missing: str, report: Report, tmp_path: Path) -> None:
        if missing == "waiting":
            report = replace(report, waiting=tuple(replace(waiting, share=None) for waiting in report.waiting))
        else:
            report = replace(
                report,
                epochs={state: found for state, found in report.epochs.items() if state != missing},
                waiting=tuple(waiting for waiting in report.waiting if waiting.state != missing),
                not_measured={missing: "for a test"},
            )
        picture.draw(report, tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")

    def test_a_place_that_can_not_be_written_is_refused_before_measuring(self, path: Path, tmp_path: Path) -> None:
        assert "no folder" in error_line("bench", path, "--png", tmp_path / "none" / "x.png")
        assert "is a folder" in error_line("bench", path, "--png", tmp_path)


class TestCommand:
    def test_a_picture_without_matplotlib_names_the_extra(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')\n")
        places = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        assert "sparsestore[bench]" in error_line("bench", path, "--png", tmp_path / "x.png", PYTHONPATH=places)

    def test_what_can_not_be_read_is_one_line(self, path: Path, tmp_path: Path) -> None:
        assert "none.zarr" in error_line("bench", tmp_path / "none.zarr")
        assert "batch_size" in error_line("bench", path, "--batch-size", 0)
        assert "repeat" in error_line("bench", path, "--repeat", 0)
        assert "no version 9" in error_line("bench", path, "--store-version", 9)

    def test_an_empty_store_is_an_error(self, tmp_path: Path) -> None:
        with ss.create(tmp_path / "s.zarr", n_features=3):
            pass
        assert "no rows" in error_line("bench", tmp_path / "s.zarr")

    def test_dense_batches_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        x = scipy.sparse.csr_array((np.ones(4096), (np.arange(4096), np.arange(4096))), shape=(4096, 2**30))
        ss.convert(x, tmp_path / "s.zarr")
        assert "a dense batch of 4096 rows" in error_line("bench", tmp_path / "s.zarr", "--layout", "dense")

    def test_wrong_usage_exits_with_2(self, path: Path) -> None:
        sparsestore("bench", status=2)
        sparsestore("bench", path, "--layout", "round", status=2)
