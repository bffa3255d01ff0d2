"""Measurements: ratios of medians, both sides in one run; results kept as JSON beside them."""
