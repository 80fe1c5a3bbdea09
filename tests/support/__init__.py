"""Helpers that several test files share."""

HANG_S = 900.0
"""Only what hangs takes longer, on a machine that is ten times slower than a developer's."""
