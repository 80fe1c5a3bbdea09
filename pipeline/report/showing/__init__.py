"""A report for people: lines on a terminal, and a page of HTML.

In: a report as a document. Out: text whose names from data are escaped. Begin with `layout.py`
and `render.py`.
"""
