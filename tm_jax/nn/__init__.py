"""Building blocks without a model: norms, embeddings, rotary, attention, caches."""
