"""Faces in photographs: where they are, how they are aligned, and whose they are."""
