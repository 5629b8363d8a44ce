"""The causal video autoencoder of `nano`: clip form and chunk form."""
