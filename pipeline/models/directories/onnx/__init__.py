"""ONNX files as models: bounded reading of the graph, what it is for, its labels.

Begin with `onnx_facts.py`. Nothing of a file is believed before `graph.py` has checked it.
"""
