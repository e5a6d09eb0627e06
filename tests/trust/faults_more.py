"""The faults of `faults` in the scenes that came later: optimizing and exporting."""

from __future__ import annotations

from functools import partial

from trust import faults
from trust.campaign import Campaign
from trust.scenes import MORE_SCENES

CAMPAIGN = Campaign(
    name="faults_more",
    about="as faults, of optimize and export",
    total=faults.total(MORE_SCENES),
    sample=40,
    few=6,
    unit=100,
    run=partial(faults.run, of=MORE_SCENES),
)
