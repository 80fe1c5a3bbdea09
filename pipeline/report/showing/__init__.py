"""A report for people: lines on a terminal, a page of HTML, a bar while it runs.

In: a report as a document. Out: text whose names from data are escaped. Begin with `layout.py`
and `render.py`.
"""
