"""The autoencoder of faces of the puppet."""
