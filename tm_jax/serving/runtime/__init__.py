"""Engine, streams, pacing and devices of the server."""
