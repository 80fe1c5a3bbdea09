"""How this process lives, stops, speaks and is watched.

Begin with `interrupts.py` (signals and stops) and `terminal.py` (what is written where). The
hooks of `failpoints.py` do nothing unless a test's environment asks for them.
"""
