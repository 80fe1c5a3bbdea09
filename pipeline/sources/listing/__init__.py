"""List the files of a source: the shards of the format, what is skipped, what is refused."""
