"""Archives of images, read in place: what lies in them, where, and what is damaged."""
