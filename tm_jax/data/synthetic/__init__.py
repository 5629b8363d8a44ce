"""Drawn and rendered characters as a source of video."""
