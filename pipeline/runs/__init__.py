"""One run: prepare, divide, finish, supervise; `dataflow.py` has the order.

In: a job and what the command line adds. Out: a version, or the error that ended the run, and a
report in any case. Begin with `context.py`, what a run has, and `work.py`, what it has to do.
README.md says what becomes of failures.
"""
