"""Records: what a JSON schema of task `generate` lets a model write, as typed columns.

Begin with `subset.py`: which schemas there are, and their one canonical form. In: a job's schema.
Out: the records that texts hold, and their Arrow columns (`reading.py`), and which tokens may come
next while one is written (`grammar.py`, which alone needs the extra `schema`). A record that
`reading.py` does not accept is none, whatever the grammar has let through.
"""
