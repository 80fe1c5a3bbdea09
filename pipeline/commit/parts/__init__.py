"""Parquet files of a partition: written, read, merged, put into the order of the input.

In: tables of predictions and their rows' places. Out: files and what their footers say. Nothing
here knows of leases, plans or the log. Begin with `part_writer.py` and `compaction.py`.

`carried_parts.py` does what `compaction.py` does where predictions of earlier versions lie between
the computed rows: `carried_version.py` reads those, `carried_order.py` says where they go,
`carried_copies.py` which parts the store copies, `carried_groups.py` what a task makes,
`carried_rows.py` fills in rows found by content, `carried_figures.py` answers before that.
"""
