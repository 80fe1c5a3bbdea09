"""Models: where they come from, their weights, their tasks.

In: the job's section `model` and what it names. Out: a `ModelSpec`, which decides all predictions,
and the module that it describes. Begin with `spec.py` and `tasks/base.py`; `resolving/` makes the
spec, `directories/` reads model directories. No code of a directory or a file is ever executed.
"""
