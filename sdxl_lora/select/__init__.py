"""Choice of a run's checkpoint to keep, and of the strength to use it at."""
