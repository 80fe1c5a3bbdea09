"""The Ray that a run starts for itself on one machine, and what makes its start short.

Begin with `patches.py`, which lists what is replaced and for what; a name that is missing leaves
Ray as it is. `forkserver.py` lets workers be forked.
"""
