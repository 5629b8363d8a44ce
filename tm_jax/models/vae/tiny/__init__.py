"""Tiny autoencoder for Wan latents (TAEHV architecture): a fast decoder of lower quality."""
