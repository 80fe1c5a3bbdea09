"""Faults on purpose: a fake device, clocks, places where a run ends."""
