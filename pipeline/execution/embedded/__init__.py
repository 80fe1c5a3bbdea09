"""The Ray that a run starts for itself on one machine, and patches that make it start faster.

Begin with `patches.py`, which lists what is replaced and why; without a private name Ray stays as
it is. `forkserver.py` lets workers be forked.
"""
