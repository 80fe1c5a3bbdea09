"""Parquet files of a partition: staged slices in, parts out, in the order of the input or by value.

Nothing here knows of leases, plans or the log. Begin with `compaction.py`; `part_file.py`
alone writes and opens the Parquet files of an output.
"""
