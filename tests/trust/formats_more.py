"""More inputs of the sources that this package parses itself, as `formats` makes them: half an hour of each."""

from __future__ import annotations

from functools import partial

from trust import formats
from trust.campaign import Campaign

CAMPAIGN = Campaign(
    name="formats_more",
    about="as formats, of text and records alone, other inputs",
    total=len(formats.OWN) * 200_000,
    sample=1_100,
    few=66,
    unit=len(formats.OWN) * 360,
    run=partial(formats.run, of=formats.OWN, behind=formats.CAMPAIGN.total),
    limit_s=1800,
)
