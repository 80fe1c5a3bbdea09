"""Compare two published versions row by row, joined by id, in bounded memory.

In: two versions, of any outputs. Out: `Difference`. Begin with `comparing.py`, which shows the
whole way: `joining.py` cuts both sides into buckets by the hash of the row id and matches the rows
of each, and `columns.py` compares the columns of matched rows by their Arrow type.
"""
