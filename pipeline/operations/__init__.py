"""One function per command, with the command's name: what it does, without a terminal.

In: jobs, stores, options as values. Out: a result or an error with its exit code.
`pipeline.commands` parses and prints, other programs call the same functions. Begin with `run.py`
and `jobs.py`.

- First steps: `first_steps/` (`predict`, `init`), `doctor` (with `machine_checks`).
- Runs: `run` (with retry), `plan`, `tune`, `golden`, `pull`; `jobs` reads a job.
- Partitions: `backfill`, `partitions` (status, stop).
- Clusters: `clusters` (submit, attach, logs).
- Outputs: `outputs` (inspect, verify, report), `published/` (`open_output`), `diff`, `maintenance`
  (rollback, gc).
"""
