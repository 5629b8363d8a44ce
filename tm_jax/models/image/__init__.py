"""Image encoder of Wan's image-to-video model: the vision tower of CLIP."""
