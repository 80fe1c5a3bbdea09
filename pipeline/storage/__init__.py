"""Whole files on disk and in object stores: read, list, create once.

In: a URI and its options. Out: bytes and listings, or an error that says whether trying again may
help. Begin with `store.py` and `interface.py`. May not be touched: of several that create a file
once (`create_once.py`), exactly one has created it.
"""
