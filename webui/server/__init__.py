"""Access control and serving of the page."""
