"""Typed overrides of frozen configurations."""
