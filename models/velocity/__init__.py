"""Velocity networks: of latents (LooUFormer) and of pixels (HDiT)."""
