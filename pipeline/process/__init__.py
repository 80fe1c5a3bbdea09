"""How this process lives, stops, speaks and is watched; README.md has its states.

Begin with `keeper.py` (the two processes of a command), `interrupts.py` (stops) and `life.py` (what
a run keeps). The hooks of `failpoints.py` do nothing unless a test's environment asks for them.
"""
