"""Find the fastest way to run a model on this hardware whose predictions agree.

In: a plan, its model, the hardware. Out: runtime and precision, with the reason in a sentence. Read
in this order: `auto.py` (what is measured for which job), `trials.py` (the driver's side of a
trial), `measure.py` (the worker's side), `selection.py` and `choice.py` (pure: which way, and the
sentence), `profile.py` (what is kept for later runs).
"""
