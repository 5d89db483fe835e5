"""A run's folder: who holds it, how it stands, what it has left."""
