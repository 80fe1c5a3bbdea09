"""A Ray that runs already, or is started: connect, watch its health, bound what is in flight."""
