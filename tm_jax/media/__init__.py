"""Sound, pictures and video in ordinary files: the edge of the library."""
