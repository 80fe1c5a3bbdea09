"""What formats of lines share: blocks of lines, slices of them, columns, and types by a sample.

A format says what a line holds (`LineFormat`), how lines are read, and what they become
(`LineStream`). Begin with `format.py` and `stream.py`.
"""
