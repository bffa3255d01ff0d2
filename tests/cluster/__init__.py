"""A cluster whose hosts share nothing but a bucket, in network namespaces of one machine."""
