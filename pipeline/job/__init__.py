"""The job file: its sections and its reader.

In: a file or a mapping, and overrides. Out: a frozen `Job`, or every mistake in one line, with the
line in the file. Begin with `job.py` and `reading/loader.py`. A field's docstring is its row in
jobs/README.md, which a test compares. Nothing that a job file says is executed here.
"""
