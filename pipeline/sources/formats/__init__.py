"""One file per source format: its name, its shards, its rows."""
