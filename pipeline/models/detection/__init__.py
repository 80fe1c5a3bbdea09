"""Boxes of detectors: reading outputs, choosing the best, comparing two sets."""
