"""A job on a Ray cluster, by the cluster's job API: submitted, followed, found again, stopped.

Enters: a `Submission` and the API's address. Leaves: the job's log, and its exit code. Begin with
`job` (what is sent, and what its end means) and `attempts` (which job a submission is about).
`client` is the only file that sends requests, some of them again. Final
is what the API says of a job, never the end of a log's stream. Nothing is kept on this machine.
"""
