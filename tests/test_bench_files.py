"""The benches run as they stand, on small data, and refuse to time an epoch that is not whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import postgresql
import pytest

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
PEERS = BENCH / "peers"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="benches read /proc")


def python(*arguments: object, search: Path | None = None, allowed: tuple[int, ...] = (0,)) -> str:
    """Output of a fresh Python that sees the package, and what lies in `search`."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, search) if folder)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in allowed, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def tables(name: str, home: Path, *arguments: str, allowed: tuple[int, ...] = (0,)) -> list[list[dict[str, Any]]]:
    """Rows of each table of a bench, one round on small data; afterwards its stores are gone."""
    out = python(BENCH / name, "--home", home, "--rounds", "1", "--json", *arguments, allowed=allowed)
    assert list(home.glob("bench-*")) == []
    found = json.loads(out)
    assert "cores" in found["machine"]
    return [table["rows"] for table in found["tables"]]


@pytest.mark.slow
def test_read_measures_every_reader_and_its_memory(tmp_path: Path) -> None:
    speed, stored, anonymous = tables("read.py", tmp_path, "--scale", "0.002", "--data", "cells")
    readers = {(row["case"], row["reader"]) for row in speed}
    sparse = {("sparse, batch 4096", name) for name in ("scipy-mmap", "raw", "raw, 2nd epoch", "compact", "as stored")}
    assert readers > sparse
    assert ("dense, batch 4096", "raw") in readers
    assert all(row["to scipy-mmap"] == 1 for row in speed if row["reader"] == "scipy-mmap")
    assert [row["store"] for row in stored] == ["raw", "compact", "as stored"]
    assert all(row["drift S"] <= 2 for row in stored)
    assert all(row["beyond import"]["median"] > 0 for row in anonymous)


def test_read_refuses_an_epoch_that_lacks_a_row(tmp_path: Path) -> None:
    script = """
import sys
import read
from stage import Source, data_set
source = Source(data_set(read.Path(sys.argv[1]), "quality", 0.001))
batches = list(read.scipy_mmap.batches(None, source, 64, "sparse", 0))
read.timed(batches, source, "sparse", 0, 0)
try:
    read.timed(batches[1:], source, "sparse", 0, 0)
except RuntimeError as error:
    print(error)
"""
    assert "the epoch had (936," in python("-c", script, tmp_path, search=BENCH)


@pytest.mark.slow
def test_convert_measures_sources_in_both_orders(tmp_path: Path) -> None:
    (rows,) = tables("convert.py", tmp_path, "--scale", "0.0005", "--source", "svmlight", "mtx")
    assert {(row["source"], row["rows"]) for row in rows} >= {
        (source, order) for source in ("svmlight", "mtx") for order in ("in order", "shuffled")
    }
    assert all(row["CSR MB/s"]["median"] > 0 for row in rows)


@pytest.mark.slow
def test_parse_holds_text_against_other_readers(tmp_path: Path) -> None:
    (rows,) = tables("parse.py", tmp_path, "--scale", "0.001", "--mb", "0.5", "--what", "clicks", "csv", "arff")
    rivals = {"clicks": "scikit-learn", "csv": "pandas", "arff": "liac-arff"}
    assert {row["file"]: row["rival"] for row in rows} == rivals
    assert all(row["one core / rival"] > 0 for row in rows)


