"""Parquet files of a partition: written, read, merged, put into the order of the input.

In: tables of predictions and their rows' places. Out: files and what their footers say. Nothing
here knows of leases, plans or the log. Begin with `part_writer.py` and `compaction.py`.

`carried/` does what `compaction.py` does if predictions of earlier versions lie between the rows.
"""
