"""Runs of jobs and commands, and their outputs."""
