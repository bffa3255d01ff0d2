"""Q-Align, the quality scorer of the paper, on current transformers."""
