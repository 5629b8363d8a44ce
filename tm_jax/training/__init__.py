"""Stages of training, the pure step, and the one loop with side effects."""
