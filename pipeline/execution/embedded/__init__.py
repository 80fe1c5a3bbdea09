"""The Ray that a run starts for itself on one machine, and what makes its start short."""
