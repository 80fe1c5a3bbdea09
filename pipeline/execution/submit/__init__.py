"""Submit jobs to a Ray cluster by its job API, and follow, find and stop them.

`job` sends a `Submission` and passes its log on; `attempts` gives jobs their ids and finds them;
`client` is Ray's client with time limits, retries and fresh tokens. The job API alone says how a
job ended. Nothing is kept on this machine.
"""
