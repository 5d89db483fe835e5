"""Settings of every command. Imports no torch."""
