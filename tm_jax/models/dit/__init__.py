"""The audio-driven Wan video transformer: one block, several attention patterns."""
