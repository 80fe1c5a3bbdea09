"""Tar shards with the files of a row under one key.

Begin with `format.py` and `rows.py`; `tar_archive.py` reads headers with bounds.
"""
