"""Retry: run quarantined rows again and merge them into the published version.

`quarantine.py` reads what is published and selects entries, `plan.py` plans their rows, of shards
as `shards.py` finds them now, `matching.py` matches the staged rows with entries, `readmission.py`
makes the next version, and `known_rows.py` what its keys are made from. It carries all predictions
of the version over (`commit.parts.carried.parts`) and merges the quarantine;
`commit.parts.row_positions` says where rows lie in the input.

An example. Shard a has two rows, shard b cannot be read and is one row of the plan, shard c has
three rows: six rows. Rows 1, 2 (shard b) and 4 are quarantined. A key is written `row.minor`:

    entry   key   rank   predictions before it (rank - entry)
    0       1.0   1      1
    1       2.0   2      1
    2       4.0   4      2
    predictions, by their order alone: rows 0, 3, 5

The retry asks for entries 0 and 1. Row 1 succeeds. Shard b can be read now, and its two rows
replace entry 1: the first succeeds, the second fails. Three rows are staged:

    staged   entries   minors   key (of the entry, plus the minor)   goes to
    0        0         0        1.0                                  predictions, before number 1
    1        1         0        2.0                                  predictions, before number 1
    2        1         1        2.1                                  quarantine

Version 2 has the predictions 0, 1, 2.0, 3, 5 and these entries; keys never change, ranks do:

    entry   key   rank   predictions before it
    0       2.1   3      3 = 1 + 2 admitted with lower keys
    1       4.0   5      4 = 2 + 2

The invariants: keys ascend in both; an entry that is replaced leaves, all its rows come; rows of
the input = predictions + entries; `minors` is 0 unless an entry stood for several rows; a staged
row whose entry is NO_ENTRY (the end of a tar that breaks off earlier than before) is left out. In
the keys of an insert, NOT_HERE says that a row of the slice does not go there.
"""
