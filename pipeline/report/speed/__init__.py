"""What limits a run, what it could reach, when it will end.

In: busy seconds per stage and the division of the cluster. Out: limits, forecasts, advice in one
line. Begin with `limits.py`.
"""
