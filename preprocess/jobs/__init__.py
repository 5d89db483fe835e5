"""Many processes and jobs at once, and what they have done so far."""
