"""The base model: loading it and using its parts."""
