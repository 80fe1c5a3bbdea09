"""Code that a job names: which modules it may import, where it is, its errors in one line.

Begin with `allowed_imports.py`: nothing outside its list is ever imported for a job.
"""
