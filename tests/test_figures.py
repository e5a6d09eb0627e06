"""What is promised at full size: the quality of the shuffle, and a hundred million rows. Minutes each."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def output(*command: str) -> str:
    return subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_sorted_rows_train_as_well_as_a_full_permutation() -> None:
    found = json.loads(output("bench/shuffle.py", "--json"))
    for name in ("as stored", "shuffled once"):
        low, high = found[name]["interval"]
        assert low <= 0 <= high, (name, found[name])
        assert found[name]["drift"] <= 2
    assert found["none"]["loss"] > 2 * found["full"]["loss"]  # the order matters here


@pytest.mark.slow
def test_a_hundred_million_rows_stay_within_their_bounds() -> None:
    out = output("bench/hundred_million_rows.py")
    assert float(re.search(r"store ([0-9.]+) MB", out)[1]) <= 40
    assert int(re.search(r"peak ([0-9]+) MiB of anonymous memory beyond", out)[1]) <= 600
    assert max(int(peak) for peak in re.findall(r"peak ([0-9]+) MiB anonymous", out)) <= 1200
    assert all(int(right) == 100 for right in re.findall(r"signs right ([0-9]+) of 100", out))
