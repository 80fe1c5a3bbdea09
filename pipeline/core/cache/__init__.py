"""The cache of a node: folders made once per key, bounded in size, private to the user.

In: a key and a function that makes the folder. Out: the folder, whole or absent. Begin with
`node_cache.py`; `eviction.py` keeps the bound, `cpu.py` says for which processor a file was made.
"""
