"""CSV: the records that Python's csv module reads, a shard's header names the columns.

Begin with `format.py` and `records.py`.
"""
