"""`predict` and `init`: make a job of an input and a model alone.

In: where the input lies, the model, where predictions go. Out: a `Draft`, with the job's sections,
its file with a reason behind each line, and three lines for people. Begin with `draft.py`;
`first_rows.py` looks at the input, `columns.py` chooses among its columns.
"""
