"""From the job's section `model` to a `ModelSpec`: directory, card or factory, task, transform.

In: a job and what the directory says. Out: one frozen value that decides all predictions. Begin
with `resolve.py`; what a job leaves open is chosen in the files named `*_choice.py`.
"""
