"""Faults on purpose: a device that is not there, clocks, places where a run is ended."""
