"""The plan of a run: units, slices, the fingerprint, the division of the cluster."""
