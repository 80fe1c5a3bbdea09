"""Rows of a published version beside what they were predicted from, for its report.

In: a version and the number of rows of a sheet. Out: HTML with small pictures and pieces of texts.
Begin with `sheets.py`; `originals.py` finds the input of rows, for `Partition.images`, too.
"""
