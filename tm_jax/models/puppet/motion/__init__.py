"""What moves without speech: a small stochastic model of eyes, brows, head and breath."""
