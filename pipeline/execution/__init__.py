"""All that knows Ray: stages and actors.

In: the parts of a stream (`stream_parts.py`), and a cluster's address. Out: each slice when it is
committed. Begin with `executors.py` and `predictor_actor.py`. What differs between versions of Ray
is in `versions.py`; its private names are read by `private_names.py`, and replaced by the declared
patches of `embedded/` alone.

- A run: `executors`, `stream_parts`, `stages`, `tasks`, `predictor_actor`, `progress_channel`,
  `isolation/`.
- What it asks of Ray: `ray_options`, `visible_gpus`, `environment`, `versions`, `private_names`.
- Which Ray: `cluster/`, `embedded/`, `submit/`; `caller` and `health` keep the process as it was.
"""
