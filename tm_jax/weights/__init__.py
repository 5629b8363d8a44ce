"""Weights of others: lazy tensor files, and one strict table per model."""
