"""The demo: photos and texts made here, two runs of the real commands, their reports.

Begin with `demo.py`, which is the order of its steps; `photos.py` and `texts.py` make the inputs.
"""
