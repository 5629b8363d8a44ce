"""Using trained weights: the pipeline, streaming sessions, whole clips."""
