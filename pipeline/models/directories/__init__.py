"""Model directories as data: choose and copy files, ask their library, build the module.

In: a folder or an .onnx file. Out: `DirectoryFacts` on the driver, and the module in an actor, its
class from the installed library. Begin with `opening.py`, which asks the library in a confined
child process, and `facts.py`, its answers. The library gets a copy of the chosen files
(`file_choice.py`, `snapshot.py`) without what names code (`files.py`). `probes.py` has the rows
that it and we prepare, and `library_predictions.py` what it predicts for them.
"""
