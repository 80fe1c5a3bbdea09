"""What detectors have in common: boxes, their overlap, their outputs."""
