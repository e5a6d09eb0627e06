"""The command line as people meet it: a process, its output, its exit status."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import sparsestore as ss
from sparsestore.sources.registry import FORMATS, keywords
from sparsestore.sources.text import COMPRESSIONS

INSTALLED = bool(list(importlib.metadata.Distribution.discover(name="sparsestore")))
SVMLIGHT = "".join(f"{row % 2} {row % 5 + 1}:1 {row % 7 + 6}:2.5\n" for row in range(60))


def sparsestore(*arguments: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, expect its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "sparsestore", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", **environment},
    )
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def error_line(*arguments: object, status: int = 1) -> str:
    """The one line that a failing command prints."""
    done = sparsestore(*arguments, status=status)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "x.svm"
    path.write_text(SVMLIGHT)
    return path


@pytest.fixture
def own(text: Path, tmp_path: Path) -> Path:
    """A store of a test's own, of that text, with two versions."""
    for _ in range(2):
        ss.convert(text, tmp_path / "s.zarr", overwrite=True)
    return tmp_path / "s.zarr"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 1000 x 50 with labels, for commands that only read."""
    path = tmp_path_factory.mktemp("cli") / "s.zarr"
    x = scipy.sparse.random_array((1000, 50), density=0.1, format="csr", rng=np.random.default_rng(0))
    ss.convert(x, path, columns={"y": np.arange(1000) % 2})
    return path


class TestConvert:
    def test_writes_a_store_and_prints_its_facts(self, text: Path, tmp_path: Path) -> None:
        out = sparsestore("convert", text, tmp_path / "s.zarr").stdout
        assert "60 rows x 12 features" in out
        assert ss.open(tmp_path / "s.zarr").shape == (60, 12)

    def test_json_is_one_document_on_standard_output(self, text: Path, tmp_path: Path) -> None:
        done = sparsestore("convert", text, tmp_path / "s.zarr", "--json")
        facts = json.loads(done.stdout)
        assert (facts["rows"], facts["features"], facts["nnz"], facts["version"]) == (60, 12, 120, 1)
        assert facts["path"] == str(tmp_path / "s.zarr")
        assert facts["columns"].keys() == {"y"}
        assert done.stderr == ""

    def test_options_reach_the_format(self, text: Path, tmp_path: Path) -> None:
        sparsestore("convert", text, tmp_path / "s.zarr", "--n-features", 40, "--zero-based", "--dtype", "float64")
        store = ss.open(tmp_path / "s.zarr")
        assert store.shape == (60, 40)
        assert store.dtype == np.float64
        assert store[0].indices.tolist() == [1, 6]

    def test_shuffle_keeps_rows_and_remembers_where_they_were(self, text: Path, tmp_path: Path) -> None:
        sparsestore("convert", text, tmp_path / "s.zarr", "--shuffle", "--seed", 3, "--profile", "compact")
        plain, store = ss.convert(text, tmp_path / "plain.zarr"), ss.open(tmp_path / "s.zarr")
        row_id = store.column("row_id")[:]
        assert sorted(row_id) == list(range(60))
        assert row_id.tolist() != list(range(60))
        assert (store[:] != plain[row_id]).nnz == 0

    def test_existing_store_needs_overwrite(self, text: Path, own: Path) -> None:
        assert "overwrite" in error_line("convert", text, own)
        assert json.loads(sparsestore("convert", text, own, "--overwrite", "--json").stdout)["version"] == 3

    def test_unknown_format_names_those_known(self, tmp_path: Path) -> None:
        (tmp_path / "x.what").write_text("")
        assert re.search(r"svmlight.*npz", error_line("convert", tmp_path / "x.what", tmp_path / "s.zarr"))
        assert not (tmp_path / "s.zarr").exists()

    def test_option_that_a_format_lacks_is_refused(self, tmp_path: Path) -> None:
        scipy.sparse.save_npz(tmp_path / "x.npz", scipy.sparse.csr_array(np.eye(3)))
        line = error_line("convert", tmp_path / "x.npz", tmp_path / "s.zarr", "--one-based")
        assert "zero_based" in line

    def test_bad_input_names_file_and_line_and_leaves_nothing(self, text: Path, tmp_path: Path) -> None:
        text.write_text(SVMLIGHT + "1 3:x\n")
        assert f"{text}:61: " in error_line("convert", text, tmp_path / "s.zarr")
        assert sorted(tmp_path.iterdir()) == [text]

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        assert "nowhere.svm" in error_line("convert", tmp_path / "nowhere.svm", tmp_path / "s.zarr")

    def test_help_lists_every_format_its_suffixes_and_options(self) -> None:
        out = sparsestore("convert", "--help").stdout
        table = out[out.index("options it knows") : out.index("svmlight, libffm and vw have")].splitlines()[1:]
        starts = [at for at, line in enumerate(table) if line[4:5].strip()] + [len(table)]
        parts = {table[a].split()[0]: " ".join(table[a:b]) for a, b in itertools.pairwise(starts)}
        for name, known in FORMATS.items():
            part = parts[name]
            assert [
                text for text in (*known.suffixes, *known.schemes) if text not in part and text != "postgres:"
            ] == []
            if known.table:
                assert part.endswith("as typed tables, below")
                part += parts["typed"]
            options = set()
            for shape in known.shapes:
                for loaded in known.load({shape: 0}):
                    options |= {f"--{option.replace('_', '-')}" for option in (keywords(loaded) if loaded else ())}
            assert set(re.findall(r"--[a-z-]+", part)) - {"--one-based"} == options, name
        assert [suffix for suffix in COMPRESSIONS if suffix not in out] == []

    def test_help_has_two_worked_examples(self) -> None:
        out = sparsestore("convert", "--help").stdout
        assert len(re.findall(r"^\s+sparsestore convert \S+ \S+", out, re.MULTILINE)) >= 2

    def test_columns_come_from_npy_files(self, tmp_path: Path) -> None:
        scipy.sparse.save_npz(tmp_path / "x.npz", scipy.sparse.csr_array(np.eye(3)))
        np.save(tmp_path / "y.npy", [3, 1, 2])
        np.save(tmp_path / "w.npy", [0.5, 1.0, 2.0])
        columns = ("--column", f"y={tmp_path}/y.npy", "--column", f"sample_weight={tmp_path}/w.npy")
        sparsestore("convert", tmp_path / "x.npz", tmp_path / "s.zarr", *columns)
        store = ss.open(tmp_path / "s.zarr")
        assert store.column("y")[:].tolist() == [3, 1, 2]
        assert store.column("sample_weight")[:].tolist() == [0.5, 1.0, 2.0]
        sparsestore("convert", tmp_path / "x.npz", tmp_path / "t.zarr", "--column", "labels.npy", status=2)
        twice = sparsestore("convert", tmp_path / "x.npz", tmp_path / "t.zarr", *columns, *columns[:2], status=2)
        assert "the column 'y' has a file already" in twice.stderr

    def test_multilabel_takes_a_number_or_all(self, tmp_path: Path) -> None:
        path = tmp_path / "x.svm"
        path.write_text("0,2 1:1\n1 2:1\n")
        sparsestore("convert", path, tmp_path / "s.zarr", "--multilabel", 4)
        assert ss.open(tmp_path / "s.zarr").column("y")[:].tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
        sparsestore("convert", path, tmp_path / "s.zarr", "--multilabel", "all", "--overwrite")
        assert ss.open(tmp_path / "s.zarr").column("y")[:].tolist() == [[1, 0, 1], [0, 1, 0]]
        sparsestore("convert", path, tmp_path / "s.zarr", "--multilabel", "some", status=2)


class TestAppend:
    def test_makes_a_new_version_with_more_rows(self, text: Path, own: Path) -> None:
        facts = json.loads(sparsestore("append", text, own, "--json").stdout)
        assert (facts["rows"], facts["version"]) == (120, 3)
        assert (ss.open(own)[60:] != ss.open(own, version=2)[:]).nnz == 0

    def test_missing_store_is_an_error(self, text: Path, tmp_path: Path) -> None:
        assert "s.zarr" in error_line("append", text, tmp_path / "s.zarr")


class TestInfo:
    def test_prints_aligned_plain_text_in_a_pipe(self, path: Path) -> None:
        out = sparsestore("info", path).stdout
        assert "1,000 rows x 50 features" in out
        assert "\x1b" not in out

    def test_says_what_holds_for_all_rows_and_what_for_some(self, tmp_path: Path) -> None:
        store, more = tmp_path / "s.zarr", tmp_path / "x.npy"
        np.save(more, np.eye(9))
        sparsestore("convert", more, store, "--shuffle", "--seed", 3)
        sparsestore("append", more, store, "--shuffle", "--seed", 4)
        assert "shuffled once, seed 3" in sparsestore("info", store).stdout
        sparsestore("append", more, store)
        assert "some segments shuffled once, the others as in the source" in sparsestore("info", store).stdout
        assert json.loads(sparsestore("info", store, "--json").stdout)["shuffled"] is None

    def test_json_has_the_facts(self, path: Path) -> None:
        facts = json.loads(sparsestore("info", path, "--json").stdout)
        assert {"path", "version", "rows", "features", "nnz", "dtype", "columns"} <= facts.keys()
        assert facts["nnz"] == 5000

    def test_missing_store_is_an_error(self, tmp_path: Path) -> None:
        assert "none.zarr" in error_line("info", tmp_path / "none.zarr")

    def test_missing_version_is_an_error(self, path: Path) -> None:
        assert "9" in error_line("info", path, "--store-version", 9)


class TestHead:
    def test_shows_columns_and_entries(self, path: Path) -> None:
        out = sparsestore("head", path, "-n", 2).stdout.splitlines()
        assert len(out) == 2
        assert out[1].startswith("1  y=1  ")

    def test_a_column_may_have_the_name_of_an_array(self, tmp_path: Path) -> None:
        ss.convert(np.eye(2), tmp_path / "s.zarr", columns={"data": [7, 8]})
        assert sparsestore("head", tmp_path / "s.zarr").stdout.splitlines() == ["0  data=7  0:1.0", "1  data=8  1:1.0"]

    def test_json_equals_the_rows(self, path: Path) -> None:
        rows = json.loads(sparsestore("head", path, "-n", 3, "--json").stdout)
        x = ss.open(path)[:3]
        assert [row["y"] for row in rows] == [0, 1, 0]
        assert [row["indices"] for row in rows] == [x[[i]].indices.tolist() for i in range(3)]
        assert np.concatenate([row["data"] for row in rows]).tolist() == x.data.tolist()

    def test_more_rows_than_there_are_shows_all(self, own: Path) -> None:
        assert len(sparsestore("head", own, "-n", 1000).stdout.splitlines()) == 60

    def test_values_that_json_lacks_become_strings(self, tmp_path: Path) -> None:
        ss.convert(np.array([[np.nan, np.inf]]), tmp_path / "s.zarr")
        assert json.loads(sparsestore("head", tmp_path / "s.zarr", "--json").stdout)[0]["data"] == ["nan", "inf"]


class TestPlan:
    def test_says_what_an_epoch_does(self, path: Path) -> None:
        out = sparsestore("plan", path, "--batch-size", 32, "--seed", 0).stdout
        assert "window" in out
        assert "block" in out

    def test_json_is_one_document(self, path: Path) -> None:
        assert json.loads(sparsestore("plan", path, "--batch-size", 32, "--no-shuffle", "--json").stdout)

    def test_bad_batch_size_is_an_error(self, path: Path) -> None:
        assert "batch_size" in error_line("plan", path, "--batch-size", 0)


class TestVerify:
    def test_sound_store_exits_with_0_and_says_what_was_looked_at(self, path: Path) -> None:
        assert re.search(r"sound \(manifest, and lengths of \d+ objects; --deep", sparsestore("verify", path).stdout)
        assert re.search(
            r"sound \(every byte of \d+ objects, [\d,]+ bytes", sparsestore("verify", path, "--deep").stdout
        )

    def test_json_says_what_was_found_and_looked_at(self, path: Path) -> None:
        fast = json.loads(sparsestore("verify", path, "--json").stdout)
        deep = json.loads(sparsestore("verify", path, "--deep", "--json").stdout)
        assert fast.keys() == deep.keys()
        assert (fast["deep"], deep["deep"]) == (False, True)
        assert fast["path"] == str(path)
        assert (fast["version"], fast["versions"], fast["sound"], fast["problems"]) == (1, [1], True, [])
        files = [file for file in path.rglob("*") if file.is_file() and "writers" not in file.parts]
        assert fast["objects"] == deep["objects"] == len(files)
        assert deep["bytes"] == sum(file.stat().st_size for file in (path / "segments").rglob("*") if file.is_file())

    def test_damaged_store_lists_problems_and_exits_with_1(self, own: Path) -> None:
        newest = json.loads((own / "versions/00000002.json").read_text())["segments"][0][0]
        victim = own / "segments" / newest / "X/indices/c/0"
        content = bytearray(victim.read_bytes())
        content[3] ^= 4
        victim.write_bytes(content)
        assert "sound" in sparsestore("verify", own).stdout  # lengths are as they were
        lines = sparsestore("verify", own, "--deep", status=1).stdout.splitlines()
        assert "indices" in lines[0]
        assert "1 problem (every byte" in lines[1]
        found = json.loads(sparsestore("verify", own, "--deep", "--json", status=1).stdout)
        assert found["sound"] is False
        assert found["problems"] == lines[:1]

    def test_all_versions_or_one(self, own: Path) -> None:
        older = json.loads((own / "versions/00000001.json").read_text())["segments"][0][0]
        (own / "segments" / older / "X/indices/c/0").unlink()
        assert "sound" in sparsestore("verify", own).stdout
        line = sparsestore("verify", own, "--store-version", 1, status=1).stdout.splitlines()[0]
        assert "version 1" in line
        found = json.loads(sparsestore("verify", own, "--all-versions", "--json", status=1).stdout)
        assert found["versions"] == [1, 2]
        assert found["problems"] == [line]

    def test_damaged_manifest_is_a_problem_like_others(self, own: Path) -> None:
        manifest = own / "versions/00000002.json"
        manifest.write_bytes(manifest.read_bytes().replace(b'"nnz"', b'"nnx"'))
        found = json.loads(sparsestore("verify", own, "--json", status=1).stdout)
        (problem,) = found["problems"]
        assert "versions/00000002.json" in problem

    def test_missing_store_or_version_is_an_error(self, own: Path, tmp_path: Path) -> None:
        assert "none.zarr" in error_line("verify", tmp_path / "none.zarr")
        assert "there is no version 9" in error_line("verify", own, "--store-version", 9)

    @pytest.mark.parametrize("redirected", [">&-", ">&- 2>&-"])
    def test_what_nobody_reads_changes_no_status(self, own: Path, redirected: str) -> None:
        command = f'"$0" -m sparsestore "$@" {redirected}'
        for arguments, status in ((["verify", own], 0), (["info", own], 0), (["verify", own / "none.zarr"], 1)):
            full = ["sh", "-c", command, sys.executable, *map(str, arguments)]
            done = subprocess.run(full, capture_output=True, text=True, check=False)
            assert done.returncode == status, done.stderr
            assert "Traceback" not in done.stderr

    def test_interrupt_exits_with_130_at_once(self, path: Path) -> None:
        """Interrupted while its threads wait for a slow disk."""
        code = """
