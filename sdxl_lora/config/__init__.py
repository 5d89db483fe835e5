"""What can be set. Imports no torch."""
