"""Whole files on disk and in object stores: read, list, create once."""
