"""Parts of a training run, and its steps."""
