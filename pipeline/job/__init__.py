"""The job file: one module per section, and `reading/`, which turns its text into a `Job`.

A job is a frozen value; every error has its line and the remedy. Begin with `job.py` and
`reading/loader.py`. The docstring of a field is its text in jobs/reference.md. Nothing that a job
file names is executed here.
"""
