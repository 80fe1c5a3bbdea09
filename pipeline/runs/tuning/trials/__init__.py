"""Single measurements: a runtime, a batch size, the batches they are timed on.

In: a sample of prepared rows and one way to run the model. Out: rows/s, memory, agreement. Begin
with `measure.py`; which trials are made is decided above, in `selection.py`.
"""
