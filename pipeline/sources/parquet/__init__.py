"""Parquet shards: groups, columns, sizes of values before they are read.

Begin with `format.py` and `batches.py`; `footers.py` distrusts what a footer says.
"""
