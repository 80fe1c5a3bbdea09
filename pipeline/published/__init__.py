"""Read what is published: outputs, partitions, rows; describe, verify, compare and illustrate them.

In: the URL of an output, without its job and without Ray. Out: an `Output`, or findings about a
version. Files are found by the manifests, never by listing folders. Begin with `output.py` for rows
and `verify.py` for proofs; `status.py` reads the states of partitions.

Nothing here writes to an output: that is `commit/`.
"""
