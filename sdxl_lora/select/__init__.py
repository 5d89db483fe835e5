"""Which checkpoint of a run to keep, and at which strength to use it."""
