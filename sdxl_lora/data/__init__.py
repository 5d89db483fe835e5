"""Training images with captions, and the order in which a run uses them."""
