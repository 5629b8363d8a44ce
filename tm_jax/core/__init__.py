"""Foundations: axis legend, shape checks, clocks, tree names, precision."""
