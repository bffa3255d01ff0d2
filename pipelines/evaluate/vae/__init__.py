"""`python -m pipelines.evaluate vae`: how well autoencoders reconstruct, and what they cost."""
