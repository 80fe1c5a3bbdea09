"""Run a model: engines, runtimes, devices, batches.

In: a `PredictorConfig`, and the prepared rows of a slice. Out: a table with a prediction or a
failure per row, in input order. Begin with `engines/torch_engine.py` and `slice_run.py`. The result
of a row must not depend on the other rows of its batch.
"""
