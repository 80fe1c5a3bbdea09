"""What `backfill` does for each of its dates, one after the other or several at a time.

In: a job with `${date}`, and dates. Out: a `DateRun` for each. Begin with `one_date.py`; `turns.py`
goes through the dates in this process, `workers.py` in several that share one Ray.
"""
