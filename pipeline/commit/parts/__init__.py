"""Parquet files of a partition: written and read, in the order of the input or by value.

In: staged slices. Out: files and what their footers say. Nothing
here knows of leases, plans or the log. Begin with `part_writer.py` and `compaction.py`.
"""
