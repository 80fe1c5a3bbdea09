"""Find the fastest way to run a model on this hardware whose predictions agree.

In: a plan, its model, the hardware. Out: runtime, precision and threads, with the reason in a
sentence. Begin with `auto.py` and `trials.py`; choosing is pure (`selection.py`, `choice.py`).
"""
