"""Send a job to a Ray cluster from the shell and follow it."""
