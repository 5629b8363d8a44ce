"""Noise paths and samplers, independent of any model."""
