"""JSON lines: a line's fate depends on the line alone, a slice begins in mid-file.

Begin with `format.py` and `parse.py`.
"""
