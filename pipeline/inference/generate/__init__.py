"""Engine `generate`: how the modules of `models/generate/` write the rows of a slice.

Begin with `greedy.py`, the loop: rows enter a batch, get a token per step, and leave. `rules.py`
restricts the next token by the directory's rules and the grammar of records; `generate_engine.py`
reads, judges and checks the rows. The result of a row must not depend on other rows, and no error
may lose a row (tests/inference/generate/test_errors_at_any_line.py).
"""
