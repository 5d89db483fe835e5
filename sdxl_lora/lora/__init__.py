"""The adapter in the model, and its files."""