@pytest.mark.slow
def test_transpose_holds_the_file_against_a_copy_and_scipy(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (rows,) = tables("transpose.py", tmp_path, "--scale", "0.01", "--max-bytes", "24MiB")
    assert [row["way"] for row in rows] == ["convert", "convert", "copy", "tocsr"]
    assert all(row["convert / it"] > 0 for row in rows)


@pytest.mark.slow
def test_triples_are_held_against_duckdb_and_scipy(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    command = [
        sys.executable,
        BENCH / "triples.py",
        "--millions",
        "1",
        "--rounds",
        "1",
        "--folder",
        tmp_path,
        "--check",
    ]
    done = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found) == {"sparsestore", "duckdb"}
    assert all(way["seconds"] > 0 for way in found.values())


@pytest.mark.slow
def test_sql_is_held_against_reading_the_answer(tmp_path: Path) -> None:
    pytest.importorskip("adbc_driver_postgresql")
    if postgresql.programs() is None:
        pytest.skip("PostgreSQL's server is not installed")
    command = [sys.executable, BENCH / "sql.py", "--millions", "0.02", "--rounds", "1", "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found) == {"sparsestore", "drained"}
    assert all(way["peak_mb"] > 0 for way in found.values())


@pytest.mark.slow
def test_memory_is_watched_format_by_format(tmp_path: Path) -> None:
    (rows,) = tables("memory.py", tmp_path, "--rows", "200", "--only", "svmlight", "csv, texts", "npy")
    assert [row["format"] for row in rows] == ["svmlight", "csv, texts", "npy"]
    assert all(row["10x peak MiB"] > 0 for row in rows)


@pytest.mark.slow
def test_scale_compares_the_cost_of_a_row_over_the_sizes(tmp_path: Path) -> None:
    rows, ratios = tables("scale.py", tmp_path, "--rows", "20000", "200000")
    assert [row["rows"] for row in rows] == [20_000, 200_000]
    costs = [row["ns/row"]["median"] for row in rows]
    assert ratios[0] == {"cost": "ns/row", "dearest to cheapest": pytest.approx(max(costs) / min(costs))}


@pytest.mark.slow
def test_tight_holds_an_epoch_against_the_disk(tmp_path: Path) -> None:
    options = ["--scale", "0.002", "--data", "clicks", "--tight", "1000"]  # room for all: the data are small
    try:
        (rows,) = tables("tight.py", tmp_path, *options)
    except AssertionError as failure:
        if "cgroup" in str(failure):
            pytest.skip("no memory cgroup that this user may make")
        raise
    assert [(row["reader"], row["killed"], row["late"]) for row in rows] == [
        ("sequential", None, None),
        ("store", None, None),
    ]


@pytest.mark.slow
def test_startup_measures_the_first_batch_of_each_data_set(tmp_path: Path) -> None:
    (rows,) = tables("startup.py", tmp_path, "--scale", "0.001", "--data", "clicks", allowed=(0, 1))
    first = [row["data"] for row in rows if row["what"] == "open to first batch"]
    assert first == ["1,000 rows", "clicks@0.001"]


@pytest.mark.slow
def test_verify_is_held_against_reading_the_same_files(tmp_path: Path) -> None:
    (rows,) = tables("verify.py", tmp_path, "--scale", "0.002", "--data", "clicks")
    warm = [row for row in rows if row["files"] == "warm"]
    assert [(row["data"], row["profile"]) for row in warm] == [("clicks", "raw"), ("clicks", "compact")]
    assert all(min(row["of all"], row["of 1"]) > 0 for row in rows)


@pytest.mark.slow
def test_checks_are_held_against_none(tmp_path: Path) -> None:
    rows, alone = tables("checks.py", tmp_path, "--scale", "0.002", "--data", "clicks")
    assert [row["check"] for row in alone] == ["never", "first"]
    assert [row["check"] for row in rows] == ["never", "first", "always"] * 2
    assert all(row["later epoch, time to never"] == 1 for row in rows if row["check"] == "never")
    assert all(row["first epoch, CPU to never"] > 0 for row in rows)


@pytest.mark.slow
def test_to_tf_is_held_against_its_floor_and_the_seed_against_its_generator(tmp_path: Path) -> None:
    options = ["--scale", "0.002", "--batch", "256", "--batches", "0"]
    alone, seed = tables("to_tf.py", tmp_path, "alone", "seed", *options)
    assert [row["feed"] for row in alone] == ["floor", "to_tf", "loader"]
    assert [row["feed"] for row in seed] == ["generator", "to_tf"]
    assert {row["rows"]["median"] for row in seed} == {200_000}
    ratio = seed[1]["rows/s"]["median"] / seed[0]["rows/s"]["median"]
    assert seed[1]["rows/s, to generator"] == pytest.approx(ratio)


@pytest.mark.slow
def test_fit_is_held_against_cached_batches_and_a_matrix_in_memory(tmp_path: Path) -> None:
    (rows,) = tables("to_tf.py", tmp_path, "fit", "--scale", "0.002", "--batch", "256")
    assert [row["feed"] for row in rows] == ["keras-cached", "to_tf", "keras-fit-csr"]
    assert rows[0]["to keras-cached"] == rows[2]["to keras-fit-csr"] == 1


@pytest.mark.parametrize("module", ["sparsestore_", "sparsestore_asis", "sparsestore_compact"])
@pytest.mark.slow
def test_adapter_of_the_comparison_gives_the_rows_of_the_source(module: str, tmp_path: Path) -> None:
    python(PEERS / "data.py", tmp_path, "quality", "--scale", "0.1")
    store = tmp_path / "store"
    store.mkdir()

    def worker(**spec: Any) -> dict[str, Any]:
        spec = {"module": module, "data": f"{tmp_path}/quality@0.1", "store": str(store), "cap": 60, **spec}
        out = python(PEERS / "worker.py", json.dumps(spec), search=PEERS)
        return json.loads(out.splitlines()[-1].removeprefix("RESULT "))

    converted = worker(kind="convert")
    assert converted["drift"] <= 2
    assert (converted["block_rows"] < 4096) == (module == "sparsestore_asis")
    assert worker(kind="check", batch=4096)["rows_equal_source"]
    for form in ("sparse", "dense"):
        assert worker(kind="epoch", batch=4096, form=form)["complete"]


def test_every_peer_has_its_adapter() -> None:
    peers = json.loads((PEERS / "peers.json").read_text(encoding="utf-8"))["peers"]
    assert {"sparsestore", "sparsestore-asis", "sparsestore-compact"} < set(peers)
    assert [name for name, peer in peers.items() if not (PEERS / "adapters" / f"{peer['module']}.py").is_file()] == []


def test_every_bench_stands_in_the_readme_with_its_command() -> None:
    readme = (BENCH / "README.md").read_text(encoding="utf-8")
    benches = {path.name for path in BENCH.glob("*.py")} - {"stage.py"}
    assert set(re.findall(r"^\| `(\w+\.py)` \|", readme, re.MULTILINE)) == benches
    assert [name for name in benches if f"python bench/{name}" not in readme] == []
    assert re.search(r"peers\.py run .*sparsestore-asis", readme)
