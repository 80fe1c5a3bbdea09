"""The job file: its sections, and how it is read."""
