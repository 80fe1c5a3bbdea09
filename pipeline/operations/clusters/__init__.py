"""Commands of a cluster: run a job there, see what it does, write what runs it there."""
