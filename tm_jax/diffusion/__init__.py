"""Noise paths and samplers; knows no model."""
