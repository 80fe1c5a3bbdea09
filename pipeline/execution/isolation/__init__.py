"""Crashes, hangs and kills cost the rows that cause them: guarded readers, child processes.

In: the rows of a slice. Out: the same rows, done or failed. Begin with `crash_guard.py`, and
`guarded_reader.py` for reading; `crash_marks.py` keeps what the next process has to know.
"""
