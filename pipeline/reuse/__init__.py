"""Rows that earlier versions know: set aside before the model, and staged like all others.

In: a plan, and what is published. Out: a `Reuse`: the plan as it is carried out, and a `Known` for
the readers, which says which rows of a unit are known. Staging and later steps know nothing of
reuse.

Begin with `dividing.py` (which rows are known, and how the plan is cut by that) and `filling.py` (a
reader takes known rows from their version, and reads the others). `finding.py` chooses the
versions, `version_rows.py` reads their rows by place or content, `checked_sample.py` draws known
rows to predict again and compares them, `retried.py` keeps the failed rows that a retry leaves.

Rule: rows that cannot be read, or differ from what was published, are computed and counted.
"""
