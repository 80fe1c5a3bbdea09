"""The operations: one module per command, with the function of its name.

An operation takes a job, an output or a submitted job, and returns a value that prints itself or
raises an error of `pipeline.errors`; `pipeline.NAME` and the command NAME call it. `arguments` has
what several of them take, `draft` and `draft_input` make the job of `predict` and `init`, and
`machine_checks` are those of `doctor`.
"""
