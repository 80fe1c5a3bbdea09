"""One run: prepare, finish, supervise."""
