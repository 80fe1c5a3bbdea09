"""The tools of showing: blocks, printed tables, sheets of rows.

In: values, rows, nested documents. Out: text for a terminal, and escaped HTML. Begin with
`blocks.py`, which the sections of a report are shown with.
"""
