"""Parts that hold predictions of earlier versions and computed rows, in the order of the input.

In: the staged slices of the work, and the versions that predictions are taken from. Out: parts, and
what was read and copied. Begin with `parts.py`: `order.py` says where carried rows go, `copies.py`
which parts the store copies, `groups.py` what one task writes, `rows.py` fills in rows found by
content, `version.py` reads earlier versions. `figures.py` measures carried rows and finds duplicate
ids before anything is written.
"""
