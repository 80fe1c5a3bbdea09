"""What formats of lines share: blocks of lines, their rows, columns, and types by a sample.

A format says what a line holds (`LineFormat`), how lines are read, and what they become
(`rows.Shard`). Begin with `rows.py`.
"""
