"""From the job's section `model` to a `ModelSpec`: one frozen value that decides all predictions.

Begin with `resolve.py`. `named_model.py` finds what the section names; `input.py` and `task.py`
choose what the job leaves open.
"""
