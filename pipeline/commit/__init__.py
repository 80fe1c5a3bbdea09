"""Write an output: leases, staged slices, published versions, and their clean-up.

In: slices of predictions, and the lease of a partition. Out: parts, a log entry, and what follows
from it. Begin with `layout.py` (paths), `manifest.py` (what a version is) and `publish.py` (the
commit); `lease.py` says who works on a partition, `staging.py` commits a slice.

Never change the order of the writes, or the names and JSON keys of stored files.
"""
