"""How a run ends: published, refused, stopped, or with its process gone.

In: staged slices, or what ended the run. Out: the manifest and the report. Begin with `finish.py`;
`supervisor.py` interrupts a run, `save_report.py` and `lost_run.py` tell of one that is over.
"""
