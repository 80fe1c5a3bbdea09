"""What a run says of itself: recorder, limits, forecast, documents, HTML.

In: figures of slices, and what a run states. Out: report.json, lines on a terminal, a page,
metrics. Begin with `document.py` and `recording/recorder.py`; README.md has the way of a figure.
What is not known is null, never a guess.
"""
