"""The outside world: storage, tracking, configuration, ranks."""
