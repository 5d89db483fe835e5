"""The run: what it is made of, and its loop."""
