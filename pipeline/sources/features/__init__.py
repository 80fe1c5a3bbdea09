"""Columns of tables as vectors of float32: numbers, categories, times, exactly or refused.

Begin with `columns.py`; `vectors.py` makes the vector, `exactness.py` refuses what float32 cannot
hold.
"""
