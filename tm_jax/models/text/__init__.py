"""Text encoder of Wan: the encoder half of UMT5."""
