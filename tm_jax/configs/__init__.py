"""Presets: the components of a model and their sizes; typed overrides; stored settings."""
