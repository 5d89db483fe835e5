"""Image files: formats, colours and metadata, with minimal decoding."""
