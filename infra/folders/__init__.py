"""One contract for places where files lie: a folder on a disk, or a prefix in a bucket."""
