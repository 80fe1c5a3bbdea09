"""The Ray of a run: connect to it, what hardware it has, and what it has in flight.

Begin with `connect.py`.
"""
