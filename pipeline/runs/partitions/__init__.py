"""How partitions are: what is done, missing, refused, running, read from the output itself.

Nothing is kept anywhere else, so nothing can be wrong or lost. Begin with `survey.py` (what is read
of an output, and what only the job knows) and `state.py` (what follows from it).
"""
