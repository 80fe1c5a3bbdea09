"""A Ray that runs already, or is started: connect, say what it has and what is in flight.

Begin with `connect.py`; `login.py` starts nothing on a cluster.
"""
