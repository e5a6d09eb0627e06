"""Every bit of every object of a small store of each profile, flipped: an error that says where, or the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trust.answers import Asker, Bench, judge, strict
from trust.campaign import Campaign, Tally
from trust.small_store import BYTES, PROFILES


def run(cases: Sequence[int], folder: Path) -> Tally:
    """Flip the bit that each case is the number of, ask, flip it back."""
    tally = Tally()
    with Bench(folder) as bench, strict():
        for case in cases:
            profile, bit = divmod(case, 8 * BYTES)
            asker = bench.asker(PROFILES[profile])
            key, at = asker.store.find(bit // 8)
            judge(tally, case, _flipped(asker, key, at, bit % 8))
    return tally


def _flipped(asker: Asker, key: str, at: int, bit: int) -> list[str | None]:
    """What went wrong with one bit flipped."""
    byte = asker.store.objects[key][at]
    with (asker.store.root / key).open("r+b", buffering=0) as file:
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
        try:
            return asker.asked_about([key], at + bit)
        finally:
            file.seek(at)
            file.write(bytes([byte]))


CAMPAIGN = Campaign(
    name="flips",
    about="one bit of one object flipped",
    total=2 * 8 * BYTES,
    sample=2 * 8 * BYTES // 100,
    few=60,
    unit=1500,
    run=run,
)
