"""Run a model: engines, runtimes, devices, batches.

In: a `PredictorConfig`, and the prepared rows of a slice. Out: a table with a prediction or a
failure per row, in input order. Begin with `engines/model_engine.py` and `slices/slice_run.py`. May
not be touched: a row comes out as it would alone, whatever else is in its batch.
"""
