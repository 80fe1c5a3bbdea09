"""Carry rows over from earlier versions, and compute the rest.

In: the plan of all rows and what is published. `finding.py` asks which versions may be used and
divides the plan into carried rows and work (`planning/carrying.py`); `merge.py` has the work done
and puts both together, or falls back to computing all; `checked.py` compares the sample that was
predicted again. Out: a manifest, as if all rows had been computed.

Begin with `merge.predict_with_reuse`. What may not be touched: nothing is carried that is not
proved to be the same, and whatever cannot be looked up is computed.
"""
