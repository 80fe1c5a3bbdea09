"""Run a job under failures, and compare what it published with an undisturbed run."""
