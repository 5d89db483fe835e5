"""Latents and text embeddings, encoded once."""
