"""Caches of latents and text embeddings."""
