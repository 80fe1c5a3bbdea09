"""Commands over the partitions of weeks: `backfill`, `status`, `stop`.

In: a job with `${date}` and a range of dates, or a sink. Out: a typed result per date or partition.
Begin with `status.py`, which only reads, then `backfill.py`: `one_date.py` is what it does for a
date, `turns.py` goes through the dates.
"""
