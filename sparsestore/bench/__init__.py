"""Measure a store where it lies: how fast its batches come, against what the machine itself can do."""

from sparsestore.bench.measurement import measure
from sparsestore.bench.report import Report

__all__ = ["Report", "measure"]
