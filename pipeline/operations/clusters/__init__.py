"""Commands of clusters: `submit`, `attach`, `logs`, and `manifest`, which talks to none.

In: a job file, or the id of a submitted job, and the cluster's job API. Out: the job's log line by
line, its exit code and document. Begin with `submit.py`; `submitted.py` has what is done with a job
afterwards, `kubernetes/` the documents that `manifest` prints.
"""
