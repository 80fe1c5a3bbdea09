"""Weights as data: read without running anything, fitted strictly, random ones pinned.

Begin with `weights.py`. `weights_file.py` refuses by name what would run code.
"""
