"""Inputs of runs: photos, texts, tables, tars, and damaged ones of all kinds."""
