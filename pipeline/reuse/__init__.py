"""Rows that earlier versions know: set aside before the model, and staged like all others.

In: a plan, and what is published. Out: a `Reuse`: the plan as it is carried out, and a `Known` for
the readers, which says which rows of a unit are known. From staging on nothing knows of reuse.

Begin with `dividing.py` (what is known of which rows) and `filling.py` (a reader reads known rows
from their version, and has the others read); `finding.py` says which versions may serve,
`content.py` looks rows up by their bytes, `checking.py` chooses the rows that are predicted all the
same and compares them, `failures.py` keeps rows of the quarantine that a retry was not asked for.

May not be touched: what cannot be read, or is not what was published, is never guessed: its rows
are computed, and counted.
"""
