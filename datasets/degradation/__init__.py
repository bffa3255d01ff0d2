"""High-quality image -> low-quality image, every parameter drawn, kept and replayed."""
