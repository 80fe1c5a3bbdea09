"""What a version knows of its rows, so that later versions can carry its predictions.

In: the plan of all rows, the parts that were written and, with `reuse: content`, the hashes of the
staged rows. Out: `_control/<partition>/keys/<version>/` with `meta.json`, `units.parquet` (a row
per shard) and, with content, sorted hashes in `bucket=NNN.parquet`; readers get a `VersionKeys`, or
`NoKeys` with the reason. Begin with `meta.py` and `writing.py`; `KeyIndex` finds hashes on any
node, `pins.py` keeps a version while its rows are carried, `retention.py` lets keys go.

A prediction is named by its *ordinal*, how many predictions of its version come before it, counted
over the parts in the order of the manifest. Files hold it as part and row of the part.
"""
