"""Parquet shards: groups, columns, sizes of values before they are read.

Begin with `format.py` and `shard.py`; `footers.py` distrusts what a footer says.
"""
