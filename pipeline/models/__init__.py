"""What a model is: where it comes from, its weights, its task."""
