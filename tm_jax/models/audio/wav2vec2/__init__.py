"""Speech encoder of the large presets: wav2vec 2.0, base and large."""
