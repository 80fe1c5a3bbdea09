"""Look at what is published, in Python: outputs, partitions, rows, and the originals of rows.

In: the URL of an output. Out: `Output`, its `Partition`s, and their `Rows`, by the manifests alone;
no Ray, no job. Begin with `output.py`.
"""
