"""Whole files on disk and in object stores: read, list, create once.

In: a URI and its options. Out: bytes and listings, or an error that says whether trying again may
help. Begin with `store.py` and `interface.py`. Of several writers that create the same file once
(`create_once.py`), exactly one succeeds: never change that.
"""
