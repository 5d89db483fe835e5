"""Folders of images as people have them: what lies there, what is used of it, and why the rest is not."""
