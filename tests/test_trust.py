"""A few cases of each campaign of tests/trust, and, marked, the sample of `make test-trust`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from trust import campaign
from trust.__main__ import NAMES
from trust.__main__ import campaign as named

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="kills, traces and limits as Linux has them"
)


@pytest.mark.parametrize("name", ["flips", "structure", "kills", "losses"])
def test_a_few_cases_show_no_fault(name: str, tmp_path: Path) -> None:
    chosen = named(name)
    cases = chosen.drawn(chosen.few)
    tally = campaign.in_process(chosen, cases)
    assert tally.faults == []
    assert tally.cases == len(cases)


@pytest.mark.trust
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_shows_no_fault(name: str) -> None:
    chosen = named(name)
    cases = chosen.drawn(chosen.sample)
    tally = campaign.run(chosen, cases, workers=os.cpu_count() or 1)
    assert tally.faults == []
    assert tally.cases == len(cases)
