"""The steps of a run before its work: settle the job, resolve, list, plan, check, try one row.

In: a job in its context. Out: a plan and a model, or one line that says what is wrong. Begin with
`prepare.py`; `one_row.py` is for `plan` and `doctor`. Nothing here writes to the output.
"""
