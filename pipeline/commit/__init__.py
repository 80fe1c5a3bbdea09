"""Write an output: who may, what is staged, what is published, and what readers see meanwhile.

In: slices of predictions, and the lease of a partition. Out: parts, a log entry, and what follows
from it. Begin with `layout.py` (paths), `manifest.py` (what a version is) and `publish.py` (the
commit); `lease.py` says who works on a partition, `staging.py` commits a slice.

May not be touched: the order of the writes, and the names and JSON keys of what is stored.
"""
