"""The networks: video transformer, video autoencoder, audio encoder; and their presets."""
