"""The claims this project makes, each with its proof."""
