"""Translations of the page."""
