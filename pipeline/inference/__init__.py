"""Run a model: engines, runtimes, devices, batches.

In: a `PredictorConfig`, and the prepared rows of a slice. Out: a table with a prediction or a
failure per row, in input order. Begin with `engines/torch_engine.py` and
`slice_run.py`. A row must come out as it would alone, whatever else is in its batch.
"""
