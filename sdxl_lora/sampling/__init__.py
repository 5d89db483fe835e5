"""Images from prompts, grids of them, and their similarity to other images."""
