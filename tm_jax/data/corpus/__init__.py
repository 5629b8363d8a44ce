"""Speech with the times of its phones."""
