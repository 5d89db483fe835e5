"""Captions: the captioner, and the words around what it says."""
