"""One function per command, with the command's name: what it does, without a terminal.

In: jobs, stores, options as values. Out: a result or an error with its exit code.
`pipeline.commands` parses and prints, other programs call the same functions.
"""
