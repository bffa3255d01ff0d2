"""`python -m pipelines.evaluate table`: results laid side by side, as the paper's Table 4."""
