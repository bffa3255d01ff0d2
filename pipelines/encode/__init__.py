"""Image shards -> latent shards: `python -m pipelines.encode`."""
