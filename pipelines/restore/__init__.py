"""Restoration of faces: `python -m pipelines.restore`."""
