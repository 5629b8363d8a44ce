"""The networks: video transformer, video autoencoders, encoders of audio, text and pictures."""
