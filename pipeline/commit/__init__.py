"""The output: its layout, lease, staging, compaction, manifest, publication, verification.

In: the slices of a plan. Out: staged parts, and of all of them a published version. Begin with
`staging.py`, the commit of a slice, and `publish.py`, that of a version; README.md says what
readers see at each step. May not be touched: the order of the writes, and the names of what is
written.
"""
