"""Data and words that every folder uses; imports no other folder.

Begin with `errors.py`, a class per exit code, and `schema.py`, the columns of a row from step to
step. Other people's jobs depend on exit codes and column names: they never change. A number of
`semantics.py` is only ever raised.

- Errors: `errors` (of a run), `failures` (of rows), `backoff` (retries), `user_code`.
- Rows: `schema`, `slices`, `rows_set_aside`, `arrays`, `row_digests`,
  `hive_paths`, `media`.
- What is compared: `semantics`, `figures`, `histograms`.
- Text: `printable`, `documents`, `output_folders`, `environment`. Extensions: `registry`.
- Files of a node: `node_cache`, `private_files`.
"""
