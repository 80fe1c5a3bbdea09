"""Figures that are added up over slices and runs: times and counts, and distributions of values.

In: what a stage measured of one slice. Out: values that can be added in any order and kept as
JSON. Begin with `slice_figures.py`.
"""
