"""Run a model: runtimes, devices, batches."""
