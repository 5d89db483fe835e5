"""A run's folder: its lock, its status, and its results."""
