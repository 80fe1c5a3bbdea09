"""Model directories as data: choose and copy files, read facts, build the module."""
