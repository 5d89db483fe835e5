"""Adapters in models, and their files."""
