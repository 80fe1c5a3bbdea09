"""The command line: parse the arguments, call one operation, show its result.

Results go to stdout, everything else to stderr. `app.py` lists the commands, `signatures.py` has
those that only call their operation, and `main.py` turns every end into one line and an exit code.
"""
