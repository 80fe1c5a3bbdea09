"""What every other folder may use: errors, schemas, figures, text, the node cache.

It imports no other folder. Begin with `errors.py`, a class per exit code, and `schema.py`, the
columns of a row from step to step. May not be touched: exit codes and the names of columns, which
others' jobs depend on; a number of `semantics.py` is only ever raised.

- Ends and failures: `errors`, `failures` (of rows), `causes`, `device_errors`, `backoff`.
- Rows and slices: `schema`, `slices`, `aside`, `arrays`, `row_digests`, `hive_paths`.
- What is compared: `semantics`, `versions`; `figures/`, the numbers of a run.
- Text: `printable`, `documents`, `environment`. Extensions: `registry`, `user_code/`. `cache/`.
"""
