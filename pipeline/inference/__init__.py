"""How a model runs: runtimes, devices, batches."""
