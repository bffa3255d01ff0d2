"""What a sample is, how shards are written and read. Ours, not Hugging Face's `datasets`."""
