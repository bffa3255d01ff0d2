"""What machines share, an object store and MLflow: a command that starts both, and files."""
