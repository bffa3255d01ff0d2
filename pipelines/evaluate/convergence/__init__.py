"""`python -m pipelines.evaluate convergence`: how fast training runs come to a level of quality."""
