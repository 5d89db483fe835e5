"""Contents of the source folders and of earlier runs: images, captions, masks."""
