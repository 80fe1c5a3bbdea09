"""Models: where they come from, their weights, their tasks."""
