"""The figures of a run for those who watch many: Prometheus.

Enters: what the recorder knows, as the report that it would make now; at the end the report itself.
Leaves: a port, a file. Begin with `families.py` (what each metric means) and `exporting.py`
(threads, and what becomes of a failure: one warning). The libraries are imported by the exporters
that need them only; a run without any imports none. No label has a value per partition or run:
each would be a new series every night.
"""
