"""Rows that a language model writes, token by token: engine `generate` reads and judges them.

Begin with `greedy.py`, the loop: rows enter a batch, get a token each step, and leave; what the
library writes, it writes batch after batch. In: rows as the input makes them, and a `Decoding`
(`models/directories/text/writing`), which gives logits.
`rules.py` says which tokens may come, by the directory's rules and the grammar of records
(`models/records`), and checks what was written by one pass without a batch. A row must come out as
it would alone, and no row may be lost whatever an error leaves behind
(tests/inference/engines/test_errors_at_any_line.py).
"""
