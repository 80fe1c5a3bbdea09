"""The plan of a run: units, slices, the fingerprint, the division of the cluster.

In: a job, its listed inputs, its model. Out: a `Plan` and an `Allocation`. Begin with `plan.py` and
`slicing.py`. Nothing here knows Ray. The same input must give the same slices, and the same
fingerprint, in every run.
"""
