"""The end of a run: published, refused, stopped, or with its process gone.

In: staged slices, or the error that ended the run. Out: the manifest and the report. Begin with
`finish.py`; `supervisor.py` interrupts a run, `save_report.py` and `lost_run.py` report on one that
is over.
"""
