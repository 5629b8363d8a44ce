"""The reference-conditioned video autoencoder of `nano`, learned from pixels."""
