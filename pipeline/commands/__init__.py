"""The command line: it parses, calls one operation, shows the result.

In: arguments. Out: results on stdout, all else on stderr, an exit code. Begin with `app.py`, which
lists the commands, and `operation.py`; `main.py` turns every end into one line and one code.
"""
