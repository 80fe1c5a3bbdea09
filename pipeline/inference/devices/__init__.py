"""The device of an actor: memory, streams and buffers, and the model on it.

In: arrays in host memory. Out: outputs in host memory, in the order of the batches. CPU and GPU
take the same way; `accelerator.py` alone asks CUDA. Begin with `device_model.py` and `device.py`;
the order of waits in `device_buffers.py` keeps a buffer from being overwritten while it is read.
"""
