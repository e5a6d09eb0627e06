"""The examples run as they stand, and models trained from a store are as good as they should be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def example(name: str, folder: Path, *arguments: str, **environment: str) -> str:
    """Output of an example, run in another folder; it must succeed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_agaricus_is_learned_alike_in_both_layouts(tmp_path: Path) -> None:
    out = example("agaricus.py", tmp_path)
    assert min(map(float, re.findall(r"accuracy ([0-9.]+) on rows", out))) >= 0.99
    losses = [float(loss) for loss in re.findall(r" loss: ([0-9.]+)", out)]
    assert losses[:3] == losses[3:]


def test_a9a_reaches_the_accuracy_of_a_linear_model(tmp_path: Path) -> None:
    found = re.search(r"accuracy ([0-9.]+), area under the curve ([0-9.]+)", example("a9a.py", tmp_path))
    assert found
    assert float(found[1]) >= 0.845
    assert float(found[2]) >= 0.895


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a9a_is_learned_as_well_by_other_frameworks(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(framework, reason=f"needs {framework}")
    out = example(f"{framework}_a9a.py", tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", out)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert float(out.split("accuracy ")[1].split()[0]) >= 0.845


@pytest.mark.parametrize(
    "backend", ["jax", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tensorflow", "torch"))]
)
def test_agaricus_is_learned_on_every_back_end_of_keras(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend, reason=f"needs {backend}")
    out = example("keras_backends.py", tmp_path, KERAS_BACKEND=backend)
    assert float(out.split("accuracy ")[-1].split()[0]) >= 0.99
    assert f"{backend}, " in out


def test_hundred_million_rows_runs_at_a_million(tmp_path: Path) -> None:
    out = example("hundred_million_rows.py", tmp_path, "1000000")
    assert out.startswith("1,000,000 rows, 9,999 entries, converted in ")
    assert int(re.search(r"signs right ([0-9]+) of 100", out)[1]) >= 70  # type: ignore[index]


def test_examples_are_short() -> None:
    assert {
        path.name: n for path in (ROOT / "examples").glob("*.py") if (n := len(path.read_text().splitlines())) > 60
    } == {}


@pytest.mark.parametrize(
    ("name", "metric", "bar"),
    [
        pytest.param("text.py", "accuracy", 0.86, marks=pytest.mark.slow),
        pytest.param("clicks.py", "area under the curve", 0.55, marks=pytest.mark.slow),
        ("cells.py", "area under the curve", 0.8),
    ],
)
def test_rows_not_trained_on_are_told_apart(name: str, metric: str, bar: float, tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs h5py")
    out = example(name, tmp_path)
    assert float(out.split(metric)[-1].split()[0].rstrip(",")) >= bar


def test_ratings_are_predicted_better_than_by_means(tmp_path: Path) -> None:
    out = example("ratings.py", tmp_path)
    assert float(out.split("squared error")[-1].split()[0]) <= 0.93


def test_a_store_is_taken_by_partial_fit_of_scikit_learn(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    assert float(example("sklearn_partial_fit.py", tmp_path).split("accuracy")[-1].split()[0]) >= 0.84
