"""Operations on many partitions: `backfill`, `status`, `stop`.

In: a job with `${date}` and a range of dates, or a sink. Out: a typed result per date or partition.
Begin with `status.py`, which only reads, then `backfill.py`.
"""
