"""Images -> quality scores: `python -m pipelines.score`."""
