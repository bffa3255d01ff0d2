"""Programs: python -m pipelines.<name>; rows through Ray Data."""
