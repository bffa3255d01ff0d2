"""Numbers about pictures, and the networks that they need."""
