"""What every other folder may use: errors, schemas, counters, text, the node cache."""
