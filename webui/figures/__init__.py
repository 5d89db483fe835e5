"""Figures of trainings: estimates before a start, and results of runs."""
