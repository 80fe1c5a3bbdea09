"""Find the fastest way to run a model on this hardware whose predictions agree."""
