"""All that knows Ray: stages and actors.

In: the parts of a stream (`StreamParts`), and a cluster's address. Out: each slice when it is
committed. Begin with `executors.py` and `predictor_actor.py`. Differences between versions of Ray
are in `versions.py`; its private names are read by `private_names.py`, and replaced only by the
declared patches of `embedded/`.

- A run: `executors`, `stages`, `tasks`, `predictor_actor`, `progress_channel`, `isolation/`.
- What is asked of Ray: `environment`, `versions`, `private_names`.
- Which Ray: `cluster/`, `embedded/`, `submit/`. `caller` and `health` keep the process as it was.
"""
