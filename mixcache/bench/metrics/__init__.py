"""Metrics: two clips (or latents) -> a number."""
