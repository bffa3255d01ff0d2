"""Photographs -> image shards: `python -m pipelines.curate`."""
