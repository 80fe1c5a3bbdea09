"""Formats of lines, JSON lines and CSV: blocks of lines, their columns, and the rows of a shard."""
