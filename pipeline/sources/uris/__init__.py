"""URIs in a column: what may be fetched, and how it is fetched. Begin with `policy.py`."""
