"""Inputs of runs: photos, texts, tables, tars, and all kinds of damaged ones."""
