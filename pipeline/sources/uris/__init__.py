"""Rows whose bytes lie behind a URI: which hosts may be asked, how often, how long.

Begin with `fetch.py`. No request leaves without `policy.py`, which also holds what an address
resolved to.
"""
