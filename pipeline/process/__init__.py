"""The life of a process: how it stops, what it writes, and how others watch it; see README.md.

Begin with `keeper.py` (the two processes of a command), `interrupts.py` (stops) and `run_scope.py`
(values of a run). `failpoints.py` does nothing unless the environment of a test asks for it.
"""
