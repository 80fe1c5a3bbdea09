"""What a run will do: units, slices, the fingerprint, the division of the cluster."""
