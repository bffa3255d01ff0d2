"""Sets of shards -> batches: the order of samples, ranged reads, loaders."""
