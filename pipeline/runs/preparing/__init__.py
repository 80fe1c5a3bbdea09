"""What a run does before its work: resolve, list, plan, check, and try one row.

In: a job in its context. Out: a plan and a model, or one line that says what is wrong. Begin with
`prepare.py`; `one_row.py` is for `plan` and `doctor`. Nothing here writes to the output.
"""
