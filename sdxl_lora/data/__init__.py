"""Training images and captions, and the order in which a run sees them."""
