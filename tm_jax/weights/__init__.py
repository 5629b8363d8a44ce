"""Weight files: our own, and the names of the published ones."""
