"""Ten minutes on one GPU: what a network computes there, how fast, and how far from its model."""
