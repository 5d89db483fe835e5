"""Image files: formats, colours and metadata, decoded with nothing but what is needed."""
