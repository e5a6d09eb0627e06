"""The examples run as they stand, and models trained from a store are as good as they should be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def example(name: str, folder: Path, *arguments: str) -> str:
    """Output of an example, run in another folder; it must succeed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


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


def test_hundred_million_rows_runs_at_a_million(tmp_path: Path) -> None:
    out = example("hundred_million_rows.py", tmp_path, "--rows", "1000000")
    assert "entries 9,999" in out or "entries 10,000" in out
    assert re.findall(r"^(sparse|dense): ", out, re.MULTILINE) == ["sparse", "dense"]
    assert all(int(right) >= 70 for right in re.findall(r"signs right ([0-9]+) of 100", out))
