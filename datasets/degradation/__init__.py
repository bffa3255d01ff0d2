"""Degradation of high-quality images, with every parameter drawn, kept and replayed."""
