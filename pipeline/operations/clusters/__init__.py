"""Commands of clusters: `submit`, `attach` and `logs`.

In: a job file, or the id of a submitted job, and the cluster's job API. Out: the job's log line by
line, its exit code and document. Begin with `submit.py`; `submitted.py` has what is done with a job
afterwards.
"""
