"""What `pipeline manifest kubernetes` prints: documents that run a job on Kubernetes.

In: a job file and what the caller asks for (`asked.py`). Out: plain mappings, as the API takes
them, or the text of a Dockerfile. Begin with `asked.py`, then `batch.py` or `ray.py`. Nothing here
talks to a cluster, and nothing of the environment is in what comes out.
"""
