"""All that knows Ray: the datasource, stages and actors.

In: the parts of a stream (`stream_parts.py`), and a cluster's address. Out: each slice when it is
committed. Begin with `executors.py` and `predictor_actor.py`. What differs between versions of Ray
is in `versions.py`; its private names are read by `private_names.py`, and replaced by the declared
patches of `embedded/` alone.
"""
