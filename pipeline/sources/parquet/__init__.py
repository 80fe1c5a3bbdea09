"""Parquet shards: groups, columns, sizes of values before they are read.

Begin with `format.py` and `stream.py`; `footers.py` distrusts what a footer says.
"""
