"""Wan2.1's video autoencoder: 16 latent channels, strides 4 (time) x 8 x 8, causal in time."""
