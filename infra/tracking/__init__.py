"""MLflow: what a run records, kept on disk first, sent in the background."""