import os, signal, sys, threading, time
from sparsestore import cli, integrity

def slow(task):
    assert threading.current_thread() is not threading.main_thread()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    return *task, None, ""

integrity.whole_object = slow
sys.argv[1:] = ["verify", sys.argv[1], "--deep"]
cli.main()
"""
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")
        assert time.monotonic() - begin < 10  # there are 30 objects


class TestGc:
    def test_dry_run_removes_nothing(self, own: Path) -> None:
        before = sorted(own.rglob("*"))
        assert "would remove" in sparsestore("gc", own, "--older-than", "0s", "--dry-run").stdout
        assert sorted(own.rglob("*")) == before

    def test_old_versions_go(self, own: Path) -> None:
        assert json.loads(sparsestore("gc", own, "--older-than", "0s", "--json").stdout)["removed"]
        assert ss.open(own).shape == (60, 12)
        assert ss.open(own).versions == [2]
        assert "nothing" in sparsestore("gc", own).stdout

    def test_bad_age_is_an_error(self, own: Path) -> None:
        assert "older_than" in error_line("gc", own, "--older-than", "soon")


class TestEveryCommand:
    @pytest.mark.skipif(not INSTALLED, reason="run from a source tree, which has no version of its own")
    def test_version(self) -> None:
        assert sparsestore("--version").stdout == f"sparsestore {ss.__version__}\n"

    def test_no_command_is_wrong_usage_and_prints_help(self) -> None:
        done = sparsestore(status=2)
        assert "convert" in done.stdout + done.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            pytest.param(["fly"], id="unknown-command"),
            pytest.param(["info"], id="missing-argument"),
            pytest.param(["info", "s.zarr", "--what"], id="unknown-option"),
            pytest.param(["plan", "s.zarr", "--batch-size", "many"], id="not-a-number"),
            pytest.param(["convert", "a.npz", "b.zarr", "--profile", "huge"], id="unknown-profile"),
        ],
    )
    def test_wrong_usage_exits_with_2(self, arguments: list[str]) -> None:
        done = sparsestore(*arguments, status=2)
        assert done.stdout == ""
        assert "Traceback" not in done.stderr

    def test_traceback_only_on_request(self, tmp_path: Path) -> None:
        assert "Traceback" not in sparsestore("info", tmp_path / "s.zarr", status=1).stderr
        assert "Traceback" in sparsestore("--debug", "info", tmp_path / "s.zarr", status=1).stderr
        assert "Traceback" in sparsestore("info", tmp_path / "s.zarr", status=1, SPARSESTORE_DEBUG="1").stderr

    def test_reader_that_goes_away_is_quiet(self, path: Path) -> None:
        command = [sys.executable, "-m", "sparsestore", "head", str(path), "-n", "1000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == ""

    @pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX closes the streams")
    @pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
    def test_daemon_without_standard_streams_converts(self, text: Path, tmp_path: Path, closed: str) -> None:
        convert = [sys.executable, "-m", "sparsestore", "convert", str(text), str(tmp_path / "s.zarr")]
        command = ["sh", "-c", f'"$@" {closed}', "sh", *convert]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (found.returncode, found.stderr.count("Error")) == (0, 0)
        assert ss.open(tmp_path / "s.zarr").verify() == []

    def test_interrupt_exits_with_130_and_leaves_nothing(self, tmp_path: Path) -> None:
        """Interrupted when it sorts rows into buckets and has most of its input before it."""
        source, store = tmp_path / "x.svm", tmp_path / "s.zarr"
        source.write_text("1 1:1 2:1 3:1\n" * 2_000_000)
        command = [sys.executable, "-m", "sparsestore", "convert", str(source), str(store), "--shuffle"]
        command += ["--max-bytes", "64M"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while not any(tmp_path.glob("s.zarr/writers/*.scratch")) and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
        assert process.returncode == 130, error
        assert error == "error: interrupted\n"
        assert sorted(tmp_path.iterdir()) == [source]
