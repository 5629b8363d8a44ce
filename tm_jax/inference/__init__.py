"""Using trained weights: bundles, streaming sessions, whole clips."""
