"""Device meshes, and the table that maps logical axes to them."""
