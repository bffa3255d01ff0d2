"""Autoencoders: Sim-VAE, its ablations, and the public ones."""
