"""Campaigns of damage, faults and chance against whole stores: see docs/reliability.md."""
