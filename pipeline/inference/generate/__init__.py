"""Engine `generate`: how the modules of `models/generate/` write the rows of a slice.

Begin with `greedy.py`, the loop: rows enter a batch, get a token per step, and leave. `rules.py`
restricts the next token by the directory's rules and the grammar of records; `engine.py` reads,
judges and checks the rows. A row must come out as it would alone, and no row may be lost whatever
an error leaves behind (tests/inference/generate/test_errors_at_any_line.py).
"""
