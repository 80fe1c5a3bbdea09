"""A hub of models, for `pull`: which files a repository has, and their bytes within bounds.

Begin with `repository.py`; no request leaves without `request.py`.
"""
