"""Longer lives of `stateful`."""

from __future__ import annotations

from trust.campaign import Campaign
from trust.stateful import ABOUT, lives

CAMPAIGN = Campaign(
    "stateful_long", f"{ABOUT}: 500 steps", total=1000, sample=0, few=0, unit=5, run=lives(500), limit_s=900
)
