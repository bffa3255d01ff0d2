"""`python -m pipelines.evaluate`: numbers of restored pictures that can be compared."""
