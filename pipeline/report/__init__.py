"""The report of a run: its recorder, its sections, report.json, its page, its metrics.

In: figures of slices, and what a run states. Out: report.json, lines on a terminal, a page,
metrics. Begin with `document.py` and `recorder.py`; README.md has the way of a figure.
What is not known is null, never a guess.
"""
