"""Hash rows by their content, choose some by the hash, and set rows of a slice aside.

In: tables of rows. Out: digests, masks, and tables. Begin with `row_digests.py`.
"""
