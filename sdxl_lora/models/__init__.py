"""The base: its models, loaded and used."""
