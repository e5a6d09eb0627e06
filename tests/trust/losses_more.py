"""The losses of `losses` in a scene that came later: optimizing."""

from __future__ import annotations

from functools import partial

from trust import losses
from trust.campaign import Campaign
from trust.scenes import MORE_SCENES

OPTIMIZE = MORE_SCENES[:1]

CAMPAIGN = Campaign(
    name="losses_more",
    about="as losses, of optimize",
    total=losses.total(OPTIMIZE),
    sample=60,
    few=6,
    unit=200,
    run=partial(losses.run, of=OPTIMIZE),
)
