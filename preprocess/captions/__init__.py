"""Captioners, taggers, and the wording of captions."""
