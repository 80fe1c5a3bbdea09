"""Model directories as data: choose and copy files, read facts, build the module.

In: a folder or an .onnx file. Out: `DirectoryFacts` on the driver, without torch, and the module in
an actor, its class from the installed library. Begin with `opening.py` and `facts.py`. What a file
says is believed only once it is checked (`json_files.py`, `tensors.py`).
"""
