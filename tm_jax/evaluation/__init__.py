"""Evaluation: what is measured on generated video, and how."""
