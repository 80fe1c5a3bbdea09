"""Run a model: engines, runtimes, devices, batches."""
