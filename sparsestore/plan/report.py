"""What a plan means for whoever trains with it: reads, memory and quality, in words and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sparsestore.plan.quality import ShuffleQuality, drift, verdict

__all__ = ["PlanReport"]

SMALL_READ = 64 << 10
"""Bytes below which a read costs more to start than to carry out."""
_PAGE = 4096
_CHUNK_ELEMENTS = 1 << 14


@dataclass(frozen=True, slots=True)
class PlanReport:
    """An epoch before it runs. Print it, or take its fields.

    Attributes
    ----------
    n_rows, n_features, batch_size, n_batches : int
    shuffle : bool
    seed : int or None
    block_rows, window_rows, n_windows : int
        Rows read together, rows shuffled together, windows an epoch.
    bytes_a_row : float
        On disk, before compression.
    window_bytes : int
        Entries and columns of a window as batches hold them.
    memory_bytes : int
        About the most that an epoch holds at once, the page cache not counted. Where the store is larger than memory
        also the entries of one or two windows, if these fit in 5/6 of what is free.
    dense_batch_bytes : int
        Of one batch; 0 where it is sparse.
    share : float
        Of the rows on disk that lie among those read together, the share that is wanted: 1 where rows that follow each
        other in the view do so on disk too.
    compact : bool
        Whether reads are of whole compressed chunks.
    label : str or None
        The column whose order was judged.
    quality : ShuffleQuality or None
        None where nothing is shuffled.
    """

    n_rows: int
    n_features: int
    batch_size: int
    n_batches: int
    shuffle: bool
    seed: int | None
    block_rows: int
    window_rows: int
    n_windows: int
    bytes_a_row: float
    window_bytes: int
    memory_bytes: int
    dense_batch_bytes: int
    share: float
    compact: bool
    label: str | None
    quality: ShuffleQuality | None

    @property
    def block_bytes(self) -> float:
        """Bytes of one read."""
        return self.block_rows * self.bytes_a_row

    @property
    def read_amplification(self) -> float:
        """Bytes read from a cold disk for each byte used, as rows lie in pages or compressed chunks with others."""
        if not self.block_bytes:
            return 1.0
        unit = _CHUNK_ELEMENTS * 4 if self.compact else _PAGE
        # a unit is read if any of its rows is wanted
        scattered = float(1 - (1 - self.share) ** max(unit / self.bytes_a_row, 1.0)) / self.share
        # a block that starts anywhere touches one unit more than it fills, on average
        return scattered * (1.0 + unit * self.share / max(self.block_bytes, 1.0)) if self.shuffle else scattered

    @property
    def advice(self) -> str | None:
        """What to change, where something should be."""
        if not self.shuffle or self.quality is None:
            return None
        if self.block_bytes >= SMALL_READ or self.block_rows >= min(4096, self.n_rows):
            return None
        reason = "rows that lie together have similar labels"
        if self.quality.verdict == "unknown":
            reason = "no label tells how the rows are ordered"
        elif verdict(drift(self.quality.rho, 2 * self.block_rows, self.window_rows, self.n_rows)) in (
            "good",
            "unknown",
        ):
            return None  # blocks twice as long would do as well: it is not the labels that keep them short
        return (
            f"{reason}, so only {self.block_rows} of them are read together ({self.block_bytes:,.0f} bytes a read): "
            f"convert once with shuffle=True (--shuffle) to read more"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields and what follows from them."""
        facts = asdict(self)
        facts["quality"] = None if self.quality is None else asdict(self.quality)
        for name in ("block_bytes", "read_amplification", "advice"):
            facts[name] = getattr(self, name)
        return facts

    def __str__(self) -> str:
        lines = [
            ("rows", f"{self.n_rows:,} x {self.n_features:,} features"),
            ("batches", f"{self.n_batches:,} of {self.batch_size:,} rows an epoch"),
            ("order", f"shuffled, seed {self.seed}" if self.shuffle else "as stored"),
            ("window", f"{self.window_rows:,} rows, {_size(self.window_bytes)}; {self.n_windows:,} an epoch"),
        ]
        if self.shuffle:
            lines.append(("block", f"{self.block_rows:,} rows, {_size(self.block_bytes)} a read"))
            lines.append(("read amplification", f"{self.read_amplification:.2f} from a cold disk"))
        lines.append(("memory", f"{_size(self.memory_bytes)}"))
        if self.quality is not None:
            found = self.quality
            lines.append(("effective batch", f"{found.effective_batch_size:,.0f} of {self.batch_size:,} rows"))
            judged = f"by column {self.label!r} alone" if self.label else "not measured: no label column"
            lines.append(("drift S", f"{found.drift:.2f}, {found.verdict} ({judged})"))
        if self.advice:
            lines.append(("advice", self.advice))
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"
