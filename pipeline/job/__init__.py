"""The job file: its sections and its reader."""
