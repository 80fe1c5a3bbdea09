"""What a run adds up while it goes on: rows by origin and fate, figures of slices, placement.

In: figures of finished slices. Out: the sections of a report. Begin with `recorder.py`.
"""
