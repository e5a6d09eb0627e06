"""Longer races of `appenders`."""

from __future__ import annotations

from trust.appenders import ABOUT, races
from trust.campaign import Campaign

CAMPAIGN = Campaign(
    "appenders_long",
    f"{ABOUT}: 1,000 commits each",
    total=2,
    sample=0,
    few=0,
    unit=1,
    run=races(1000),
    limit_s=7200,
    alone=True,
)
