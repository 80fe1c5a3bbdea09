"""The rows of one slice on their way through the model, and their results.

In: prepared rows. Out: a table with a prediction or an error per row, in input order. Begin with
`slice_run.py`; `fault_finder.py` finds the rows at fault of a failed batch for both engines, and
`first_rows.py` tells a fault of the model from a fault of rows.
"""
