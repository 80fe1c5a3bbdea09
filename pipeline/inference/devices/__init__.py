"""The device of an actor: its memory, streams and buffers, and the model on it.

In: arrays in host memory. Out: outputs in host memory, in the order of the batches. CPU and GPU
run the same code; only `accelerator.py` calls CUDA. Begin with `device_model.py` and
`load_runner.py`. The order of waits in `device_buffers.py` keeps a buffer from being overwritten
while it is read.
"""
