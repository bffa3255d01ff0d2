"""The page in the browser: `python -m pipelines.demo`."""
