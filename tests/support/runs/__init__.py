"""Runs of jobs and commands, and what they leave behind."""
