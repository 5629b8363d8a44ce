"""Data: the synthetic characters and whatever else models are trained on."""
