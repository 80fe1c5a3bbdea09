"""Predict quarantined rows again and merge them into a published version."""
