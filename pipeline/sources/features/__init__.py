"""Feature columns: numbers, categories and times become a vector of float32, or are refused."""
