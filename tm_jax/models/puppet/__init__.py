"""Networks of the preset that moves a drawn face."""
