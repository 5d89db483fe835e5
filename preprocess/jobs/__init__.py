"""Parallel processes and jobs, and the state that they share on disk."""
