"""Weight files, the names of the published ones, and checkpoints of a run."""
